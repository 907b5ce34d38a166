"""One int8 graph in OpenVINO, with its asymmetric activations as int8 (as NNCF writes them) and as uint8 (as we do).

Also timed: OpenVINO's own conversion of the same network, quantized by NNCF in OpenVINO's form. The weights are random
few-bit ones; latency does not depend on them. Runs are taken in turns.

Usage::

    python benchmarks/activation_types.py --backbone unet-s --size 512 --out activation_types.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from turns import in_turns

from d2ed2q.backbones import backbone_names, build_backbone
from d2ed2q.data import make_phantom
from d2ed2q.deploy import without_telemetry
from d2ed2q.deploy.graph import float_graph
from d2ed2q.deploy.int8_graph import int8_activations
from d2ed2q.deploy.torch_engine import TorchEngine
from d2ed2q.ensemble import DeepEnsemble
from d2ed2q.recipes.environment import environment

_TURNS, _RUNS = 4, 5


def signed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Undoes the move to uint8: the same numbers in int8 with a zero point."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in changed.graph.initializer}
    for node in changed.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = numpy_helper.to_array(constants[node.input[2]])
            if zero.dtype == np.uint8 and zero.any():
                moved = (zero.astype(np.int16) - 128).astype(np.int8)
                constants[node.input[2]].CopyFrom(numpy_helper.from_array(moved, node.input[2]))
    return changed


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="unet-s", choices=backbone_names())
    parser.add_argument("--size", type=int, default=512, help="height and width (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("activation_types.json"))
    options = parser.parse_args()
    without_telemetry()
    import nncf
    import openvino

    torch.manual_seed(options.seed)
    size = (options.size, options.size)
    images = [
        torch.from_numpy(make_phantom(options.seed + i, size).image).permute(2, 0, 1).float()[None] / 255
        for i in range(4)
    ]
    ensemble = DeepEnsemble(lambda: build_backbone(options.backbone, 3, 1)).train()
    with torch.no_grad():
        for image in images[:2]:
            ensemble(image)
    graph = float_graph(ensemble.eval())
    model = int8_activations(graph.model, [image[0].numpy() for image in images[:3]], "mean-min-max")
    core = openvino.Core()
    own = core.read_model(graph.model.SerializeToString())
    own.reshape([1, 3, *size])
    dataset = nncf.Dataset([image.numpy() for image in images[:3]])
    ways = {
        "ONNX, uint8": core.read_model(model.SerializeToString()),
        "ONNX, int8 with zero point": core.read_model(signed(model).SerializeToString()),
        "OpenVINO's own form": nncf.quantize(own, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=3),
    }
    x = images[3].numpy()
    reference = TorchEngine(model).run(x)
    runs: dict[str, Callable[[], np.ndarray]] = {}
    record: dict[str, dict[str, float]] = {}
    for name, way in ways.items():
        way.reshape([1, 3, *size])
        request = core.compile_model(way, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
        runs[name] = lambda request=request: request.infer([x])[0]  # type: ignore[misc]
        difference = np.abs(runs[name]() - reference)
        record[name] = {"largest_difference": float(difference.max()), "mean_difference": float(difference.mean())}
    seconds = in_turns(runs, _TURNS, _RUNS, warm_up=0)  # each has run above
    for name, row in record.items():
        row["median_seconds"] = statistics.median(seconds[name])
        print(
            f"{name:<28}{row['median_seconds'] * 1e3:8.1f} ms, from the standard's arithmetic: "
            f"{row['largest_difference']:.4f} at most, {row['mean_difference']:.5f} on average"
        )
    content = {
        "backbone": options.backbone,
        "size": size,
        "seed": options.seed,
        "environment": environment(),
        "ways": record,
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

r"""Bytes of a whole ensemble's bundle at several bits, beside one float network's parameters.

The bytes depend on the codes alone. They are made here from a run's weights before its quantization, in all four steps
without retraining between, and put into the graph of the run's bundle.

Usage::

    python experiments/bundle_bytes.py RUN RUN.d2q --configuration experiments/drive-ce-net-short-4bit.toml \
        --bits 3 4 5 --out experiments/bytes/ce-net.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import onnx
from onnx import numpy_helper

from d2ed2q.deploy import read_bundle, write_bundle
from d2ed2q.deploy.bundle import MODEL
from d2ed2q.deploy.int8_weights import int8_weight
from d2ed2q.files import write_text
from d2ed2q.quantization import IncrementalQuantizer, quantizable_weights
from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.environment import environment
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.train_settings import TrainSettings


def bundle_bytes(run: RunFolder, bundle: Path, bits: int, seed: int) -> int:
    """Size of the bundle, had the run been quantized to so many bits."""
    ensemble = run.load(full_precision=True)
    quantizer = IncrementalQuantizer(ensemble, bits, "geometric", seed=seed)
    while quantizer.advance():
        pass
    template = read_bundle(bundle)
    model = onnx.load_from_string(template.model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for weight in quantizable_weights(ensemble):
        found = int8_weight(weight.parameter, weight.channel_axis, quantizer.codebooks[weight.name].scale)
        assert found.error == 0
        for part, array in (("codes", found.codes), ("scale", found.scale)):
            name = f"{weight.name}/{part}"
            constants[name].CopyFrom(numpy_helper.from_array(array.numpy(), name))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.d2q"
        write_bundle(path, template.manifest, {**template.parts, MODEL: model.SerializeToString()})
        return path.stat().st_size


def main() -> int:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("bundle", type=Path, help="the bundle that was exported from it")
    parser.add_argument("--configuration", type=Path, required=True, help="the run's TOML file in experiments/")
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    run = RunFolder(options.run)
    manifest = read_bundle(options.bundle).manifest
    seed = settings_from(run.config, TrainSettings).seed
    learner = 4 * manifest.weights.learner_parameters
    rows = {bits: bundle_bytes(run, options.bundle, bits, seed) for bits in options.bits}
    for bits, size in rows.items():
        print(f"{manifest.backbone}, {bits} bits: {size:,} bytes, {size / learner:.3f} × one float network")
    result = {
        "command": f"python experiments/bundle_bytes.py RUN RUN.d2q --configuration {options.configuration.name} "
        f"--bits {' '.join(map(str, options.bits))} --out {options.out.name}",
        "run": f"d2ed2q train --config experiments/{options.configuration.name} --data DATA --out RUN",
        "seed": seed,
        "environment": environment(),
        "backbone": manifest.backbone,
        "one_float_network": learner,
        "bytes": rows,
        "ratio": {bits: size / learner for bits, size in rows.items()},
        "exported": {"bits": manifest.weights.bits, "bytes": options.bundle.stat().st_size},
    }
    write_text(options.out, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

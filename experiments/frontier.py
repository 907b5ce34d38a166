"""Accuracy against latency and against bytes: float and int8, one learner and the whole ensemble, on one picture.

Usage::

    d2ed2q experiment run frontier --data DATA --runs RUNS
    python experiments/frontier.py RUNS/frontier/* --longer RUNS/drive-4bit-seed0 RUNS/drive-unet-xs-4bit-seed0
    python experiments/frontier.py --paper RUNS/drive-ce-net-night-seed0
    python experiments/frontier.py --latency
    python experiments/frontier.py      # only draws, of what is kept in experiments/frontier

The runs of ``--longer`` had more time than those of the frontier, as published networks had, and those of ``--paper``
the paper's own recipe. Each run has two points:
its full-precision weights in float32, and its few-bit weights as the int8 file that ``d2ed2q export`` makes. Their
accuracy and bytes are of the run; their latency in OpenVINO, on one image, does not depend on the weights: that of one
pass is measured for all networks at once, with random ones, in turns with W-Net (Galdran et al., 2022). An image takes
as many passes as the test-time augmentation has that its accuracy is of, eight here; W-Net's accuracy is the published
one, whose code averages four by default. Latency is drawn in multiples of W-Net's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import onnx
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "experiments")]

from deployment import test_figures  # noqa: E402
from turns import in_turns  # noqa: E402
from w_net import WNet  # noqa: E402

from d2ed2q.backbones import build_backbone  # noqa: E402
from d2ed2q.deploy import make_engine, read_bundle  # noqa: E402
from d2ed2q.deploy.dihedral import symmetries  # noqa: E402
from d2ed2q.deploy.graph import float_graph, learner_graph  # noqa: E402
from d2ed2q.deploy.int8_graph import int8_activations, int8_weights  # noqa: E402
from d2ed2q.deploy.int8_weights import int8_weight  # noqa: E402
from d2ed2q.ensemble import DeepEnsemble  # noqa: E402
from d2ed2q.files import atomic_path, write_text  # noqa: E402
from d2ed2q.quantization import quantizable_weights  # noqa: E402
from d2ed2q.recipes.environment import environment  # noqa: E402
from d2ed2q.recipes.export import export  # noqa: E402
from d2ed2q.recipes.run_folder import RunFolder  # noqa: E402
from d2ed2q.recipes.settings import ExportSettings  # noqa: E402
from d2ed2q.report.bench import logarithmic  # noqa: E402

KEPT = ROOT / "experiments" / "frontier"
PICTURE = ROOT / "docs" / "images" / "frontier.png"
SIZE = (512, 512)
NETWORKS, LEARNERS = ("unet-xs", "unet-s", "unet-deep", "unet-m", "ce-net"), 3
_TURNS, _RUNS = 8, 3
# Galdran et al. (2022), Sci Rep 12:6174: DRIVE, inside the field of view, float32.
W_NET = {"kind": "published", "network": "W-Net", "weights": "float", "auc": 0.9811, "dice": 0.8284}
W_NET_PASSES = 4  # --tta from_preds of generate_results.py, github.com/agaldran/lwnet
_AUC_TICKS = [0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.975, 0.978, 0.98, 0.982, 0.984, 0.986]
_COLORS = {
    "one learner": "#c1272d",
    "one learner, trained for longer": "#d98032",
    "ensemble": "#0f5c8c",
    "ensemble, trained for longer": "#3a8f5c",
    "ensemble, the paper's recipe": "#8a4fa3",
    "published": "#444444",
}


def accuracy(run: RunFolder, recipe: str, data: Path | None) -> dict[str, Any]:
    """Two points of a run: how accurate they are on test images, and how large."""
    card = run.read_card()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.d2q"
        export(ExportSettings(run=run.path, out=file, tolerance=100))
        scored = run.read_json(run.evaluation)
        where = data or Path(run.read_json(run.data)["root"])
        test, size = test_figures(scored["scopes"], scored["tta"], file, where), read_bundle(file).size
    before = scored["full_precision"] or scored  # a run that was not quantized has one kind of weights
    full = before["scopes"][test["scope"]][test["view"]]
    parameters = sum(parameter.numel() for parameter in run.load(full_precision=True).parameters())
    return {
        "run": run.path.name,
        "kind": ("ensemble" if card.learners else "one learner") + (f", {recipe}" if recipe else ""),
        "network": card.backbone,
        "learners": card.learners,
        "tta": scored["tta"],
        "environment": {**environment(), "command": ["frontier.py", run.path.name]},
        "points": [
            {"weights": "float", "auc": full["auc"], "dice": full["dice"], "bytes": 4 * parameters},
            {
                "weights": f"{card.bits[0]} bits" if card.bits else "int8",
                "auc": test["bundle"]["auc"],
                "dice": test["bundle"]["dice"],
                "bytes": size,
            },
        ],
    }


def latency() -> dict[str, Any]:
    """How long each network and each ensemble takes, in float32 and in int8, and W-Net in float32."""
    torch.manual_seed(0)
    w_net = WNet().eval()
    image = np.random.default_rng(0).random((1, 3, *SIZE), np.float32)
    w_net_way = _way(learner_graph(w_net).model, image)
    measured = []
    for network in NETWORKS:
        for learners in (0, LEARNERS):
            ways = {"w_net": w_net_way, **_float_and_int8(network, learners, image)}
            seconds = {name: statistics.median(took) for name, took in in_turns(ways, _TURNS, _RUNS).items()}
            measured.append({"network": network, "learners": learners, "median_seconds": seconds})
    return {
        "size": list(SIZE),
        "environment": {**environment(), "command": ["frontier.py", "--latency"]},
        "w_net": {"bytes": 4 * sum(parameter.numel() for parameter in w_net.parameters())},
        "networks": measured,
    }


def _float_and_int8(network: str, learners: int, image: np.ndarray) -> dict[str, Callable[[], object]]:
    ensemble = DeepEnsemble(lambda: build_backbone(network, in_channels=3, n_classes=1), n_base=learners).eval()
    graph = float_graph(ensemble)
    weights = {w.name: int8_weight(w.parameter, w.channel_axis) for w in quantizable_weights(ensemble)}
    int8 = int8_weights(int8_activations(graph.model, [image[0]], "mean-min-max"), graph, weights)
    return {"float": _way(graph.model, image), "int8": _way(int8, image)}


def _way(model: onnx.ModelProto, image: np.ndarray) -> Callable[[], object]:
    return partial(make_engine("openvino", model.SerializeToString()).run, image)


def read_points(kept: Path) -> list[dict[str, Any]]:
    """Those of all runs that are kept, and W-Net's, with their latency in multiples of its own."""
    took = json.loads((kept / "latency.json").read_text(encoding="utf-8"))
    seconds = {(one["network"], one["learners"]): one["median_seconds"] for one in took["networks"]}
    found = [{**W_NET, "latency": 1.0, "bytes": took["w_net"]["bytes"]}]
    for path in sorted((kept / "accuracy").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        own, passes = seconds[run["network"], run["learners"]], len(symmetries(run["tta"])) / W_NET_PASSES
        for point in run["points"]:
            ratio = passes * own["float" if point["weights"] == "float" else "int8"] / own["w_net"]
            found.append({**point, "kind": run["kind"], "network": run["network"], "latency": ratio})
    return found


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Two panels, AUC upwards: latency from left to right in the one, bytes in the other.

    What AUC lacks of 1 is logarithmic: halving it is one step, near the top as well as far below.
    """
    panels = (
        ("latency", 1.0, "latency of one image of 512×512 with test-time augmentation,\nin multiples of W-Net's"),
        ("bytes", 1e-6, "MB on disk"),
    )
    with matplotlib.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 5), dpi=120, layout="constrained")
        for axes, (key, unit, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
            for name in dict.fromkeys((point["kind"], point["network"]) for point in points):
                kind, network = name
                pair = [point for point in points if (point["kind"], point["network"]) == name]
                where = [point[key] * unit for point in pair]
                axes.plot(where, [point["auc"] for point in pair], "-", color=_COLORS[kind], linewidth=0.8, alpha=0.6)
                for point, x in zip(pair, where, strict=True):
                    whole = point["weights"] == "float"
                    axes.plot(
                        [x],
                        [point["auc"]],
                        "o" if kind != "published" else "D",
                        color=_COLORS[kind],
                        fillstyle="none" if whole else "full",
                        label=f"{kind}, {'float32' if whole else point['weights'] + ', int8'}",
                    )
                side = (0, -14) if kind.startswith("one learner") else (0, 7)  # of ensembles above, of one below
                place = {"xytext": side, "textcoords": "offset points", "ha": "center", "fontsize": 8}
                axes.annotate(network, (where[-1], pair[-1]["auc"]), **place)
            logarithmic(axes)
            axes.set_xlabel(f"{title} (logarithmic)")
            axes.margins(0.1)
            axes.grid(alpha=0.2)
        lacking = (lambda auc: -np.log(np.maximum(1 - auc, 1e-6)), lambda y: 1 - np.exp(-y))
        figure.axes[0].set_yscale("function", functions=lacking)
        figure.axes[0].yaxis.set_major_locator(FixedLocator(_AUC_TICKS))
        figure.axes[0].set_ylabel("AUC on DRIVE's test images, inside the field of view")
        handles = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, fontsize=9, frameon=False)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")


def main() -> int:
    """Measures if runs are given, and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="run folders, all of them evaluated")
    parser.add_argument("--longer", type=Path, nargs="*", default=[], help="run folders of longer trainings")
    parser.add_argument("--paper", type=Path, nargs="*", default=[], help="run folders of the paper's recipe")
    parser.add_argument("--latency", action="store_true", help="measure how long all networks take, on a quiet machine")
    parser.add_argument("--data", type=Path, help="the dataset, if it is not where the runs were trained")
    parser.add_argument("--kept", type=Path, default=KEPT)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    recipes = {"": options.runs, "trained for longer": options.longer, "the paper's recipe": options.paper}
    for recipe, paths in recipes.items():
        for path in paths:
            result = accuracy(RunFolder(path), recipe, options.data)
            write_text(options.kept / "accuracy" / f"{result['run']}.json", json.dumps(result, indent=1) + "\n")
    if options.latency:
        write_text(options.kept / "latency.json", json.dumps(latency(), indent=1) + "\n")
    draw(read_points(options.kept), options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())

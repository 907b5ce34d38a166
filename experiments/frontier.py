"""Accuracy against latency and against bytes: float and int8, one learner and the whole ensemble, on one picture.

Usage::

    d2ed2q experiment run frontier --data DATA --runs RUNS
    python experiments/frontier.py RUNS/frontier/* --longer RUNS/drive-4bit-seed0 RUNS/drive-unet-xs-4bit-seed0
    python experiments/frontier.py      # only draws, of what is kept in experiments/frontier/measured

The runs of ``--longer`` had more time than those of the frontier, as published networks had. Of each run two points are
measured: its full-precision weights in float32, and its few-bit weights as the int8 file that ``d2ed2q export`` makes.
Both run in OpenVINO on one image, in turns with W-Net (Galdran et al., 2022), and their latency is a multiple of its
latency, so that runs can be measured one by one. W-Net's accuracy is the published one, and its weights are random,
which changes nothing in what it costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "experiments")]

from deployment import test_figures  # noqa: E402
from turns import in_turns  # noqa: E402
from w_net import WNet  # noqa: E402

from d2ed2q.deploy import make_engine, read_bundle  # noqa: E402
from d2ed2q.deploy.graph import float_graph, learner_graph  # noqa: E402
from d2ed2q.files import atomic_path, write_text  # noqa: E402
from d2ed2q.recipes.environment import environment  # noqa: E402
from d2ed2q.recipes.export import export  # noqa: E402
from d2ed2q.recipes.run_folder import RunFolder  # noqa: E402
from d2ed2q.recipes.settings import ExportSettings  # noqa: E402
from d2ed2q.report.bench import logarithmic  # noqa: E402

KEPT = ROOT / "experiments" / "frontier" / "measured"
PICTURE = ROOT / "docs" / "images" / "frontier.png"
SIZE = (512, 512)
_TURNS, _RUNS = 8, 3
# Galdran et al. (2022), Sci Rep 12:6174: DRIVE, inside the field of view, float32.
W_NET = {"kind": "published", "network": "W-Net", "weights": "float", "auc": 0.9811, "dice": 0.8284}
_COLORS = {
    "one learner": "#c1272d",
    "one learner, trained for longer": "#d98032",
    "ensemble": "#0f5c8c",
    "ensemble, trained for longer": "#3a8f5c",
    "published": "#444444",
}


def measure(run: RunFolder, longer: bool, data: Path | None) -> dict[str, Any]:
    """Two points of a run, and how long W-Net takes."""
    card = run.read_card()
    kind = ("ensemble" if card.learners else "one learner") + (", trained for longer" if longer else "")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.d2q"
        export(ExportSettings(run=run.path, out=file, tolerance=100))
        scored = run.read_json(run.evaluation)
        where = data or Path(run.read_json(run.data)["root"])
        test, bundle = test_figures(scored["scopes"], scored["tta"], file, where), read_bundle(file)
    full = scored["full_precision"]["scopes"][test["scope"]][test["view"]]
    ensemble = run.load(full_precision=True)
    parameters = sum(parameter.numel() for parameter in ensemble.parameters())
    points: list[dict[str, Any]] = [
        {"weights": "float", "auc": full["auc"], "dice": full["dice"], "bytes": 4 * parameters},
        {
            "weights": f"{card.bits[0]} bits" if card.bits else "int8",
            "auc": test["bundle"]["auc"],
            "dice": test["bundle"]["dice"],
            "bytes": bundle.size,
        },
    ]
    torch.manual_seed(0)
    w_net = WNet().eval()
    graphs = {
        "float": float_graph(ensemble).model.SerializeToString(),
        "few bits": bundle.model,
        "w_net": learner_graph(w_net).model.SerializeToString(),
    }
    image = np.random.default_rng(0).random((1, 3, *SIZE), np.float32)
    ways = {name: partial(make_engine("openvino", graph).run, image) for name, graph in graphs.items()}
    seconds = {name: statistics.median(took) for name, took in in_turns(ways, _TURNS, _RUNS).items()}
    for name, point in zip(("float", "few bits"), points, strict=True):
        point |= {"median_seconds": seconds[name], "latency": seconds[name] / seconds["w_net"]}
    return {
        "run": run.path.name,
        "kind": kind,
        "network": card.backbone,
        "learners": card.learners,
        "size": list(SIZE),
        "environment": {**environment(), "command": ["frontier.py", run.path.name]},
        "points": points,
        "w_net": {"median_seconds": seconds["w_net"], "bytes": 4 * sum(p.numel() for p in w_net.parameters())},
    }


def measured(folder: Path) -> list[dict[str, Any]]:
    """The points of all runs that are kept, and W-Net's.

    Raises:
        SystemExit: they were measured on different processors, of which multiples have no common meaning.
    """
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    on = {(run["environment"]["processor"], tuple(run["environment"]["features"])) for run in runs}
    if len(on) != 1:
        raise SystemExit(f"{folder} holds measurements of {len(on)} kinds of processors: measure all runs on one")
    points = [{**point, "kind": run["kind"], "network": run["network"]} for run in runs for point in run["points"]]
    return [*points, {**W_NET, "latency": 1.0, "bytes": runs[0]["w_net"]["bytes"]}]


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Two panels, AUC upwards: latency from left to right in the one, bytes in the other."""
    panels = (
        ("latency", 1.0, "latency of one image of 512×512 in OpenVINO, in multiples of W-Net's"),
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
                place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 8}
                axes.annotate(network, (where[-1], pair[-1]["auc"]), **place)
            logarithmic(axes)
            axes.set_xlabel(f"{title} (logarithmic)")
            axes.margins(0.1)
            axes.grid(alpha=0.2)
        figure.axes[0].set_ylabel("AUC on DRIVE's test images, inside the field of view")
        handles = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
        figure.axes[1].legend(handles.values(), handles.keys(), loc="lower right", fontsize=8, frameon=False)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")


def main() -> int:
    """Measures if runs are given, and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="run folders, all of them evaluated")
    parser.add_argument("--longer", type=Path, nargs="*", default=[], help="run folders of longer trainings")
    parser.add_argument("--data", type=Path, help="the dataset, if it is not where the runs were trained")
    parser.add_argument("--kept", type=Path, default=KEPT)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    for path in (*options.runs, *options.longer):
        result = measure(RunFolder(path), path in options.longer, options.data)
        write_text(options.kept / f"{result['run']}.json", json.dumps(result, indent=1) + "\n")
    draw(measured(options.kept), options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())

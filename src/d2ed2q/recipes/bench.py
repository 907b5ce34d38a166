"""Measure a bundle in every engine, beside one float network of its architecture, in one run."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from d2ed2q.deploy import Bundle, available_engines, model_path, read_bundle
from d2ed2q.deploy.dihedral import symmetries
from d2ed2q.deploy.engines import check_engine
from d2ed2q.deploy.manifest import InputSpec
from d2ed2q.errors import BundleError, ConfigError, MissingExtraError
from d2ed2q.files import write_text
from d2ed2q.limits import usable_cores
from d2ed2q.recipes.environment import environment
from d2ed2q.recipes.measurements import Job, int8_peak, measure, operations
from d2ed2q.recipes.settings import BenchSettings
from d2ed2q.report.names import FLOAT_NETWORK

__all__ = ["bench"]

_SIZES = {2: (512, 512), 3: (96, 96, 96)}
_ROUNDS = 2  # the second one backwards, so that a slow minute of the machine falls on all


def bench(settings: BenchSettings) -> dict[str, Any]:
    """Times the bundle's graph and one float network of the same architecture, each in a process of its own.

    The float network's weights are new random ones: they do not change what it costs. In ``torch`` it is the network as
    it was built, run eagerly in float32; in the other engines it is its exported graph in float32.

    Returns:
        dict: ``model``, ``machine``, ``size``, ``rows`` (one for each engine and network, of one pass), ``left_out``
        (what an engine cannot run, and why), ``int8_peak`` in operations a second, ``ratios`` (latency of the ensemble
        over that of one float network, same engine and PyTorch), ``accuracy`` (of the bundle's card), ``passes`` (of
        the network for one image, with the test-time augmentation that this accuracy is of).

    Raises:
        BundleError: the bundle is not sound.
        MissingExtraError: the engine, or any at all, is not installed.
        ConfigError: a size that the model does not take.
    """
    bundle = read_bundle(model_path(settings.model))
    given = bundle.manifest.input
    size = settings.size or _seen(given) or _SIZES[given.dims]
    if len(size) != given.dims:
        raise ConfigError(f"the size must be {given.dims} numbers for this model, got {size}")
    if any(extent % given.stride or extent < given.minimum for extent in size):
        raise ConfigError(
            f"the size must be a multiple of {given.stride} and at least {given.minimum} for this model, got {size}"
        )
    first = check_engine("auto" if settings.engine == "all" else settings.engine)
    engines = available_engines() if settings.engine == "all" else [first]
    threads = settings.threads or usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        network = settings.backbone or bundle.manifest.backbone
        known = settings.backbone is not None or ":" not in network
        jobs = _jobs(bundle, network if known else None, engines, size, settings.runs, threads, Path(folder))
        rows, left_out = _measured(jobs)
        if not known:
            left_out[FLOAT_NETWORK] = (
                f"it is built by {network}, which a bundle's word does not run; name it with --backbone"
            )
        if "openvino" in engines:
            for row in rows:
                graph = Path(folder) / f"{row['network']}.onnx"
                row["operations"] = operations(graph.read_bytes(), given.channels, size) if graph.exists() else None
    for row in rows:
        whole = row["network"] != FLOAT_NETWORK
        row["bytes"] = bundle.size if whole else 4 * bundle.manifest.weights.learner_parameters
    result = {
        "model": {"path": str(settings.model), "name": bundle.manifest.name, "sha256": bundle.sha256},
        "backbone": bundle.manifest.backbone,
        "size": list(size),
        "threads": threads,
        "environment": environment(),
        "int8_peak": int8_peak(threads) if "openvino" in engines else None,
        "rows": rows,
        "left_out": left_out,
        "ratios": _ratios(rows),
        "bytes_ratio": bundle.size / (4 * bundle.manifest.weights.learner_parameters),
        "accuracy": dataclasses.asdict(bundle.manifest.accuracy),
        "passes": len(symmetries(bundle.manifest.output.tta, given.dims)),
    }
    if settings.out is not None:
        write_text(settings.out, json.dumps(result, indent=1) + "\n")
        _draw(result, settings.out.with_suffix(".png"))
    return result


def _seen(given: InputSpec) -> tuple[int, ...] | None:
    """What the graph is run on, where the model says it: images of one size, or the windows of volumes, padded."""
    extents = given.resize or given.window
    return None if extents is None else given.taken(extents)


def _jobs(
    bundle: Bundle,
    network: str | None,
    engines: list[str],
    size: tuple[int, ...],
    runs: int,
    threads: int,
    folder: Path,
) -> list[Job]:
    """The bundle's graph in every engine, and the float network too, where PyTorch and the exporter are installed."""
    given, output = bundle.manifest.input, bundle.manifest.output
    whole = "ensemble" if output.learners else "few-bit network"
    (folder / f"{whole}.onnx").write_bytes(bundle.model)
    networks = [(whole, engine) for engine in engines]
    if "torch" in available_engines() and network is not None:
        beside = ["eager" if engine == "torch" else engine for engine in engines]
        networks += [(FLOAT_NETWORK, engine) for engine in beside]
        if beside != ["eager"]:
            _write_learner(bundle, network, folder / f"{FLOAT_NETWORK}.onnx")
    return [
        Job(
            engine=engine,
            model=str(network) if engine == "eager" else str(folder / f"{name}.onnx"),
            channels=given.channels,
            classes=output.channels,
            taps=_taps(bundle),
            size=size,
            runs=runs,
            threads=threads,
        )
        for name, engine in networks
    ]


def _write_learner(bundle: Bundle, backbone: str, path: Path) -> None:
    import torch

    from d2ed2q.backbones import build_backbone
    from d2ed2q.deploy.graph import learner_graph

    torch.manual_seed(0)
    given, classes = bundle.manifest.input, bundle.manifest.output.channels
    network = build_backbone(backbone, given.channels, classes, None, given.dims, _taps(bundle))
    path.write_bytes(learner_graph(network.eval()).model.SerializeToString())


def _taps(bundle: Bundle) -> tuple[str, ...]:
    settings = bundle.manifest.provenance.get("settings")
    return tuple(settings.get("taps", ())) if isinstance(settings, dict) else ()


def _measured(jobs: list[Job]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Figures of every job, and of those that cannot be run (an operator that an engine does not know) why not."""
    order = [
        index
        for turn in range(_ROUNDS)
        for index in (range(len(jobs)) if turn % 2 == 0 else reversed(range(len(jobs))))
    ]
    found: dict[int, list[dict[str, Any]]] = {}
    refused: dict[int, BundleError] = {}
    console = Console(stderr=True)
    for index in track(order, "measuring", console=console, disable=not console.is_terminal, transient=True):
        if index in refused:
            continue
        try:
            found.setdefault(index, []).append(measure(jobs[index]))
        except BundleError as error:
            refused[index] = error
    if len(refused) == len(jobs):
        raise next(iter(refused.values()))
    left_out = {f"{_network(jobs[index])} in {jobs[index].engine}": str(error) for index, error in refused.items()}
    rows = []
    for index, job in enumerate(jobs):
        if index in refused:
            continue
        seconds = [second for once in found[index] for second in once["seconds"]]
        rows.append(
            {
                "network": _network(job),
                "engine": "torch" if job.engine == "eager" else job.engine,
                "median_seconds": statistics.median(seconds),
                "p95_seconds": float(np.quantile(seconds, 0.95)),
                "images_per_second": max(once["images_per_second"] for once in found[index]),
                "peak_memory": max(once["peak_memory"] for once in found[index]),
                "load_seconds": min(once["load_seconds"] for once in found[index]),
                "seconds": seconds,
            }
        )
    return rows, left_out


def _network(job: Job) -> str:
    return FLOAT_NETWORK if job.engine == "eager" else Path(job.model).stem


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Median latency of the bundle's graph in each engine over that of one float network, there and in PyTorch."""
    medians = {(row["network"], row["engine"]): row["median_seconds"] for row in rows}
    ratios = {}
    for (network, engine), seconds in medians.items():
        for other in dict.fromkeys((engine, "torch")):
            if network != FLOAT_NETWORK and (FLOAT_NETWORK, other) in medians:
                ratios[f"{network} in {engine} / {FLOAT_NETWORK} in {other}"] = seconds / medians[FLOAT_NETWORK, other]
    return ratios


def _draw(result: dict[str, Any], path: Path) -> None:
    try:
        from d2ed2q.report import draw_bench
    except ModuleNotFoundError as error:
        raise MissingExtraError("the picture needs matplotlib; run: pip install 'd2ed2q[train]'") from error
    draw_bench(result, path)

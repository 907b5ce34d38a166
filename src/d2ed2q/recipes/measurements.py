"""Timing of one network in one engine, in a process of its own: what ``d2ed2q bench`` starts for every row."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from d2ed2q.deploy import make_engine, without_telemetry
from d2ed2q.errors import ConfigError
from d2ed2q.recipes.machine import peak_memory

__all__ = ["Job", "int8_peak", "measure", "operations"]

_WARM_UP = 3
_PEAK_SIDE = 2048


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
        engine: name of the engine; ``eager`` is a network in PyTorch as it was built.
        model: file with the ONNX graph; with ``eager`` the name of the backbone.
        channels: of the image.
        classes: output channels, for ``eager``.
        size: height and width of the image, of a volume depth, height and width.
        taps: for ``eager``, of a network of the user's own.
        runs: timed runs.
        threads: cores.
    """

    engine: str
    model: str
    channels: int
    classes: int
    size: tuple[int, ...]
    runs: int
    threads: int
    taps: tuple[str, ...] = ()


def measure(job: Job) -> dict[str, Any]:
    """Runs one job in a process of its own.

    Returns:
        dict: ``seconds`` of every timed run, ``images_per_second`` with all cores, ``peak_memory`` of the process in
        bytes, ``load_seconds`` to the first result.
    """
    result: dict[str, Any] = _in_process(_measure, job)
    return result


def int8_peak(threads: int) -> float:
    """Operations a second (a multiplication and an addition are two) of a large int8 matrix product in OpenVINO."""
    return float(_in_process(_int8_peak, threads))


def operations(model: bytes, channels: int, size: tuple[int, ...]) -> float:
    """Multiplications and additions of all convolutions and matrix products of a graph, for one image."""
    without_telemetry()
    import openvino

    graph = openvino.Core().read_model(model)
    graph.reshape([1, channels, *size])
    total = 0.0
    for node in graph.get_ops():
        kind = node.get_type_name()
        if kind not in ("Convolution", "ConvolutionBackpropData", "MatMul"):
            continue
        weight, output = list(node.input(1).get_shape()), list(node.output(0).get_shape())
        if kind == "Convolution":  # weight O×I×k×…: every output element takes I·k·… products
            total += 2 * np.prod(output) * np.prod(weight[1:])
        elif kind == "ConvolutionBackpropData":  # weight I×O×k×…: every input element gives O·k·… products
            total += 2 * np.prod(list(node.input(0).get_shape())) * np.prod(weight[1:])
        else:
            total += 2 * np.prod(output) * node.input(0).get_shape()[-1]
    return float(total)


def _in_process(function: Callable[[Any], Any], argument: Any) -> Any:
    context = get_context("spawn")  # a forked child would inherit threads and memory of the parent
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, argument).result()
        except BrokenProcessPool as error:
            raise ConfigError(
                "a measuring process was killed, most likely because the memory ran out; take a smaller --size"
            ) from error


def _runner(job: Job, streams: int) -> Callable[[np.ndarray], Any]:
    if job.engine != "eager":
        return make_engine(job.engine, Path(job.model).read_bytes(), job.threads, streams).run
    import torch

    from d2ed2q.backbones import build_backbone

    torch.manual_seed(0)
    torch.set_num_threads(max(1, job.threads // streams))
    network = build_backbone(job.model, job.channels, job.classes, None, len(job.size), job.taps).eval()

    def run(image: np.ndarray) -> Any:
        with torch.no_grad():
            return network(torch.from_numpy(image))

    return run


def _measure(job: Job) -> dict[str, Any]:
    image = np.random.default_rng(0).random((1, job.channels, *job.size), np.float32)
    start = time.perf_counter()
    run = _runner(job, 1)
    run(image)
    load = time.perf_counter() - start
    for _ in range(_WARM_UP):
        run(image)
    seconds = []
    for _ in range(job.runs):
        start = time.perf_counter()
        run(image)
        seconds.append(time.perf_counter() - start)
    peak = peak_memory()  # of one image at a time: before several are computed at once
    return {
        "seconds": seconds,
        "images_per_second": _throughput(job, image, statistics.median(seconds)),
        "peak_memory": peak,
        "load_seconds": load,
    }


def _throughput(job: Job, image: np.ndarray, alone: float) -> float:
    """Images a second with as many images at once as there are cores."""
    count = max(job.threads, min(4 * job.threads, int(5 / alone)))
    run = _runner(job, job.threads)
    with ThreadPoolExecutor(job.threads) as pool:
        list(pool.map(run, [image] * job.threads))
        start = time.perf_counter()
        list(pool.map(run, [image] * count))
        return count / (time.perf_counter() - start)


def _int8_peak(threads: int) -> float:
    without_telemetry()
    import openvino
    from openvino import opset13 as ops

    side = _PEAK_SIDE
    x = ops.parameter([side, side], np.float32)
    limits = [np.float32(value) for value in (0, 255, 0, 255)]
    steps = ops.fake_quantize(x, *limits, levels=256)
    codes = np.random.default_rng(0).integers(-127, 128, (side, side), np.int8)
    weight = ops.multiply(ops.convert(ops.constant(codes), "f32"), ops.constant(np.full((1, side), 0.01, np.float32)))
    model = openvino.Model([ops.matmul(steps, weight, False, False)], [x])
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    )
    request = compiled.create_infer_request()
    image = np.random.default_rng(1).integers(0, 256, (side, side)).astype(np.float32)
    best = float("inf")
    for _ in range(_WARM_UP + 12):
        start = time.perf_counter()
        request.infer([image])
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best

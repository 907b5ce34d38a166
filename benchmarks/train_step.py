"""Times one optimizer step of the deep ensemble in two ways, taken in turns in one run.

``plain`` is fp32, the default memory layout, PyTorch's treatment of denormal numbers and a plain Adam; ``fast`` is bf16
autocast, channels-last, denormals flushed to zero and a fused Adam; ``kept`` is ``plain`` with the memory kept that is
freed. These settings and how many threads run belong to a process, so each way lives in its own; the parent lets one
step at a time run, turn about, so that a slow minute of the machine falls on both.

Usage::

    python benchmarks/train_step.py --backbone unet-s --batch 4 --size 128 --steps 10 --out train_step.json
    python benchmarks/train_step.py --against kept
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

PLAIN = "plain"


@dataclass(frozen=True)
class Setup:
    """What both ways train: the same network, the same weights, the same batch."""

    backbone: str
    batch: int
    size: int
    threads: int
    seed: int


def make_step(way: str, setup: Setup) -> Callable[[], float]:
    """Builds the ensemble in this process; the result takes one optimizer step and returns its loss."""
    import torch

    from d2ed2q.backbones import build_backbone
    from d2ed2q.data import make_phantom
    from d2ed2q.ensemble import DeepDiversifiedLoss, DeepEnsemble
    from d2ed2q.training import keep_freed_memory

    fast = way == "fast"
    if way == "kept" and not keep_freed_memory():
        sys.exit("this C library cannot keep what is freed, or was told otherwise: the kept way cannot run here")
    # First of all: worker threads take over this setting when they are created, and never again.
    if fast and not torch.set_flush_denormal(True):
        sys.exit("this CPU cannot flush denormal numbers: the fast way cannot run here")
    torch.set_num_threads(setup.threads)
    torch.manual_seed(setup.seed)
    ensemble = DeepEnsemble(lambda: build_backbone(setup.backbone, 3, 1), n_base=3).train()
    criterion = DeepDiversifiedLoss(alpha=0.005, form="released", taps=ensemble.diverse_taps)
    # Made-up retinas rather than noise: what arithmetic costs depends on the numbers, denormal ones above all.
    phantoms = [make_phantom(setup.seed + index, (setup.size, setup.size)) for index in range(setup.batch)]
    image = torch.stack([torch.from_numpy(phantom.image).permute(2, 0, 1).float() / 255 for phantom in phantoms])
    label = torch.stack([torch.from_numpy(phantom.mask).float().clamp(max=1) for phantom in phantoms])
    roi = torch.stack([torch.from_numpy(phantom.roi).bool() for phantom in phantoms])
    if fast:
        ensemble = ensemble.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        image = image.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=2e-4, fused=fast)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if fast else nullcontext():
            loss = criterion(ensemble(image), label, roi).total
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def peak(way: str) -> float:
    """Operations a second of a large matrix product in a way's number format: no step computes faster than that."""
    import torch

    dtype = torch.bfloat16 if way == "fast" else torch.float32
    side = 2048
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def serve_steps(way: str, setup: Setup, orders: Connection) -> None:
    """Child process: answers every order with one step's seconds and loss, until the parent closes the pipe.

    The order ``limits`` is answered with the peak of a matrix product and the operations of one step instead.
    """
    from torch.utils.flop_counter import FlopCounterMode

    step = make_step(way, setup)
    orders.send((0.0, 0.0))  # ready
    while True:
        try:
            order = orders.recv()
        except EOFError:
            return
        if order == "limits":
            with FlopCounterMode(display=False) as counter:
                step()
            orders.send((peak(way), float(counter.get_total_flops())))
            continue
        start = time.perf_counter()
        loss = step()
        orders.send((time.perf_counter() - start, loss))


def answer_of(way: str, child: Connection) -> tuple[float, float]:
    """Waits for a child's answer; ends the run where the child has died (it has printed why)."""
    try:
        answer: tuple[float, float] = child.recv()
    except EOFError:
        sys.exit(f"the {way} process died: nothing was measured")
    return answer


def measure(
    setup: Setup, against: str, warm_up: int, steps: int
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, tuple[float, float]]]:
    """Runs both ways turn about.

    Returns:
        tuple: of each way, (seconds, loss) of every timed step; and (operations a second of a large matrix product,
        operations of one step).
    """
    # An idle OpenMP worker spins by default, and would take a core from the other way's turn. Children inherit this.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    context = get_context("spawn")  # a forked child would inherit threads and the state of the parent's libraries
    orders: dict[str, Connection] = {}
    children = []
    ways = (PLAIN, against)
    for way in ways:
        parent_end, child_end = context.Pipe()
        child = context.Process(target=serve_steps, args=(way, setup, child_end), daemon=True)
        child.start()
        child_end.close()  # so that a child that dies ends the parent's wait
        answer_of(way, parent_end)
        orders[way] = parent_end
        children.append(child)
    results: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for turn in range(warm_up + steps):
        for way in ways if turn % 2 == 0 else reversed(ways):
            orders[way].send("step")
            answer = answer_of(way, orders[way])
            if turn >= warm_up:
                results[way].append(answer)
    limits = {}
    for way in ways:
        orders[way].send("limits")
        limits[way] = answer_of(way, orders[way])
    for connection in orders.values():
        connection.close()
    for child in children:
        child.join()
    return results, limits


def machine() -> dict[str, object]:
    """The machine and the software that the figures hold for."""
    import torch

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def summarize(
    results: dict[str, list[tuple[float, float]]], limits: dict[str, tuple[float, float]]
) -> dict[str, object]:
    """Medians, spread and last losses of both ways, the ratio of the medians, and the least time a step could take."""
    seconds = {way: [taken for taken, _ in steps] for way, steps in results.items()}
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    against = next(way for way in results if way != PLAIN)
    pairs = [plain / other for plain, other in zip(seconds[PLAIN], seconds[against], strict=True)]
    return {
        "seconds": seconds,
        "median_seconds": medians,
        "first_loss": {way: steps[0][1] for way, steps in results.items()},
        "last_loss": {way: steps[-1][1] for way, steps in results.items()},
        "ratio_of_medians": medians[PLAIN] / medians[against],
        "ratio_of_pairs": {"min": min(pairs), "median": statistics.median(pairs), "max": max(pairs)},
        "matrix_product_per_second": {way: rate for way, (rate, _) in limits.items()},
        "operations_of_a_step": limits[against][1],
        "least_seconds": {way: work / rate for way, (rate, work) in limits.items()},
    }


def show(record: dict[str, object], results: dict[str, list[tuple[float, float]]]) -> None:
    """Prints the table."""
    print(f"{'way':<8}{'median s':>10}{'min s':>10}{'max s':>10}{'last loss':>12}")
    for way, steps in results.items():
        times = [taken for taken, _ in steps]
        print(f"{way:<8}{statistics.median(times):>10.4f}{min(times):>10.4f}{max(times):>10.4f}{steps[-1][1]:>12.4f}")
    print(f"{' / '.join(results)}, ratio of medians: {record['ratio_of_medians']:.2f}")
    least = record["least_seconds"]
    assert isinstance(least, dict)
    limits = ", ".join(f"{way} {seconds:.2f} s" for way, seconds in least.items())
    print(f"a step at the speed of a large matrix product: {limits}")


def positive(text: str) -> int:
    """Of an argument, an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def main() -> None:
    """Reads the arguments, measures, prints and writes."""
    from d2ed2q.backbones import backbone_names

    parser = argparse.ArgumentParser(description="Time one training step of the deep ensemble in two ways.")
    parser.add_argument(
        "--backbone", default="unet-s", choices=backbone_names(), help="name of the backbone (default: %(default)s)"
    )
    parser.add_argument("--against", default="fast", choices=("fast", "kept"), help="of plain (default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=4, help="images a step (default: %(default)s)")
    parser.add_argument("--size", type=positive, default=128, help="height and width (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=10, help="timed steps of each way (default: %(default)s)")
    parser.add_argument("--warm-up", type=positive, default=2, help="untimed steps before them (default: %(default)s)")
    parser.add_argument(
        "--threads", type=positive, default=os.cpu_count() or 1, help="of each way (default: all cores)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the batch (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("train_step.json"), help="the figures as JSON (default: %(default)s)"
    )
    options = parser.parse_args()

    setup = Setup(options.backbone, options.batch, options.size, options.threads, options.seed)
    results, limits = measure(setup, options.against, options.warm_up, options.steps)
    record: dict[str, object] = {
        "command": ["python", *sys.argv],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "setup": {**asdict(setup), "warm_up": options.warm_up, "steps": options.steps},
        "machine": machine(),
        **summarize(results, limits),
    }
    show(record, results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()

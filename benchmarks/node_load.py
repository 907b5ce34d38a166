"""What a node costs beside its model: latency of one client, throughput of eight, memory over many requests.

Usage::

    python benchmarks/node_load.py MODEL.d2q --size 256 --requests 5000 --out benchmarks/results/node-load.json

The node runs as a process of its own with its HTTP door; clients speak the Open Inference Protocol with binary tensors.
The predictor alone is measured in this process, with the same tensors, in turns with the node: what the machine's
neighbours take comes and goes within seconds. The overhead is the median difference between a request and the
prediction before it, the throughput's ratio the median of nine pairs of neighbouring spells. Clients share the cores
with the node; they are as light as the standard library's are.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from node_faults import free_port, running

from d2ed2q.data import make_phantom
from d2ed2q.deploy import Predictor, read_bundle
from d2ed2q.files import write_text
from d2ed2q.recipes.environment import environment
from d2ed2q.serve.model import Model

_SPELLS = 9


def body_of(image: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """A request for the mask and the doubt of one image, float32 or uint8 ``C×H×W``."""
    datatype = {"float32": "FP32", "uint8": "UINT8"}[str(image.dtype)]
    described = {"name": "image", "datatype": datatype, "shape": [1, *image.shape]}
    head = json.dumps(
        {
            "inputs": [described | {"parameters": {"binary_data_size": image.nbytes}}],
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in ("mask", "doubt")],
        }
    ).encode()
    return head + image.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def memory_of(process: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell a process's memory")


def turns(predictor: Predictor, image: np.ndarray, ask: Any, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the predictor alone and of the node, in turns."""
    alone: list[float] = []
    served: list[float] = []
    for _ in range(rounds):
        for action, times in ((lambda: predictor.scaled_probabilities(image, None, "none"), alone), (ask, served)):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
    return alone, served


class Client:
    """One connection that is kept open."""

    def __init__(self, port: int, path: str, body: bytes, headers: dict[str, str]) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.request = ("POST", path, body, headers)

    def ask(self) -> None:
        """One request and its answer."""
        self.connection.request(*self.request)
        answer = self.connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"the node answered {answer.status}")


def throughput(make: Callable[[], Client], clients: int, requests: int) -> float:
    """Requests a second of so many clients."""
    left = iter(range(requests))
    lock = threading.Lock()

    def work() -> None:
        client = make()
        while True:
            with lock:
                if next(left, None) is None:
                    client.connection.close()
                    return
            client.ask()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return requests / (time.perf_counter() - start)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Starts a node and measures it."""
    port = free_port()
    (folder / "node.toml").write_text(
        f'state = "{folder / "state"}"\n[http]\nport = {port}\nper_minute = 10000000\n[queue]\nwaiting = 64\n'
    )
    command = [sys.executable, "-m", "d2ed2q", "serve", str(options.model), "--config", str(folder / "node.toml")]
    with running(command, port) as node:
        bundle = read_bundle(options.model)
        path = f"/v2/models/{bundle.manifest.name}/infer"
        picture = make_phantom(0, (options.size, options.size)).image
        pixels = np.ascontiguousarray(picture.transpose(2, 0, 1))
        image = pixels.astype(np.float32) / 255
        body, headers = body_of(pixels if options.datatype == "UINT8" else image)
        model = Model(bundle)
        make = partial(Client, port, path, body, headers)
        ask = make().ask
        turns(model.predictor, image, ask, 5)  # the first ones prepare for the size
        alone, served = turns(model.predictor, image, ask, options.rounds)
        own, rates = [], []
        for _ in range(_SPELLS):
            start = time.perf_counter()
            for _ in range(options.rounds):
                model.predictor.scaled_probabilities(image, None, "none")
            own.append(options.rounds / (time.perf_counter() - start))
            rates.append(throughput(make, 8, options.rounds))
        memory = [memory_of(node.process.pid)]
        for _ in range(5):
            throughput(make, 8, options.requests // 5)
            memory.append(memory_of(node.process.pid))
    return {
        "model": {"name": bundle.manifest.name, "sha256": bundle.sha256},
        "size": options.size,
        "datatype": options.datatype,
        "predictor_ms": 1e3 * statistics.median(alone),
        "node_ms": 1e3 * statistics.median(served),
        "overhead_ms": 1e3 * statistics.median(b - a for a, b in zip(alone, served, strict=True)),
        "predictor_per_second": statistics.median(own),
        "node_per_second_8_clients": statistics.median(rates),
        "throughput_ratio": statistics.median(b / a for a, b in zip(own, rates, strict=True)),
        "throughput_ratios": [b / a for a, b in zip(own, rates, strict=True)],
        "requests": options.requests,
        "memory_mb": [round(value / 1e6, 1) for value in memory],
        "environment": environment(),
    }


def main() -> int:
    """Measures and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--datatype", choices=("UINT8", "FP32"), default="UINT8", help="of the tensors")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="d2ed2q-load-") as folder:
        result = measure(options, Path(folder))
    print(json.dumps({name: value for name, value in result.items() if name != "environment"}, indent=1))
    if options.out is not None:
        write_text(options.out, json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

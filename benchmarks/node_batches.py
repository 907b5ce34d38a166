"""Whether images computed together are computed faster: a bundle at several batch sizes, and images side by side.

Usage::

    python benchmarks/node_batches.py MODEL.d2q --size 512 --out benchmarks/results/node-batches.json

All ways are taken in turns in one process, so that a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from turns import in_turns

from d2ed2q.deploy import make_engine, read_bundle
from d2ed2q.files import write_text
from d2ed2q.limits import usable_cores
from d2ed2q.recipes.environment import environment

_BATCHES = (1, 2, 4, 8)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", type=int, default=512, help="height and width (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="turns of all ways (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    bundle, cores = read_bundle(options.bundle), usable_cores()
    shape = (max(_BATCHES), bundle.manifest.input.channels, options.size, options.size)
    images = np.random.default_rng(options.seed).random(shape, np.float32)
    together, beside = make_engine("openvino", bundle.model), make_engine("openvino", bundle.model, cores, cores)

    def in_batches(count: int) -> None:
        for start in range(0, len(images), count):
            together.run(images[start : start + count])

    ways: dict[str, Callable[[], object]] = {f"batches of {count}": partial(in_batches, count) for count in _BATCHES}
    with ThreadPoolExecutor(cores) as pool:
        ways[f"{cores} side by side"] = lambda: list(pool.map(beside.run, [image[None] for image in images]))
        seconds = in_turns(ways, options.rounds)
    speeds = {name: len(images) / statistics.median(times) for name, times in seconds.items()}
    one = speeds[f"batches of {_BATCHES[0]}"]
    for name, speed in speeds.items():
        print(f"{name:<16}{speed:7.2f} images a second, {speed / one:.2f} ×")
    record = {
        "bundle": bundle.manifest.name,
        "backbone": bundle.manifest.backbone,
        "size": options.size,
        "seed": options.seed,
        "images_per_second": speeds,
        "ratio_to_one_by_one": {name: speed / one for name, speed in speeds.items()},
        "environment": environment(),
    }
    write_text(options.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

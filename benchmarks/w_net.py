"""A bundle in OpenVINO against W-Net in float32, the smallest network that is known to do well on retinal vessels.

W-Net (Galdran et al., 2022) is two U-Nets of 8-16-32 channels, residual blocks, the second one seeing the image and the
first one's answer; 68,482 parameters, as in its authors' code. Its weights are random here: latency does not depend on
them. Both are run in turns in one process.

Usage::

    python benchmarks/w_net.py model.d2q --size 512 --out w_net.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from turns import in_turns

from d2ed2q.backbones import StagedNetwork
from d2ed2q.backbones.staged import TapHook
from d2ed2q.deploy import make_engine, read_bundle
from d2ed2q.deploy.graph import learner_graph
from d2ed2q.recipes.environment import environment
from d2ed2q.recipes.measurements import operations

_TURNS, _RUNS = 6, 5


def convolution(inner: int, outer: int) -> list[nn.Module]:
    """3×3, then the nonlinearity, then the normalisation: their order."""
    return [nn.Conv2d(inner, outer, 3, padding=1), nn.LeakyReLU(), nn.BatchNorm2d(outer)]


class Block(nn.Module):
    """Two 3×3 convolutions beside a 1×1 shortcut."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*convolution(inner, outer), *convolution(outer, outer))
        self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        """Of ``B×inner×h×w``, ``B×outer×h×w``."""
        result: Tensor = self.body(x) + self.shortcut(x)
        return result


class SmallUNet(nn.Module):
    """U-Net of 8-16-32 channels with residual blocks, and a convolution in each skip connection."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([Block(inner, 8), Block(8, 16), Block(16, 32)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)])
        self.bridge = nn.ModuleList([nn.Sequential(*convolution(16, 16)), nn.Sequential(*convolution(8, 8))])
        self.merge = nn.ModuleList([Block(32, 16), Block(16, 8)])
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, ``B×1×h×w``."""
        first = self.down[0](x)
        second = self.down[1](F.max_pool2d(first, 2))
        x = self.down[2](F.max_pool2d(second, 2))
        for up, bridge, merge, skip in zip(self.up, self.bridge, self.merge, (second, first), strict=True):
            x = merge(torch.cat((up(x), bridge(skip)), 1))
        logits: Tensor = self.head(x)
        return logits


class WNet(StagedNetwork):
    """Two small U-Nets, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels, self.n_classes, self.stride, self.taps = 3, 1, 4, ()
        self.first, self.second = SmallUNet(3), SmallUNet(4)

    def run_stages(self, x: Tensor, at_tap: TapHook) -> Tensor:
        """Logits of the second U-Net."""
        logits: Tensor = self.second(torch.cat((x, self.first(x)), 1))
        return logits


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", type=int, default=512, help="height and width (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("w_net.json"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    bundle, network = read_bundle(options.bundle), WNet().eval()
    graphs = {"bundle": bundle.model, "w-net": learner_graph(network).model.SerializeToString()}
    engines = {name: make_engine("openvino", graph) for name, graph in graphs.items()}
    image = np.random.default_rng(options.seed).random((1, 3, options.size, options.size), np.float32)
    ways = {name: partial(engine.run, image) for name, engine in engines.items()}
    seconds = in_turns(ways, _TURNS, _RUNS)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    work = {name: operations(graph, 3, (options.size, options.size)) for name, graph in graphs.items()}
    for name, median in medians.items():
        print(f"{name:<8}{median * 1e3:8.1f} ms, {work[name] / 1e9:.1f} GFLOP")
    print(f"bundle / w-net: {medians['bundle'] / medians['w-net']:.2f}")
    record = {
        "bundle": bundle.manifest.name,
        "backbone": bundle.manifest.backbone,
        "size": options.size,
        "seed": options.seed,
        "environment": environment(),
        "parameters_of_w_net": sum(parameter.numel() for parameter in network.parameters()),
        "operations": work,
        "median_seconds": medians,
        "ratio": medians["bundle"] / medians["w-net"],
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

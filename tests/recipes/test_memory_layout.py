"""Channels last, and the convolutions that must not be."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from d2ed2q.backbones import build_backbone
from d2ed2q.ensemble import DeepEnsemble
from d2ed2q.recipes.memory_layout import channels_last, in_channels_last

_STEPS = """
import sys

import torch

from d2ed2q.backbones import build_backbone
from d2ed2q.ensemble import DeepEnsemble
from d2ed2q.recipes.memory_layout import channels_last, in_channels_last

torch.manual_seed(0)
ensemble = DeepEnsemble(lambda: build_backbone("res-unet-deep-xs", 3, 1), n_base=2)
image = torch.rand(2, 3, 128, 128)
gradients = []
for guarded in (True, False):
    ensemble.zero_grad()
    if guarded:
        ensemble, image = in_channels_last(ensemble, 2), channels_last(image)
    else:
        ensemble, image = ensemble.to(memory_format=torch.contiguous_format), image.contiguous()
    with torch.autocast("cpu", torch.bfloat16, enabled=sys.argv[1] == "bf16"):
        ensemble(image).logits.float().square().mean().backward()
    gradients.append(torch.cat([parameter.grad.flatten() for parameter in ensemble.parameters()]))
a, b = gradients
print(torch.nn.functional.cosine_similarity(a, b, dim=0).item())
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_narrow_strided_shortcuts_neither_crash_nor_err(precision: str) -> None:
    """In a process of its own: where the layout is wrong, the process ends."""
    ended = subprocess.run([sys.executable, "-c", _STEPS, precision], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) > (0.9999 if precision == "fp32" else 0.98)


@pytest.mark.parametrize("dims", [2, 3])
def test_all_others_are_channels_last(dims: int) -> None:
    ensemble = DeepEnsemble(lambda: build_backbone("res-unet-deep-xs", 1, 1, dims=dims), n_base=2)
    in_channels_last(ensemble, dims)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    convolutions = [module for module in ensemble.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]
    assert all(module.weight.is_contiguous(memory_format=layout) for module in convolutions)
    narrow = [m for m in convolutions if max(m.kernel_size) == 1 and max(m.stride) > 1 and m.in_channels < 16]
    assert narrow
    first = {m for m in narrow if m.weight.stride() == (m.in_channels, *(1,) * (dims + 1))}
    assert first == (set(narrow) if dims == 2 else set())  # in three dimensions nothing goes wrong


def test_a_forward_pass_without_gradients_is_not_touched() -> None:
    ensemble = in_channels_last(DeepEnsemble(lambda: build_backbone("res-unet-deep-xs", 1, 1), n_base=2), 2)
    seen: list[bool] = []
    shortcut = next(
        m for m in ensemble.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.in_channels == 8
    )
    shortcut.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    image = channels_last(torch.rand(1, 1, 64, 64))
    with torch.no_grad():
        ensemble(image)
    ensemble(image)
    assert seen == [False, True]

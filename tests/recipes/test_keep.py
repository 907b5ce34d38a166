"""Which weights a phase ends with, where the first validated epoch looks best."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor

from d2ed2q.recipes import train as train_module
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.training import load_tensors


@pytest.fixture
def weights(
    tmp_path: Path, small_settings: Callable[..., TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Tensor]]:
    """The finished weights of a training with the given settings."""

    def trained(**changes: object) -> dict[str, Tensor]:
        falling = count(0, -1)
        monkeypatch.setattr(train_module, "validation_figures", lambda *_: {"score": float(next(falling))})
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        run = train(small_settings(out, epochs=3, validate_every=1, quantize=False, **changes))
        return load_tensors(run.model)[0]

    return trained


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    names = [name for name in one if name.endswith("weight")]
    return bool(names) and all(torch.equal(one[name], other[name]) for name in names)


def test_few_images_do_not_choose_the_weights_of_a_cosine_schedule(
    weights: Callable[..., dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    best, last, auto = (weights(keep=keep) for keep in ("best", "last", "auto"))
    assert not same(best, last)
    assert same(auto, last)
    monkeypatch.setattr("d2ed2q.recipes.validation.TELLING", 1)
    assert same(weights(), best), "of enough images"


def test_a_rate_that_does_not_fall_to_zero_needs_the_best(weights: Callable[..., dict[str, Tensor]]) -> None:
    best, last = (weights(keep=keep, schedule="constant") for keep in ("best", "last"))
    assert not same(best, last)
    assert same(weights(schedule="constant"), best)

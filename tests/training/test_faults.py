"""What goes wrong in a training is said, and costs nothing that was saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.test_loop import Objective, Run, batches
from torch import Tensor, nn

from d2ed2q.errors import CheckpointError, StorageError, TrainingError
from d2ed2q.training import Batch, Optimization, load_state, load_tensors, read_log, save_state, save_tensors
from d2ed2q.training import loop as loop_module


class Poisoned(Objective):
    """At one step the loss is finite, and its gradient is not: the square root of nothing."""

    def __init__(self, network: nn.Module, at: int) -> None:
        super().__init__(network)
        self.left = at

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        self.left -= 1
        terms = super().forward(batch)
        if self.left == 0:
            terms["loss"] = terms["loss"] + (self.network(batch["x"]) * 0).square().sum().sqrt()
        return terms


@pytest.mark.parametrize("step", [5, 21])  # in between; the last one of all
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_reaches_neither_weights_nor_checkpoint(
    step: int, clip: float, tmp_path: Path
) -> None:
    run = Run(tmp_path, options=Optimization(clip=clip))
    run.trainer.objective = Poisoned(run.network, step)
    with pytest.raises(TrainingError, match=r"norm of its gradient nan in .*lower the learning rate"):
        run.trainer.run()
    saved = load_state(tmp_path / "checkpoint.safetensors")
    assert saved["position"]["step"] == step - 1
    for tensor in (*saved["module"].values(), *run.network.state_dict().values()):
        assert torch.isfinite(tensor).all()
    resumed = Run(tmp_path, options=Optimization(clip=clip))
    resumed.trainer.run(resume=True)
    assert resumed.trainer.at.step == 21


def test_without_a_checkpoint_nothing_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _: Any) -> None:
        raise StorageError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr(loop_module, "save_state", full)
    with pytest.raises(StorageError, match=r"no checkpoint was written yet; --resume begins anew"):
        Run(tmp_path).trainer.run()


def _changed(path: Path, **changes: Any) -> None:
    state = load_state(path)
    for name, value in changes.items():
        state[name] = value(state[name]) if callable(value) else value
    save_state(path, state)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": None},
        {"rate": None},
        {"position": lambda position: position | {"phase": 9}},
        {"position": lambda position: position | {"unknown": 1}},
        {"position": None},
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    def stopping(epoch: int, first: int) -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(batches(epoch, first), first):
            if (epoch, number) == (1, 2):
                run.trainer._stop = True
            yield batch

    run = Run(tmp_path, batches=stopping)
    with pytest.raises(Exception, match="stopped after step"):
        run.trainer.run()
    _changed(tmp_path / "checkpoint.safetensors", **changes)
    with pytest.raises(CheckpointError, match="is damaged, or of another architecture or version"):
        Run(tmp_path).trainer.run(resume=True)


def test_a_changed_or_hostile_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"x": torch.ones(100)})
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="its SHA-256 is another"):
        load_state(path)
    save_tensors(path, {}, {"state": "[" * 200_000})
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_state(path)
    save_state(path, {"x": torch.ones(1)})
    _, header = load_tensors(path)
    save_tensors(path, {"other": torch.ones(1)}, header)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_state(path)


@pytest.mark.parametrize(
    "state", [{1: torch.ones(1), "1": torch.zeros(1)}, {"a/b": torch.ones(1), "a": {"b": torch.ones(1)}}]
)
def test_two_tensors_of_one_name_are_not_saved(state: dict[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two tensors of the state have the name"):
        save_state(tmp_path / "state", state)


def test_a_log_is_read_up_to_its_first_odd_row(tmp_path: Path) -> None:
    rows = [json.dumps({"kind": "train", "step": 1}).encode(), b'{"kind": "train"}', b'{"kind": "train", "step": 2}']
    (tmp_path / "odd").write_bytes(b"\n".join(rows))
    assert read_log(tmp_path / "odd") == [{"kind": "train", "step": 1}]
    (tmp_path / "odd").write_bytes(rows[0] + b"\n\xff\xfe\n")
    assert len(read_log(tmp_path / "odd")) == 1

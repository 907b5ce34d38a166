from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2ed2q.errors import CheckpointError, Interrupted, StorageError, TrainingError
from d2ed2q.training import (
    Batch,
    MetricsLog,
    Optimization,
    Phase,
    Trainer,
    clone_state,
    load_state,
    make_fabric,
    read_log,
)
from d2ed2q.training import log as log_module


class Objective(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (self.network(batch["x"]) - batch["y"]).square().mean(), "extra": batch["y"].mean()}


def batches(epoch: int, first: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(epoch)
    for x in [torch.randn(8, 4, generator=generator) for _ in range(3)][first:]:
        yield {"x": x, "y": x.sum(1, keepdim=True)}


class Run:
    """One small run in one folder."""

    def __init__(self, folder: Path, scores: list[float] | None = None, **changes: Any) -> None:
        torch.manual_seed(0)
        # Convolutions in the channels-last layout: a resumed optimizer has to take up that layout too.
        convolutions = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
        layers = (nn.Unflatten(1, (1, 2, 2)), *convolutions, nn.Flatten(), nn.Linear(16, 1))
        self.network = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.folder = folder
        self.validated: list[dict[str, Tensor]] = []
        self.scores = scores
        phases = [
            Phase(name, epochs, 0.05, begin=self._begin(name), end=partial(self.ended.append, name))
            for name, epochs in (("one", 4), ("two", 3))
        ]
        settings: dict[str, Any] = {
            "objective": Objective(self.network),
            "batches": batches,
            "steps_per_epoch": 3,
            "validate": self._validate,
            "phases": phases,
            "options": Optimization(),
            "checkpoint": folder / "checkpoint.safetensors",
            "log": lambda step, open_epoch: MetricsLog(folder / "metrics.jsonl", None, step, open_epoch),
            "checkpoint_seconds": 0.0,
        }
        fabric = make_fabric("cpu", changes.pop("precision", "fp32"))
        self.trainer = Trainer(fabric, self.network, **(settings | changes))

    def _begin(self, name: str) -> Any:
        def begin() -> dict[str, float]:
            self.begun.append(name)
            return {"mark": 1.0}

        return begin

    def to_the_end(self) -> dict[str, Tensor]:
        """Trains; gives the weights that the first phase ended with."""
        at_end: list[dict[str, Tensor]] = []
        phase = self.trainer.phases[0]
        self.trainer.phases[0] = Phase(
            phase.name, phase.epochs, phase.rate, phase.begin, lambda: at_end.append(clone_state(self.network))
        )
        self.trainer.run()
        return at_end[0]

    def _validate(self) -> dict[str, float]:
        assert not self.network.training
        self.validated.append({key: value.clone() for key, value in self.network.state_dict().items()})
        if self.scores is not None:
            return {"score": self.scores[len(self.validated) - 1]}
        return {"score": -float(sum(parameter.detach().square().sum() for parameter in self.network.parameters()))}


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def stop_at(step: int) -> Any:
    """Batches that press Ctrl-C in the middle of a step."""
    seen = [0]

    def stopping(epoch: int, first: int) -> Iterator[dict[str, Tensor]]:
        for batch in batches(epoch, first):
            seen[0] += 1
            if seen[0] == step:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    return stopping


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_interrupting_and_resuming_changes_no_bit(tmp_path: Path, precision: str, schedule: str) -> None:
    options = Optimization(schedule=schedule, patience=0)
    whole = Run(tmp_path / "whole", precision=precision, options=options)
    whole.trainer.run()
    for step in (1, 5, 6, 12, 13, 21):
        folder = tmp_path / str(step)
        first = Run(folder, precision=precision, options=options, batches=stop_at(step), checkpoint_seconds=1e9)
        with pytest.raises(Interrupted, match=f"after step {step} of 21"):
            first.trainer.run()
        second = Run(folder, precision=precision, options=options)
        second.trainer.run(resume=True)
        assert same(whole.network, second.network)
        rows = [read_log(run.folder / "metrics.jsonl") for run in (whole, second)]
        for row in rows[0] + rows[1]:
            row.pop("seconds", None)
        assert rows[0] == rows[1]


def test_resuming_from_every_checkpoint_that_was_ever_written_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(tmp_path / "whole")
    copies: list[bytes] = []
    save = whole.trainer._save

    def saving(*arguments: Any) -> None:
        save(*arguments)
        copies.append(whole.trainer.checkpoint.read_bytes())

    monkeypatch.setattr(whole.trainer, "_save", saving)
    whole.trainer.run()
    assert len(copies) > 20
    for index, content in enumerate(copies):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "checkpoint.safetensors").write_bytes(content)
        resumed = Run(folder)
        resumed.trainer.run(resume=True)
        assert same(whole.network, resumed.network), index


def test_phases_begin_and_end_once_and_in_order(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.trainer.run()
    assert run.begun == run.ended == ["one", "two"]
    kinds = [(row["kind"], row["phase"]) for row in read_log(tmp_path / "metrics.jsonl")]
    assert kinds[0] == ("phase", "one")
    assert kinds.count(("train", "one")) == kinds.count(("validation", "one")) == 4
    assert kinds.count(("train", "two")) == 3


def test_the_best_epoch_of_each_phase_is_put_back(tmp_path: Path) -> None:
    run = Run(tmp_path, scores=[0.1, 0.9, 0.3, 0.2, 0.5, 0.4, 0.45])
    at_end = run.to_the_end()
    assert all(torch.equal(at_end[key], value) for key, value in run.validated[1].items())
    assert all(torch.equal(value, run.validated[4][key]) for key, value in run.network.state_dict().items())


def test_the_last_weights_stay_where_they_are_wanted(tmp_path: Path) -> None:
    run = Run(tmp_path, scores=[0.1, 0.9, 0.3, 0.2, 0.5, 0.4, 0.45], keep_best=False)
    at_end = run.to_the_end()
    assert all(torch.equal(at_end[key], value) for key, value in run.validated[3].items())
    assert all(torch.equal(value, run.validated[6][key]) for key, value in run.network.state_dict().items())


def test_the_last_epoch_of_a_phase_is_always_validated(tmp_path: Path) -> None:
    Run(tmp_path, validate_every=3).trainer.run()
    epochs = [row["epoch"] for row in read_log(tmp_path / "metrics.jsonl") if row["kind"] == "validation"]
    assert epochs == [3, 4, 7]


class Rates:
    """Notes the learning rate that each optimizer step was really made with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_pre_hook(lambda inner, *_: self.seen.append(inner.param_groups[0]["lr"]))


def test_the_cosine_schedule_reaches_the_optimizer(tmp_path: Path) -> None:
    rates = Rates()
    Run(tmp_path, options=Optimization(schedule="cosine", warmup=0.25), on_optimizer=rates).trainer.run()
    one, two = rates.seen[:12], rates.seen[12:]
    assert one[:3] == pytest.approx([0.05 / 3, 0.1 / 3, 0.05])
    assert one[3] == pytest.approx(0.05)
    assert one[3:] == sorted(one[3:], reverse=True)
    assert one[-1] < 0.002
    assert max(two) == pytest.approx(0.05)


def test_the_plateau_schedule_reaches_the_optimizer(tmp_path: Path) -> None:
    rates = Rates()
    options = Optimization(schedule="plateau", patience=0)
    Run(tmp_path, scores=[0.5, 0.4, 0.6, 0.3, 1, 1, 1], options=options, on_optimizer=rates).trainer.run()
    assert rates.seen[:12:3] == pytest.approx([0.05, 0.05, 0.025, 0.025])
    assert rates.seen[12::3] == pytest.approx([0.05, 0.05, 0.025])


def test_clipping_reaches_the_gradient(tmp_path: Path) -> None:
    norms: list[float] = []

    def watch(optimizer: torch.optim.Optimizer) -> None:
        def note(inner: torch.optim.Optimizer, *_: Any) -> None:
            gradients = [p.grad for group in inner.param_groups for p in group["params"] if p.grad is not None]
            norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))

        optimizer.register_step_pre_hook(note)

    Run(tmp_path / "a", options=Optimization(clip=0.01), on_optimizer=watch).trainer.run()
    assert max(norms) <= 0.0101
    norms.clear()
    Run(tmp_path / "b", options=Optimization(clip=0), on_optimizer=watch).trainer.run()
    assert max(norms) > 0.1


def test_a_diverging_loss_stops_with_a_remedy(tmp_path: Path) -> None:
    def poisoned(epoch: int, first: int) -> Iterator[dict[str, Tensor]]:
        for batch in batches(epoch, first):
            yield batch | {"y": batch["y"] * float("nan")}

    with pytest.raises(TrainingError, match="lower the learning rate"):
        Run(tmp_path, batches=poisoned).trainer.run()


def test_a_checkpoint_of_other_settings_or_architecture_is_refused(tmp_path: Path) -> None:
    Run(tmp_path).trainer.run()
    other = Run(tmp_path, phases=[Phase("one", 9, 0.1)])
    with pytest.raises(CheckpointError, match="other epochs"):
        other.trainer.run(resume=True)
    network = nn.Linear(4, 1)
    foreign = Run(tmp_path, objective=Objective(network))
    foreign.trainer.module = network
    with pytest.raises(CheckpointError, match="another architecture"):
        foreign.trainer.run(resume=True)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    written = []

    def full(path: Path, line: str) -> None:
        written.append(line)
        if len(written) > 6:
            raise StorageError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr(log_module, "append_line", full)
    with pytest.raises(StorageError, match=r"checkpoint of step \d+ is kept; go on with --resume"):
        run.trainer.run()
    monkeypatch.undo()
    resumed = Run(tmp_path)
    resumed.trainer.run(resume=True)
    whole = Run(tmp_path / "whole")
    whole.trainer.run()
    assert same(whole.network, resumed.network)


def test_a_log_cut_off_in_its_last_line_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"kind": "train", "step": step} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tr')
    assert read_log(path) == rows
    MetricsLog(path, None, resume_step=2).write("train", 3, loss=1.0)
    assert [row["step"] for row in read_log(path)] == [1, 2, 3]
    assert read_log(path)[-1]["loss"] == 1.0


def test_an_epoch_that_was_closed_after_the_checkpoint_is_logged_once(tmp_path: Path) -> None:
    first = Run(tmp_path, batches=stop_at(6), checkpoint_seconds=1e9)  # Ctrl-C in the last step of the second epoch
    with pytest.raises(Interrupted):
        first.trainer.run()
    second = Run(tmp_path, batches=stop_at(1), checkpoint_seconds=1e9)
    second.trainer._save = lambda *_: None  # type: ignore[method-assign]  # killed before its first checkpoint
    with pytest.raises(Interrupted):
        second.trainer.run(resume=True)
    Run(tmp_path).trainer.run(resume=True)
    whole = Run(tmp_path / "whole")
    whole.trainer.run()
    logs = [[(row["kind"], row["step"]) for row in read_log(run / "metrics.jsonl")] for run in (whole.folder, tmp_path)]
    assert logs[0] == logs[1]


def test_the_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.trainer.run()
    content = run.trainer.checkpoint.read_bytes()
    assert content[8:9] == b"{"  # safetensors: a length, then JSON
    assert load_state(run.trainer.checkpoint)["position"]["step"] == 21


def test_too_little_memory_names_the_remedy(tmp_path: Path) -> None:
    run = Run(tmp_path)

    class Full(Objective):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory")

    class Single(Objective):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            nn.BatchNorm2d(1)(torch.zeros(1, 1, 1, 1))
            raise AssertionError("it takes no batch of a single pixel")

    with pytest.raises(TrainingError, match="take a larger --batch-size or --crop"):
        Run(tmp_path / "single", objective=Single(run.network)).trainer.run()

    full = Run(tmp_path / "full", objective=Full(run.network))
    with pytest.raises(TrainingError, match="not enough memory for a step of one; take a smaller --batch-size"):
        full.trainer.run()

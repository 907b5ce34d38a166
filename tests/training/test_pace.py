from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from d2ed2q.errors import Interrupted
from d2ed2q.training import LearningRate, Optimization, Pace, Phase, Trainer, make_fabric, read_log
from d2ed2q.training.log import MetricsLog


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def epoch(pace: Pace, clock: Clock, seconds: float) -> None:
    """An epoch that took so long."""
    pace.begin_epoch()
    clock.now += seconds
    pace.end_epoch()


class _Objective(nn.Module):
    def __init__(self, network: nn.Module, before_step: Callable[[], None]) -> None:
        super().__init__()
        self.network, self.before_step = network, before_step

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.before_step()
        return {"loss": self.network(batch["x"]).square().mean()}


def make(
    folder: Path, clock: Clock, seconds: float, limit: float | None, stop_at: int | None = None, fill: bool = False
) -> Trainer:
    """Two phases of 20 and 10 epochs of two steps; each step takes so many seconds of the clock."""
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    trainer: Trainer
    seen = [0]

    def before_step() -> None:
        clock.now += seconds
        seen[0] += 1
        if seen[0] == stop_at:
            trainer._stop = True

    def batches(epoch: int, first: int) -> Any:
        generator = torch.Generator().manual_seed(epoch)
        return iter([{"x": torch.randn(4, 3, generator=generator)} for _ in range(2)][first:])

    def validate() -> dict[str, float]:
        clock.now += 1.0
        return {"score": -float(network.weight.detach().square().sum())}

    def end() -> None:
        clock.now += 5.0

    trainer = Trainer(
        make_fabric("cpu", "fp32"),
        network,
        objective=_Objective(network, before_step),
        batches=batches,
        steps_per_epoch=2,
        validate=validate,
        phases=[Phase("one", 20, 0.05, end=end), Phase("two", 10, 0.02)],
        options=Optimization(),
        checkpoint=folder / "checkpoint.safetensors",
        log=lambda step, open_epoch: MetricsLog(folder / "metrics.jsonl", None, step, open_epoch),
        validate_every=5,
        checkpoint_seconds=1e9,
        pace=None if limit is None else Pace(limit, 5.0, 5, fill, clock),
    )
    return trainer


def state(trainer: Trainer) -> list[float]:
    return [float(x) for tensor in trainer.module.state_dict().values() for x in tensor.flatten()]


def test_a_run_on_pace_is_the_one_without_a_limit(tmp_path: Path) -> None:
    free, limited = make(tmp_path / "a", Clock(), 1.0, None), make(tmp_path / "b", Clock(), 1.0, 100.0)
    for trainer in (free, limited):
        trainer.run()
    assert state(free) == state(limited)
    assert not [row for row in read_log(tmp_path / "b" / "metrics.jsonl") if row["kind"] == "pace"]


@pytest.mark.parametrize("slower", [1.3, 2.0, 4.0])
def test_a_slow_run_is_shortened_to_its_time_and_says_so(tmp_path: Path, slower: float) -> None:
    clock = Clock()
    trainer = make(tmp_path, clock, slower, 85.0)
    trainer.run()
    assert clock.now + 5.0 <= 85.0  # and the closing of the run, five validations
    assert clock.now + 5.0 >= 0.75 * 85.0
    assert trainer.epochs[0] < 20
    assert trainer.epochs[1] < 10
    rows = [row for row in read_log(tmp_path / "metrics.jsonl") if row["kind"] == "pace"]
    assert rows[-1]["epochs"] == trainer.epochs
    assert "of 85 seconds" in rows[0]["reason"]
    trained = [row for row in read_log(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["epoch"] for row in trained] == list(range(1, sum(trainer.epochs) + 1))
    assert trained[-1]["lr"] < 0.02 * 0.2  # the schedule came to its end all the same


@pytest.mark.parametrize("faster", [0.3, 0.5])
def test_a_fast_run_fills_its_time_where_that_is_wanted(tmp_path: Path, faster: float) -> None:
    clock, idle = Clock(), Clock()
    trainer, short = make(tmp_path / "a", clock, faster, 85.0, fill=True), make(tmp_path / "b", idle, faster, 85.0)
    trainer.run()
    short.run()
    assert short.epochs == [20, 10]
    assert idle.now < 0.7 * 85.0
    assert 0.85 * 85.0 <= clock.now + 5.0 <= 85.0
    assert trainer.epochs[0] > 20
    assert trainer.epochs[1] > 10
    trained = [row for row in read_log(tmp_path / "a" / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["epoch"] for row in trained] == list(range(1, sum(trainer.epochs) + 1))
    assert trained[-1]["lr"] < 0.02 * 0.2
    rows = [row for row in read_log(tmp_path / "a" / "metrics.jsonl") if row["kind"] == "pace"]
    sums = [sum(row["epochs"]) for row in rows]
    assert sums == sorted(sums), "what was lengthened too much would have to be shortened"
    assert len(sums) <= 4
    first = [row["lr"] for row in trained if row["phase"] == "one"]
    assert first[3:] == sorted(first[3:], reverse=True)  # after the warm-up it only falls


@pytest.mark.parametrize("stop_at", [9, 30, 61])
def test_a_fast_run_that_was_stopped_fills_its_time_too(tmp_path: Path, stop_at: int) -> None:
    clocks = Clock(), Clock()
    first = make(tmp_path, clocks[0], 0.5, 85.0, stop_at, fill=True)
    with pytest.raises(Interrupted):
        first.run()
    second = make(tmp_path, clocks[1], 0.5, 85.0, fill=True)
    second.run(resume=True)
    assert first.epochs[0] > 20 or stop_at == 9
    assert second.epochs[0] > 20
    assert 0.85 * 85.0 <= clocks[0].now + clocks[1].now + 5.0 <= 85.0


def test_a_resumed_run_keeps_the_shortened_numbers(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", Clock(), 2.0, 85.0)
    whole.run()
    for stop_at in (7, 12, 25):
        folder = tmp_path / str(stop_at)
        first = make(folder, Clock(), 2.0, 85.0, stop_at)
        with pytest.raises(Interrupted):
            first.run()
        second = make(folder, Clock(), 2.0, 85.0)
        second.run(resume=True)
        assert second.epochs == whole.epochs
        assert state(second) == state(whole)


def test_nothing_is_judged_by_the_first_moments() -> None:
    clock = Clock()
    pace = Pace(100.0, 1.0, clock=clock)
    assert pace.fitting([10, 10], 1) is None
    epoch(pace, clock, 4.0)
    assert pace.fitting([100, 100], 1) is None
    epoch(pace, clock, 46.0)
    assert pace.fitting([1, 1], 0) is None
    assert pace.fitting([4, 0, 4], 0) == [1, 0, 1]
    pace.validation_took(100.0)
    assert pace.fitting([1, 1], 1) is None  # no time at all is left, but each phase has its epoch


def test_a_shortened_schedule_goes_on_where_it_was() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rate = LearningRate(optimizer, 1.0, 100, Optimization(warmup=0.0))
    before = rate.before_step(40)
    rate.spread(40, 30)
    assert rate.before_step(40) == before
    assert rate.before_step(55) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.7)))
    assert rate.before_step(70) == pytest.approx(0.0, abs=1e-9)
    again = LearningRate(optimizer, 1.0, 70, Optimization(warmup=0.0))
    again.load_state_dict(rate.state_dict())
    assert again.before_step(55) == rate.before_step(55)


@given(
    left=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    spent=st.floats(0, 500),
    validation=st.floats(0, 1000),
    closings=st.integers(0, 5),
    fill=st.booleans(),
)
def test_whatever_happened_it_asks_for_what_fits_and_never_fails(
    left: list[int], spent: float, validation: float, closings: int, fill: bool
) -> None:
    clock = Clock()
    pace = Pace(100.0, 8.0, 3, fill, clock)
    epoch(pace, clock, 10.0)
    pace.validation_took(validation)
    clock.now = spent
    fitting = pace.fitting(left, closings)
    if fitting is not None:
        assert all((new > 0) == (old > 0) for new, old in zip(fitting, left, strict=True)), "every phase keeps an epoch"
        assert fitting != left
        longer = [new > old for new, old in zip(fitting, left, strict=True)]
        assert not any(longer) or fill
        assert not any(longer) or 10.0 * sum(fitting) <= 100.0 - spent
    if not any(left):
        assert fitting is None, "the run is over, however long it took"


def test_an_end_that_was_timed_is_believed_rather_than_guessed() -> None:
    clock = Clock()
    pace = Pace(100.0, 1.0, clock=clock)
    epoch(pace, clock, 10.0)
    pace.validation_took(1.0)
    assert pace.fitting([6], 2) is None  # 6 × 11 seconds, and two ends of one each
    pace.closing_took(30.0)
    assert pace.fitting([6], 2) == [2]
    again = Pace(100.0, 1.0, clock=clock)
    again.load_state_dict(pace.state_dict())
    assert again.fitting([6], 2) is not None

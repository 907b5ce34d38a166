from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ed2q.errors import ConfigError
from d2ed2q.quantization import check_fractions, cumulative_count, two_stage_partition


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(n=st.integers(1, 3000))
def test_cumulative_counts_are_exact_to_the_weight(n: int) -> None:
    fractions = (0.3, 0.3, 0.2, 0.2)
    counts = [cumulative_count(n, fractions, step) for step in range(4)]
    exact = [Fraction(3, 10) * n, Fraction(6, 10) * n, Fraction(8, 10) * n, Fraction(n)]
    assert all(abs(count - share) <= Fraction(1, 2) for count, share in zip(counts, exact, strict=True))
    assert counts == sorted(counts)
    assert counts[-1] == n


@settings(deadline=None)
@given(n=st.integers(1, 400), share=st.floats(0, 1), seed=st.integers(0, 1000), random=st.booleans())
def test_exactly_count_free_weights_among_the_largest_are_chosen(n: int, share: float, seed: int, random: bool) -> None:
    weight = torch.randn(n, generator=generator(seed))
    frozen = torch.rand(n, generator=generator(seed + 1)) < 0.4
    free = int((~frozen).sum())
    count = int(share * free)
    chosen = two_stage_partition(weight, frozen, count, generator(seed), random)
    assert int(chosen.sum()) == count
    assert not (chosen & frozen).any()
    magnitudes = weight.abs().masked_fill(frozen, -1).sort(descending=True).values
    if count:
        bound = magnitudes[min((2 if random else 1) * count, free) - 1]
        assert weight.abs()[chosen].min() >= bound


def test_the_draw_is_random_only_in_stage_two_and_seeded() -> None:
    weight, frozen = torch.arange(100.0), torch.zeros(100, dtype=torch.bool)
    inq = two_stage_partition(weight, frozen, 30, generator(), random=False)
    assert torch.equal(inq, weight >= 70)
    one, same, other = (two_stage_partition(weight, frozen, 30, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, inq)


def test_ties_are_chosen_the_same_every_time() -> None:
    weight, frozen = torch.ones(50), torch.zeros(50, dtype=torch.bool)
    assert two_stage_partition(weight, frozen, 10, generator(), False).nonzero().flatten().tolist() == list(range(10))


@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50),
    share=st.floats(0, 1),
)
def test_the_largest_are_those_of_a_stable_sort(values: list[float], share: float) -> None:
    weight = torch.tensor([*values, *values[:5], 0.0, -0.0])
    count = int(share * len(weight))
    chosen = two_stage_partition(weight, torch.zeros(len(weight), dtype=torch.bool), count, torch.Generator(), False)
    order = torch.sort(weight.abs(), descending=True, stable=True).indices
    assert set(torch.nonzero(chosen).flatten().tolist()) == set(order[:count].tolist())


@pytest.mark.parametrize("fractions", [(0.3, 0.3), (0.5, 0.6), (), (1.2, -0.2), (0.0, 1.0)])
def test_fractions_must_add_up_to_one(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="add up to 1"):
        check_fractions(fractions)

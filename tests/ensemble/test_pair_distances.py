from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

from d2ed2q.ensemble import pair_distances
from d2ed2q.ensemble.pair_distances import inner_products, squared_distances

Computation = Callable[[list[Tensor]], Tensor]


def tensors(count: int, shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype).to(memory_format=layout).requires_grad_() for _ in range(count)]


def as_written(given: list[Tensor]) -> Tensor:
    return torch.stack([(a.float() - b.float()).square().flatten(1).sum(1) for a, b in combinations(given, 2)], 1)


def products_as_written(given: list[Tensor]) -> Tensor:
    return torch.stack([torch.stack([(a * b).flatten(1).sum(1) for b in given], 1) for a in given], 1)


@pytest.mark.parametrize("compute", ["distances", "products"])
@pytest.mark.parametrize("block", [7, 1 << 18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 3, 5, 4), torch.contiguous_format),
        ((2, 3, 5, 4), torch.channels_last),
        ((1, 2, 3, 4, 5), torch.channels_last_3d),
        ((2, 1, 3, 3), torch.channels_last),
        ((3, 6), torch.contiguous_format),
    ],
)
def test_values_and_gradients_are_those_of_the_definition(
    shape: tuple[int, ...],
    layout: torch.memory_format,
    dtype: torch.dtype,
    block: int,
    compute: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pair_distances, "_BLOCK", block)
    given = tensors(4, shape, layout, dtype)
    exact = [one.detach().float().requires_grad_() for one in given]  # what is rounded is the result alone
    expected = (as_written if compute == "distances" else products_as_written)(exact)
    weights = torch.rand_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), exact)
    found = (squared_distances if compute == "distances" else inner_products)(given)
    gradients = torch.autograd.grad((found * weights).sum(), given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients, wanted, strict=True):
        assert one.dtype == dtype
        assert one.is_contiguous(memory_format=layout), "a copy later would cost what was saved"
        torch.testing.assert_close(one, other.to(dtype))


def test_compiled_sums_are_float32_too() -> None:
    torch.manual_seed(0)
    common = torch.randn(2, 400)
    given = [(common + 0.05 * torch.randn(2, 400)) for _ in range(3)]
    for compute in (inner_products, squared_distances):
        compiled = torch.compile(compute, backend="eager")
        with torch.autocast("cpu", torch.bfloat16):
            found = compiled(given)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, compute(given), rtol=1e-5, atol=1e-4)


def test_layouts_may_be_mixed() -> None:
    given = tensors(3, (2, 4, 6, 5), torch.channels_last, torch.float32)
    given[1] = given[1].detach().contiguous().requires_grad_()
    expected = as_written(given)
    found = squared_distances(given)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found.sum(), given), torch.autograd.grad(expected.sum(), given), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("compute", [(squared_distances, as_written), (inner_products, products_as_written)])
def test_half_precision_of_the_step_does_not_reach_it(compute: tuple[Computation, Computation]) -> None:
    given = tensors(3, (2, 4, 6, 5), torch.channels_last, torch.float32)
    expected = compute[1](given)
    with torch.autocast("cpu", torch.bfloat16):
        found = compute[0](given)
        gradients = torch.autograd.grad(found.sum(), given)
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients, torch.autograd.grad(expected.sum(), given), strict=True):
        torch.testing.assert_close(one, other)

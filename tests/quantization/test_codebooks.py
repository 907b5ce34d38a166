from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2ed2q.errors import ConfigError
from d2ed2q.quantization import CODEBOOKS, Codebook, geometric_magnitudes, make_codebook

SHAPES = [(1,), (7,), (3, 5), (4, 3, 3, 3), (1, 1, 1, 1), (5, 2, 1, 7)]


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    shape = draw(st.sampled_from(SHAPES))
    kind = draw(st.sampled_from(["normal", "zero", "constant", "heavy", "tiny", "one channel zero"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(shape, generator=generator)
    if kind == "zero":
        weight.zero_()
    elif kind == "constant":
        weight.fill_(draw(st.sampled_from([-0.3, 0.1, 2.0])))
    elif kind == "heavy":
        weight = weight**5
    elif kind == "tiny":
        weight *= 1e-20
    elif kind == "one channel zero":
        weight[0] = 0
    return weight


def distinct(values: Tensor, book: Codebook) -> int:
    if book.channel_axis is None:
        return len(torch.unique(values))
    return max(len(torch.unique(row)) for row in values.movedim(book.channel_axis, 0))


@settings(deadline=None, max_examples=150)
@given(weight=weights(), bits=st.integers(2, 8), name=st.sampled_from(sorted(CODEBOOKS)))
def test_quantizing_is_finite_few_valued_idempotent_and_nearest(weight: Tensor, bits: int, name: str) -> None:
    book = make_codebook(weight, bits, name)
    quantized = book.quantize(weight)
    assert quantized.shape == weight.shape
    assert torch.isfinite(quantized).all()
    assert distinct(quantized, book) <= 2**bits
    assert book.levels.shape[-1] <= 2**bits
    assert torch.equal(book.quantize(quantized), quantized)
    if name != "log":  # log is nearest in log-magnitude, tested below
        flat = weight.reshape(-1, 1)
        if book.channel_axis is None:
            error = (flat - book.levels).abs().amin(1)
        else:
            rows = weight.reshape(weight.shape[0], -1)
            error = (rows[:, :, None] - book.levels[:, None, :]).abs().amin(2).flatten()
        assert torch.allclose((quantized - weight).abs().flatten(), error, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize(("bits", "magnitudes"), [(2, (127,)), (3, (32, 63, 127)), (4, (1, 2, 5, 11, 25, 57, 127))])
def test_geometric_magnitudes_are_the_documented_ones(bits: int, magnitudes: tuple[int, ...]) -> None:
    assert geometric_magnitudes(bits) == magnitudes


@pytest.mark.parametrize("bits", range(2, 9))
def test_geometric_is_int8_times_one_scale_a_channel_to_the_bit(bits: int) -> None:
    weight = torch.randn(6, 4, 3, 3)
    book = make_codebook(weight, bits, "geometric")
    assert book.integers is not None
    assert book.scale is not None
    assert book.integers.dtype == torch.int8
    integers = book.integers[book.codes(weight)]
    assert torch.equal(book.quantize(weight), book.scale[:, None, None, None] * integers.float())
    assert torch.equal(integers.abs().amax((1, 2, 3)), torch.full((6,), 127, dtype=torch.int8))


@pytest.mark.parametrize("bits", [2, 3])
def test_few_levels_are_scaled_to_lose_least(bits: int) -> None:
    weight = torch.cat((torch.randn(3, 64), torch.ones(1, 64), torch.zeros(1, 64)))
    book = make_codebook(weight, bits, "geometric")
    assert book.scale is not None
    assert book.integers is not None
    integers, reaching = book.integers.float(), weight.abs().amax(1) / 127
    assert ((book.scale >= reaching / 4 * 0.999) & (book.scale <= reaching)).all()

    def error(scale: Tensor) -> Tensor:
        levels = scale[:, None] * integers
        return (weight[:, :, None] - levels[:, None]).abs().amin(2).square().sum(1)

    for share in torch.linspace(0.25, 1, 40):  # finer than what was tried
        assert (error(book.scale) <= error(share * reaching) * 1.05 + 1e-9).all()
    assert (error(book.scale)[:3] < 0.9 * error(reaching)[:3]).all()
    assert torch.equal(book.scale[3:], reaching[3:]), "what fits is left as it is"
    # A tensor of few bits is its own codebook's.
    rounded = book.quantize(weight)
    torch.testing.assert_close(make_codebook(rounded, bits, "geometric").quantize(rounded), rounded)


def test_geometric_of_a_transposed_convolution_scales_its_output_channels() -> None:
    weight = torch.randn(4, 6, 2, 2)
    weight[:, 2] *= 100
    book = make_codebook(weight, 3, "geometric", channel_axis=1)
    assert book.scale is not None
    assert book.scale.shape == (6,)
    quantized = book.quantize(weight)
    assert quantized.shape == weight.shape
    assert all(len(torch.unique(quantized[:, channel])) <= 8 for channel in range(6))
    assert (quantized[:, 0] != 0).any(), "a large neighbour must not swallow a small channel"


def test_pow2_holds_zero_and_powers_of_two_as_incremental_network_quantization() -> None:
    weight = torch.tensor([0.9, -0.4, 0.05, 0.0])
    book = make_codebook(weight, 4, "pow2")
    # floor(log2(4 · 0.9 / 3)) = 0, and 2^(4−2) powers from there down
    assert book.levels.tolist() == [-1, -0.5, -0.25, -0.125, 0, 0.125, 0.25, 0.5, 1]
    assert book.quantize(weight).tolist() == [1.0, -0.5, 0.0, 0.0]


def test_linear_minmax_and_tanh_by_hand() -> None:
    weight = torch.tensor([-0.5, 0.0, 0.25, 1.0])
    assert make_codebook(weight, 2, "linear").levels.tolist() == [-1, 0, 1]
    assert make_codebook(weight, 2, "minmax").levels.tolist() == pytest.approx([-0.5, 0.0, 0.5, 1.0])
    assert make_codebook(weight, 2, "tanh").levels.tolist() == pytest.approx([-1, 0, 1])
    three = make_codebook(weight, 3, "tanh").levels.tolist()
    assert three[4] == pytest.approx(math.atanh(math.tanh(1) / 3))


def test_log_is_uniform_and_nearest_in_log_magnitude() -> None:
    weight = torch.tensor([0.01, -0.1, 1.0, 0.3])
    book = make_codebook(weight, 3, "log")  # four magnitudes from 0.01 to 1
    magnitudes = [0.01 * 100 ** (step / 3) for step in range(4)]
    assert book.levels[4:].tolist() == pytest.approx(magnitudes)
    expected = min(magnitudes, key=lambda level: abs(math.log(level / 0.3)))
    assert book.quantize(weight)[3].item() == pytest.approx(expected)


@pytest.mark.parametrize("bits", [1, 9, 0, -3, 4.0, True])
def test_bits_outside_two_to_eight_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match="from 2 to 8"):
        make_codebook(torch.randn(3, 3), bits)


def test_unknown_codebooks_and_diverged_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of geometric, linear"):
        make_codebook(torch.randn(3, 3), 4, "geometrical")
    with pytest.raises(ConfigError, match="NaN"):
        make_codebook(torch.tensor([1.0, float("nan")]), 4)


@pytest.mark.parametrize("name", sorted(CODEBOOKS))
def test_the_memory_layout_of_a_weight_does_not_matter(name: str) -> None:
    weight = torch.randn(4, 6, 3, 3)
    expected = make_codebook(weight, 4, name).quantize(weight)
    other = weight.to(memory_format=torch.channels_last)
    assert torch.equal(make_codebook(other, 4, name).quantize(other), expected)

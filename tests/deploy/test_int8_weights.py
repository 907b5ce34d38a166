from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from tests.deploy.conftest import Exported, few_bit_ensemble, weights_of
from torch import Tensor

from d2ed2q.deploy.int8_graph import graph_weights, int8_weights
from d2ed2q.deploy.int8_weights import int8_weight
from d2ed2q.quantization import make_codebook, quantizable_weights

SHAPES = [(4, 3, 3, 3), (5, 7), (1, 1, 1, 1), (3, 2, 5), (6, 4, 2, 2)]


def step_of(weight: Tensor, bits: int, name: str, axis: int) -> tuple[Tensor, Tensor | None]:
    """A weight in few bits, and the step of its codebook."""
    book = make_codebook(weight, bits, name, axis)
    positive = book.levels[book.levels > 0]
    step = book.scale if book.scale is not None else positive.min() if len(positive) else None
    return book.quantize(weight), step


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from(SHAPES),
    axis=st.integers(0, 1),
    code=st.sampled_from([*(("geometric", b) for b in range(2, 9)), *(("linear", b) for b in range(2, 9))]
                         + [("pow2", b) for b in range(2, 5)]),
    drop=st.booleans(),
)  # fmt: skip
def test_codebooks_of_multiples_come_back_exactly(
    seed: int, shape: tuple[int, ...], axis: int, code: tuple[str, int], drop: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    few, step = step_of(weight, code[1], code[0], axis)
    if drop:  # retraining may leave a channel without its largest level
        few = torch.where(few.abs() == few.abs().max(), torch.zeros(()), few)
    found = int8_weight(few, axis, step)
    assert found.error == 0
    assert torch.allclose(found.weight, few, rtol=1e-6, atol=0)
    assert found.codes.abs().max() <= 127
    gain = torch.randn(shape[axis], generator=generator)
    across = [1] * len(shape)
    across[axis] = -1
    assert torch.allclose(found.folded(gain).weight, few * gain.reshape(across), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "bits"), [("log", 4), ("minmax", 4), ("tanh", 5), ("pow2", 6)])
def test_other_codebooks_say_what_the_second_rounding_costs(name: str, bits: int) -> None:
    weight = torch.randn(8, 4, 3, 3)
    few, step = step_of(weight, bits, name, 0)
    found = int8_weight(few, 0, step)
    cost = float((found.weight - few).norm() / few.norm())
    assert 0 < cost < 0.02
    assert found.error == pytest.approx(cost, rel=1e-3)
    ordinary = few.abs().flatten(1).amax(1) / 127
    plain = torch.round(few / ordinary[:, None, None, None]) * ordinary[:, None, None, None]
    assert cost <= float((plain - few).norm() / few.norm()) + 1e-7, "never worse than max / 127"


def test_weights_without_a_codebook_take_the_largest_magnitude() -> None:
    weight = torch.randn(3, 50)
    found = int8_weight(weight, 0)
    assert torch.allclose(found.scale, weight.abs().amax(1) / 127)
    assert found.error == pytest.approx(float((found.weight - weight).norm() / weight.norm()), rel=1e-3)


def test_zero_channels_and_zero_gains_stay_zero() -> None:
    weight = torch.zeros(2, 3)
    weight[1] = torch.tensor([1.0, -2.0, 0.0])
    found = int8_weight(weight, 0)
    assert torch.equal(found.weight, weight)
    assert (found.scale > 0).all()
    folded = found.folded(torch.tensor([3.0, 0.0]))
    assert not folded.weight.any()
    assert (folded.scale > 0).all()


def assert_exact(exported_weights: dict[str, tuple[np.ndarray, np.ndarray, int]], exported: Exported) -> None:
    trained = quantizable_weights(exported.ensemble)
    assert set(exported_weights) == {weight.name for weight in trained}, "every convolution is in int8"
    for weight in trained:
        codes, scale, axis = exported_weights[weight.name]
        across = [1] * codes.ndim
        across[axis] = -1
        assert codes.dtype == np.int8
        assert axis == weight.channel_axis
        wanted = weight.parameter.detach().numpy() * exported.graph.gains[weight.name].numpy().reshape(across)
        np.testing.assert_allclose(codes * scale.reshape(across), wanted, rtol=5e-7, atol=0)


def test_the_exported_graph_holds_the_trained_weights(exported: Exported) -> None:
    """Geometric, BatchNorm folded, some gains negative, some channels without their largest level."""
    assert any((gain < 0).any() for gain in exported.graph.gains.values())
    assert any((weight.codes.flatten(1).abs().amax(1) < 127).any() for weight in exported.weights.values())
    assert_exact(graph_weights(exported.model), exported)


def test_the_exported_graph_holds_powers_of_two(exported: Exported) -> None:
    import onnx

    ensemble = few_bit_ensemble("pow2")
    weights = weights_of(ensemble)
    assert all(weight.error == 0 for weight in weights.values())
    model = onnx.ModelProto()
    model.CopyFrom(exported.graph.model)
    gains = exported.graph.gains
    graph = type(exported.graph)(model, gains)
    found = graph_weights(int8_weights(model, graph, weights))
    assert_exact(found, type(exported)(ensemble, graph, weights, model, exported.manifest, exported.path))


def test_openvino_multiplies_with_the_trained_weights(exported: Exported) -> None:
    """The int8 constants of the compiled graph are the codes, in every int8 convolution."""
    from d2ed2q.deploy import without_telemetry

    without_telemetry()
    import openvino

    core = openvino.Core()
    graph = core.read_model(exported.model.SerializeToString())
    graph.reshape([1, 3, 96, 96])
    compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    held = {
        bytes(np.sort(node.get_data().astype(np.int8).ravel()))
        for node in graph.get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == "i8"
    }
    trained = {bytes(np.sort(codes.ravel())) for codes, _, _ in graph_weights(exported.model).values()}
    assert trained <= held
    run = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [(str(info["layerType"].astype(str)), str(info["runtimePrecision"].astype(str))) for info in run]
    convolutions = [precision for kind, precision in kinds if kind in ("Convolution", "Deconvolution")]
    attention = sum(name.startswith("fusions.") and ".attention." in name for name in exported.weights)
    assert sum(precision in ("u8", "i8") for precision in convolutions) >= len(exported.weights) - attention

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from tests.deploy.conftest import Exported, phantom
from torch import nn

from d2ed2q.backbones import build_backbone
from d2ed2q.deploy import make_engine
from d2ed2q.deploy.graph import fold_batch_norm, learner_graph
from d2ed2q.deploy.int8_graph import activation_layers, int8_activations, with_float_layers
from d2ed2q.deploy.torch_engine import TorchEngine
from d2ed2q.ensemble import learner_probabilities
from d2ed2q.errors import BundleError, ConfigError


@torch.no_grad()
def probabilities(exported: Exported, image: torch.Tensor) -> np.ndarray:
    return learner_probabilities(exported.ensemble(image).logits).numpy()


@pytest.mark.parametrize("size", [(4, 4), (64, 96), (100, 52)])
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_the_float_graph_is_the_ensemble_at_any_size(engine: str, size: tuple[int, int], exported: Exported) -> None:
    image = torch.rand(1, 3, *size)
    found = make_engine(engine, exported.graph.model.SerializeToString(), 1).run(image.numpy())
    np.testing.assert_allclose(found, probabilities(exported, image), atol=2e-6)


def test_with_float_activations_the_bundle_is_the_few_bit_ensemble(exported: Exported) -> None:
    image = phantom(7, 96)[None]
    found = TorchEngine(exported.model, float_activations=True).run(image.numpy())
    np.testing.assert_allclose(found, probabilities(exported, image), atol=2e-6)


def test_engines_agree_on_the_int8_graph(exported: Exported) -> None:
    image = phantom(7, 96)[None].numpy()
    found = {
        name: make_engine(name, exported.model.SerializeToString(), 1).run(image)
        for name in ("openvino", "onnxruntime", "torch")
    }
    trained = probabilities(exported, torch.from_numpy(image))
    for result in found.values():
        # A step of int8 falls one way or the other by the last bit of a sum; the effect on a probability is small.
        assert np.abs(result - found["torch"]).mean() < 2e-3
        assert np.abs(result - found["torch"]).max() < 0.06
        assert np.abs(result - trained).mean() < 0.01
    assert np.abs(found["torch"] - trained).max() > 1e-5, "activations really are rounded"


def test_the_graph_is_standard(exported: Exported) -> None:
    onnx.checker.check_model(exported.model, full_check=True)
    assert [opset.domain for opset in exported.model.opset_import] == [""]
    kinds = {node.op_type for node in exported.model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert "BatchNormalization" not in kinds
    text = exported.model.SerializeToString()
    assert b".py" not in text, "nothing tells of the machine that exported"
    assert b"/home/" not in text


def test_asymmetric_activations_are_unsigned(exported: Exported) -> None:
    """OpenVINO computes layers after int8 activations with a zero point in float, and not quite the same."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in exported.model.graph.initializer}
    zeros = [constants[node.input[2]] for node in exported.model.graph.node if node.op_type == "QuantizeLinear"]
    assert any(zero.any() for zero in zeros)
    assert all(zero.dtype == np.uint8 or not zero.any() for zero in zeros)


def test_layers_in_float_take_their_input_unrounded(exported: Exported) -> None:
    layers = activation_layers(exported.model)
    assert "base.0.encoder.0.0" in layers
    assert with_float_layers(exported.model, []).SerializeToString() == exported.model.SerializeToString()
    image = phantom(7, 96)[None].numpy()
    reference = TorchEngine(exported.model, float_activations=True).run(image)
    every = with_float_layers(exported.model, layers)
    assert not activation_layers(every)
    some = with_float_layers(exported.model, layers[: len(layers) // 2])
    errors = [np.abs(TorchEngine(m).run(image) - reference).mean() for m in (every, some, exported.model)]
    assert errors[0] < errors[1] < errors[2]
    with pytest.raises(ConfigError, match=r"no quantized layer 'base\.9'"):
        with_float_layers(exported.model, ["base.9"])


def test_only_a_norm_right_after_its_convolution_is_folded() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.a_norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
            self.shared, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.up, self.up_norm = nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False), nn.BatchNorm2d(4)
            self.skipped, self.skipped_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a_norm(self.a(x))
            x = self.one(self.shared(x)) + self.two(self.shared(torch.relu(x)))
            x = self.skipped(self.up_norm(self.up(x)))
            result: torch.Tensor = self.skipped_norm(x) + x
            return result

    network = Network()
    image = torch.rand(4, 2, 9, 9)
    for _ in range(3):
        network(image)
    network.eval()
    folded, gains = fold_batch_norm(network, image)
    assert set(gains) == {"a.weight", "up.weight"}, "what is used twice keeps its norms"
    assert isinstance(folded.get_submodule("a_norm"), nn.Identity)
    assert isinstance(network.a_norm, nn.BatchNorm2d), "the original is left as it is"
    assert torch.allclose(folded(image), network(image), atol=1e-5)


def test_a_convolution_that_is_only_compared_with_keeps_its_norm() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.convolution(x)
            gated: torch.Tensor = self.norm(y) * (y > 0)  # which NaN would pass
            return gated

    network, image = Gated(), torch.rand(2, 2, 9, 9)
    network(image)
    network.eval()
    folded, gains = fold_batch_norm(network, image)
    assert gains == {}
    assert torch.equal(folded(image), network(image))


def test_one_network_alone_is_exported_too() -> None:
    network = build_backbone("unet-xs", 1, 3).eval()
    image = torch.rand(1, 1, 20, 24)
    model = learner_graph(network).model
    with torch.no_grad():
        wanted = torch.softmax(network(image), 1)[None].numpy()
    np.testing.assert_allclose(TorchEngine(model).run(image.numpy()), wanted, atol=1e-6)


def test_unknown_operators_and_methods_are_refused(exported: Exported) -> None:
    node = onnx.helper.make_node("Hardmax", ["image"], ["probabilities"])
    ports = exported.model.graph.input, exported.model.graph.output
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "odd", *ports))
    with pytest.raises(BundleError, match="Hardmax"):
        TorchEngine(model)
    with pytest.raises(ConfigError, match="mean-min-max"):
        int8_activations(exported.graph.model, [], "guess")
    for name in ("openvino", "onnxruntime"):
        with pytest.raises(BundleError, match="cannot read the graph"):
            make_engine(name, b"no graph")
    assert replace(exported.manifest, name="other").name == "other"


@pytest.mark.integration
def test_ce_net_is_exported_exactly() -> None:
    from tests.deploy.conftest import few_bit_ensemble, weights_of

    from d2ed2q.deploy.graph import float_graph
    from d2ed2q.deploy.int8_graph import graph_weights, int8_weights
    from d2ed2q.quantization import quantizable_weights

    ensemble = few_bit_ensemble(backbone="ce-net")
    graph = float_graph(ensemble)
    image = torch.rand(1, 3, 224, 192)
    with torch.no_grad():
        wanted = learner_probabilities(ensemble(image).logits).numpy()
    model = int8_weights(graph.model, graph, weights_of(ensemble))
    assert set(graph_weights(model)) == {weight.name for weight in quantizable_weights(ensemble)}
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    for name in ("openvino", "onnxruntime", "torch"):
        found = make_engine(name, model.SerializeToString()).run(image.numpy())
        np.testing.assert_allclose(found, wanted, atol=1e-5)

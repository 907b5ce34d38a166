"""Ensembles of networks that were written by others and know nothing of taps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from monai.networks.nets import AttentionUnet, BasicUNet, SegResNet, UNet
from torch import Tensor, nn

from d2ed2q.deploy import make_engine
from d2ed2q.deploy.graph import float_graph
from d2ed2q.ensemble import DeepDiversifiedLoss, DeepEnsemble, learner_probabilities
from d2ed2q.errors import ConfigError
from d2ed2q.quantization import IncrementalQuantizer


@dataclass(frozen=True)
class Foreign:
    """A network, its taps, the size of an image, and what has to be found out about it."""

    make: Callable[[], nn.Module]
    taps: dict[str, int]
    size: tuple[int, ...]
    channels: int
    classes: int


FOREIGN = {
    "unet-2d": Foreign(
        lambda: UNet(2, 3, 1, channels=(4, 8, 16), strides=(2, 2), num_res_units=1, norm="batch"),
        {"model.0": 4, "model.1.submodule.0": 8, "model.1.submodule.1.submodule": 16, "model.1.submodule.2": 4},
        (18, 24),
        3,
        1,
    ),
    "basic-unet-3d": Foreign(
        lambda: BasicUNet(3, 1, 2, features=(4, 4, 8, 8, 8, 4)),
        {"conv_0": 4, "down_1": 4, "down_2": 8, "upcat_2": 4, "upcat_1": 4},
        (32, 32, 33),
        1,
        2,
    ),
    "segresnet-2d": Foreign(
        lambda: SegResNet(2, init_filters=8, in_channels=1, out_channels=3),
        {"down_layers.0": 8, "down_layers.3": 64, "up_layers.0": 32, "up_layers.2": 8},
        (24, 31),
        1,
        3,
    ),
    "attention-unet-2d": Foreign(
        lambda: AttentionUnet(2, 3, 1, channels=(4, 8, 16), strides=(2, 2)),
        {"model.0": 4, "model.1.submodule.0": 8},
        (16, 20),
        3,
        1,
    ),
}
BY_NAME = pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)


def make(foreign: Foreign) -> DeepEnsemble:
    return DeepEnsemble.from_network(foreign.make, list(foreign.taps), n_base=2)


def image(foreign: Foreign, batch: int = 2) -> Tensor:
    return torch.rand(batch, foreign.channels, *foreign.size)


@BY_NAME
def test_taps_channels_and_shapes_are_found(foreign: Foreign) -> None:
    ensemble = make(foreign)
    assert {tap.name: tap.channels for tap in ensemble.meta.taps} == {
        path.replace(".", "_"): channels for path, channels in foreign.taps.items()
    }
    assert (ensemble.meta.dims, ensemble.n_classes) == (len(foreign.size), foreign.classes)
    output = ensemble(image(foreign))
    assert output.logits.shape == (3, 2, foreign.classes, *foreign.size)
    assert all(len(features) == 2 for features in output.features.values())
    assert not torch.equal(output.logits[1], output.logits[2])


@BY_NAME
def test_the_meta_learner_teaches_the_base_learners(foreign: Foreign) -> None:
    ensemble = make(foreign)
    ensemble(image(foreign)).logits[0].square().sum().backward()
    for learner in ensemble.base:
        touched = [name for name, p in learner.named_parameters() if p.grad is not None and p.grad.any()]
        assert touched, "the fusions carry gradients from the meta learner"
    assert all(p.grad is not None for p in ensemble.fusions.parameters())


@BY_NAME
def test_a_copy_is_independent(foreign: Foreign) -> None:
    ensemble = make(foreign).eval()
    x = image(foreign, batch=1)
    with torch.no_grad():
        before = ensemble(x).logits
        other = copy.deepcopy(ensemble)
        for parameter in ensemble.parameters():
            parameter.zero_()
        assert torch.equal(other(x).logits, before)
    again = make(foreign).eval()
    again.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x).logits, before)


@BY_NAME
def test_it_trains_and_is_quantized(foreign: Foreign) -> None:
    ensemble = make(foreign)
    quantizer = IncrementalQuantizer(ensemble, bits={"": 4, "meta": 5}, fractions=(0.5, 0.5))
    loss = DeepDiversifiedLoss(segmentation="bce_dice", taps=ensemble.diverse_taps)
    x, label = image(foreign), torch.randint(0, max(2, foreign.classes), (2, *foreign.size))

    def train() -> list[float]:
        optimizer = torch.optim.AdamW(ensemble.parameters(), lr=3e-3, weight_decay=0.1)
        quantizer.attach(optimizer)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            total = loss(ensemble(x), label).total
            total.backward()
            optimizer.step()
            losses.append(total.item())
        return losses

    losses = train()
    assert losses[-1] < losses[0]
    while quantizer.advance():
        train()
    weights = {key: value.clone() for key, value in ensemble.state_dict().items()}
    convolutions = [name for name, module in ensemble.named_modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    train()
    now = ensemble.state_dict()
    for name in convolutions:
        assert torch.equal(now[f"{name}.weight"], weights[f"{name}.weight"]), name
        if name.startswith("base"):
            assert all(len(torch.unique(channel)) <= 15 for channel in now[f"{name}.weight"])


def test_an_exported_network_of_others_is_the_ensemble() -> None:
    foreign = FOREIGN["unet-2d"]
    ensemble = make(foreign)
    ensemble(image(foreign, batch=4))  # so that batch normalisation has something to fold
    ensemble.eval()
    graph = float_graph(ensemble)
    weights = {tensor.name for tensor in graph.model.graph.initializer}
    assert "base.0.network.model.0.conv.unit0.conv.weight" in weights
    assert not any(node.op_type == "BatchNormalization" for node in graph.model.graph.node)
    for size in ((16, 24), (40, 28)):
        x = torch.rand(1, 3, *size)
        with torch.no_grad():
            wanted = learner_probabilities(ensemble(x).logits).numpy()
        for engine in ("openvino", "onnxruntime", "torch"):
            found = make_engine(engine, graph.model.SerializeToString(), 1).run(x.numpy())
            np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_learners_must_be_new_ones_and_fit() -> None:
    network = FOREIGN["unet-2d"].make()
    with pytest.raises(ConfigError, match="share weights"):
        DeepEnsemble.from_network(lambda: network, ["model.0"])
    with pytest.raises(ConfigError, match=r"did you mean 'model\.0'"):
        DeepEnsemble.from_network(FOREIGN["unet-2d"].make, ["model0"])
    with pytest.raises(ConfigError, match="n_classes = 4"):
        DeepEnsemble.from_network(FOREIGN["unet-2d"].make, ["model.0"], n_classes=4)

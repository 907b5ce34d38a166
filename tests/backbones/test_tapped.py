"""Any network as a backbone: what is found in a dry run, what is refused, and that nothing of it stays behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2ed2q.backbones import TappedNetwork
from d2ed2q.errors import ConfigError, DataError


class Small(nn.Module):
    """Two levels, an in-place ReLU right after the first tap, dropout and batch normalisation."""

    def __init__(self, in_channels: int = 3, n_classes: int = 2) -> None:
        super().__init__()
        self.fine = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.coarse = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.Dropout(0.5))
        self.unused = nn.Linear(3, 3)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.head = nn.Conv2d(4, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.relu(self.fine(x))
        out: Tensor = self.head(fine + self.up(self.coarse(fine)))
        return out


def recorder(into: dict[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    def record(tap: str, feature: Tensor) -> Tensor:
        into[tap] = feature
        return feature

    return record


def test_a_dry_run_finds_everything() -> None:
    network = TappedNetwork(Small(), ["up", "coarse.1", "fine"])

    assert [(tap.name, tap.channels, tap.diverse) for tap in network.taps] == [
        ("fine", 4, True),
        ("coarse_1", 6, True),
        ("up", 4, True),
    ]
    assert network.paths == {"fine": "fine", "coarse_1": "coarse.1", "up": "up"}
    found = (network.in_channels, network.n_classes, network.dims, network.stride, network.minimum)
    assert found == (3, 2, 2, 2, 2)


def test_a_dry_run_leaves_no_trace() -> None:
    inner = Small().train()
    inner.coarse[1].eval()
    before = copy.deepcopy(inner.state_dict())
    state = torch.get_rng_state()

    TappedNetwork(inner, ["fine"])

    assert torch.equal(torch.get_rng_state(), state)
    assert inner.training
    assert inner.coarse[2].training
    assert not inner.coarse[1].training
    assert all(torch.equal(value, before[key]) for key, value in inner.state_dict().items())
    assert not any(module._forward_hooks for module in inner.modules())


def test_the_network_computes_what_it_did_and_pads_like_all_others() -> None:
    inner = Small().eval()
    network = TappedNetwork(inner, ["fine", "coarse.0"]).eval()
    x = torch.rand(2, 3, 13, 6)

    with torch.no_grad():
        assert torch.equal(network(x), inner(F.pad(x, (0, 0, 0, 1), mode="replicate"))[:, :, :13])
        assert torch.equal(network(x, lambda _, feature: feature), network(x))
    with pytest.raises(DataError, match="B×3×H×W"):
        network(torch.rand(1, 1, 8, 8))


def test_features_are_replaced_and_nothing_goes_around_a_hook() -> None:
    network = TappedNetwork(Small(), ["fine"]).eval()
    x = torch.rand(1, 3, 8, 8, requires_grad=True)

    logits = network(x, lambda _, feature: feature.detach())
    (gradient,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    assert gradient is None
    assert not torch.equal(network(x, lambda _, feature: feature + 1), network(x))


def test_recorded_features_are_not_written_to() -> None:
    network = TappedNetwork(Small(), ["fine", "coarse.0", "up"])
    recorded: dict[str, Tensor] = {}
    x = torch.rand(2, 3, 8, 8)
    logits = network(x, recorder(recorded))

    assert network.network.fine(x).equal(recorded["fine"])  # type: ignore[operator]
    assert (recorded["fine"] < 0).any(), "it was recorded before the in-place ReLU"
    (logits.square().sum() + sum(feature.square().sum() for feature in recorded.values())).backward()
    # What a fusion gives back ends in a ReLU, which needs its result for the gradient.
    network(x, lambda _, feature: torch.relu(feature)).sum().backward()


def test_dropout_that_writes_only_in_training_is_seen_too() -> None:
    inner = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.5, inplace=True), nn.Conv2d(2, 1, 1))
    recorded: dict[str, Tensor] = {}

    TappedNetwork(inner, ["0"]).train()(torch.rand(1, 1, 8, 8) + 1, recorder(recorded))

    assert (recorded["tap_0"] != 0).all()


def test_a_copy_runs_its_own_layers_and_nothing_is_left_in_the_state() -> None:
    network = TappedNetwork(Small(), ["fine", "coarse.1"]).eval()
    seen: dict[str, Tensor] = {}
    x = torch.rand(1, 3, 8, 8)
    network(x, recorder(seen))
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        copied: dict[str, Tensor] = {}
        other(x, recorder(copied))

    assert torch.equal(copied["fine"], seen["fine"])
    assert list(other.state_dict()) == [f"network.{key}" for key in Small().state_dict()]


def test_hooks_are_gone_after_an_error() -> None:
    network = TappedNetwork(Small(), ["fine"])

    def fail(tap: str, feature: Tensor) -> Tensor:
        raise KeyError(tap)

    with pytest.raises(KeyError):
        network(torch.rand(1, 3, 8, 8), fail)
    assert not any(module._forward_hooks for module in network.modules())


def test_names_that_a_module_cannot_have_are_mended() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(1, 2, 1))
            self.a_0 = nn.Conv2d(2, 2, 1)
            self.pop = nn.Conv2d(2, 2, 1)
            self.head = nn.Conv2d(2, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.pop(self.a_0(self.a(x))))
            return out

    network = TappedNetwork(Odd(), ["a.0", "a_0", "pop"])

    assert network.paths == {"a_0": "a.0", "a_0_": "a_0", "tap_pop": "pop"}
    nn.ModuleDict({tap.name: nn.Identity() for tap in network.taps})


def test_volumes_are_found_by_the_first_convolution() -> None:
    inner = nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.MaxPool3d(4), nn.Upsample(scale_factor=4), nn.Conv3d(4, 3, 1)
    )
    network = TappedNetwork(inner, ["1"])

    assert (network.dims, network.in_channels, network.n_classes, network.stride) == (3, 2, 3, 4)
    assert network(torch.rand(1, 2, 5, 9, 7)).shape == (1, 3, 5, 9, 7)


def test_a_network_that_refuses_small_images_gets_padded_ones() -> None:
    inner = nn.Sequential(nn.Conv2d(1, 2, 9, padding=4, padding_mode="reflect"), nn.Conv2d(2, 1, 1))
    network = TappedNetwork(inner, ["0"])

    assert (network.stride, network.minimum) == (1, 5)  # reflection takes more pixels than it pads
    assert network(torch.rand(1, 1, 2, 7)).shape == (1, 1, 2, 7)


def test_a_stride_that_is_given_is_taken() -> None:
    assert TappedNetwork(Small(), ["fine"], stride=8).stride == 8
    with pytest.raises(ConfigError, match=r"cannot be run on 2×3×33×35, RuntimeError.*a stride that it takes"):
        TappedNetwork(Small(), ["fine"], stride=1)


class Returning(nn.Module):
    """Gives what a function makes of the logits."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3, padding=1)
        self.head = nn.Conv2d(2, 1, 1)
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.head(self.layer(x)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: (y, y), "returns a tuple, not logits: return one tensor"),
        (lambda y: [y], "returns a list"),
        (lambda y: {"out": y}, "returns a dict"),
        (lambda y: y.mean((2, 3)), "returns a tensor of 2×1, not logits B×n_classes×H×W"),
        (lambda y: y[..., ::2, ::2], "gives logits of 96×160 for 192×320, not of the input's size"),
    ],
)
def test_what_is_not_logits_is_named(change: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TappedNetwork(Returning(change), ["layer"])


def test_a_network_that_returns_something_else_in_training_is_named_then() -> None:
    inner = Returning(lambda y: y)
    network = TappedNetwork(inner, ["layer"])
    inner.change = lambda y: (y, y)

    with pytest.raises(ConfigError, match="returns a tuple"):
        network(torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ([], "needs taps"),
        (["coarse.7"], r"no submodule 'coarse\.7' for a tap, did you mean 'coarse\.\d' or 'coarse\.\d'"),
        (["fin"], "did you mean 'fine'"),
        ([""], "no submodule ''"),
        (["fine", "up", "fine"], "the tap 'fine' is given twice"),
        (["unused"], "the tap 'unused' is never called"),
    ],
)
def test_taps_that_cannot_be_used_are_named(taps: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TappedNetwork(Small(), taps)


def test_a_tap_of_the_logits_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'head' gives the logits"):
        TappedNetwork(Small(), ["fine", "head"])


def test_a_tap_that_is_called_again_is_named() -> None:
    shared = nn.Conv2d(2, 2, 1)
    with pytest.raises(ConfigError, match="the tap '1' is called more than once"):
        TappedNetwork(nn.Sequential(nn.Conv2d(1, 2, 1), shared, nn.ReLU(), shared), ["1"])


class Tokens(nn.Module):
    """A layer that works on positions as tokens, and one that gives a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 4, 1)
        self.mix = nn.Linear(4, 4)
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        tokens, _ = self.rnn(self.mix(y.flatten(2).transpose(1, 2)))
        out: Tensor = self.head(tokens.transpose(1, 2).unflatten(2, y.shape[2:]))
        return out


def test_a_tap_that_gives_no_feature_is_named() -> None:
    with pytest.raises(ConfigError, match="'mix' gives a tensor of 2×1155×4 for a batch of 2, not a feature"):
        TappedNetwork(Tokens(), ["mix"])
    with pytest.raises(ConfigError, match="'rnn' gives a tuple"):
        TappedNetwork(Tokens(), ["rnn"])
    assert TappedNetwork(Tokens(), "embed").taps[0].channels == 4


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match="logits of 2 channels, not of n_classes = 1: build it with 1"):
        TappedNetwork(Small(), ["fine"], n_classes=1)
    with pytest.raises(ConfigError, match="2 spatial axes, not dims = 3"):
        TappedNetwork(Small(), ["fine"], dims=3)
    with pytest.raises(ConfigError, match="cannot be run on 2×1×33×35, RuntimeError"):
        TappedNetwork(Small(), ["fine"], in_channels=1)
    with pytest.raises(ConfigError, match="give in_channels and dims"):
        TappedNetwork(nn.Sequential(nn.ReLU()), ["0"])
    assert TappedNetwork(nn.Sequential(nn.ReLU(), nn.Tanh()), ["0"], in_channels=2, dims=3).n_classes == 2


def test_compiled_it_gives_the_same() -> None:
    network = TappedNetwork(Small(), ["fine", "coarse.0"]).eval()
    x = torch.rand(2, 3, 8, 8)
    compiled = torch.compile(lambda image: network(image, lambda _, f: f * 2), backend="eager")

    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x, lambda _, f: f * 2))

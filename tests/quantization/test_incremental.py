from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from d2ed2q.errors import CheckpointError, ConfigError
from d2ed2q.quantization import CODEBOOKS, IncrementalQuantizer, cumulative_count, quantizable_weights

FRACTIONS = (0.3, 0.3, 0.2, 0.2)


class Network(nn.Module):
    """A network of a user's own, with every kind of layer in and out of scope."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, padding=1)
        self.norm = nn.BatchNorm2d(7)
        self.up = nn.ConvTranspose2d(7, 5, 2, stride=2)
        self.tied = nn.Conv2d(5, 5, 1)
        self.again = nn.Conv2d(5, 5, 1)
        self.again.weight = self.tied.weight
        self.linear = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(torch.relu(self.norm(self.conv(x))))
        x = self.again(torch.relu(self.tied(x)))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1, fused=True)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, amsgrad=True)


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3, amp: str = "none") -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=amp == "fp16")
    for _ in range(steps):
        with torch.autocast("cpu", torch.float16 if amp == "fp16" else torch.bfloat16, enabled=amp != "none"):
            loss = network(torch.randn(2, 3, 8, 8)).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {weight.name: weight.parameter.detach().clone() for weight in quantizable_weights(network)}


@pytest.mark.parametrize("amp", ["none", "bf16", "fp16"])
@pytest.mark.parametrize("make", [sgd, adam, adamw])
def test_frozen_weights_never_move_and_free_ones_do(make: Callable[[Any], torch.optim.Optimizer], amp: str) -> None:
    network = Network()
    optimizer = make(network.parameters())
    quantizer = IncrementalQuantizer(network, bits=4, fractions=FRACTIONS)
    quantizer.attach(optimizer)
    train(network, optimizer)  # momentum that would go on moving them
    for step in range(4):
        before = weights(network)
        assert quantizer.advance()
        frozen = {name: mask.clone() for name, mask in quantizer.frozen.items()}
        at_freezing = weights(network)
        for name, mask in frozen.items():
            assert int(mask.sum()) == cumulative_count(mask.numel(), FRACTIONS, step)
            assert torch.equal(at_freezing[name][~mask], before[name][~mask])
        train(network, optimizer, amp=amp)
        for name, weight in weights(network).items():
            assert torch.equal(weight[frozen[name]], at_freezing[name][frozen[name]])
            if not frozen[name].all():
                assert not torch.equal(weight[~frozen[name]], at_freezing[name][~frozen[name]])
    assert not quantizer.advance()
    assert quantizer.frozen_fraction == 1.0


@settings(deadline=None, max_examples=25)
@given(bits=st.integers(2, 8), name=st.sampled_from(sorted(CODEBOOKS)), seed=st.integers(0, 99), random=st.booleans())
def test_all_steps_together_leave_one_codebook_a_tensor(bits: int, name: str, seed: int, random: bool) -> None:
    torch.manual_seed(seed)
    network = Network()
    with torch.no_grad():
        network.linear.weight.zero_()
        network.tied.weight.fill_(0.2)
    optimizer = sgd(network.parameters())
    quantizer = IncrementalQuantizer(network, bits, name, random=random, seed=seed)
    quantizer.attach(optimizer)
    while quantizer.advance():
        train(network, optimizer, 1)
    for weight in quantizable_weights(network):
        rows = weight.parameter.detach().movedim(weight.channel_axis, 0).flatten(1)
        found = max(len(torch.unique(row)) for row in rows) if name == "geometric" else len(torch.unique(rows))
        assert found <= 2**bits


def test_batch_norm_and_biases_are_left_alone_by_quantizing_and_go_on_training() -> None:
    network = Network()
    outside = [name for name, _ in network.named_parameters() if name not in weights(network)]
    assert {"norm.weight", "norm.bias", "conv.bias", "up.bias", "linear.bias"} <= set(outside)
    quantizer = IncrementalQuantizer(network)
    optimizer = adam(network.parameters())
    quantizer.attach(optimizer)
    state = copy.deepcopy(network.state_dict())
    while quantizer.advance():
        pass
    in_scope = set(weights(network)) | {"again.weight"}
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]) == (key not in in_scope)
    few_bit = weights(network)
    train(network, optimizer)
    for name, parameter in network.named_parameters():
        moved = not torch.equal(parameter, state[name])
        assert moved or name in few_bit
        if name in few_bit:
            assert torch.equal(parameter, few_bit[name])


def test_tied_weights_are_quantized_once() -> None:
    names = [weight.name for weight in quantizable_weights(Network())]
    assert names == ["conv.weight", "up.weight", "tied.weight", "linear.weight"]


def test_resume_goes_on_to_the_bit() -> None:
    def run(stop_after: int | None) -> dict[str, Tensor]:
        torch.manual_seed(3)
        network = Network()
        quantizer = IncrementalQuantizer(network, 3, seed=5)
        optimizer = sgd(network.parameters())
        quantizer.attach(optimizer)
        for step in range(4):
            quantizer.advance()
            torch.manual_seed(10 + step)
            train(network, optimizer)
            if step == stop_after:
                saved = copy.deepcopy((network.state_dict(), optimizer.state_dict(), quantizer.state_dict()))
                network = Network()
                network.load_state_dict(saved[0])
                optimizer = sgd(network.parameters())
                optimizer.load_state_dict(saved[1])
                quantizer = IncrementalQuantizer(network, 3, seed=5)
                quantizer.load_state_dict(saved[2])
                quantizer.attach(optimizer)
        return network.state_dict()

    expected = run(None)
    for stop_after in range(4):
        for key, value in run(stop_after).items():
            assert torch.equal(value, expected[key])


def test_a_state_of_another_architecture_is_refused() -> None:
    quantizer = IncrementalQuantizer(Network())
    quantizer.advance()
    other = IncrementalQuantizer(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(CheckpointError, match="another architecture"):
        other.load_state_dict(quantizer.state_dict())
    with pytest.raises(CheckpointError, match="other bits"):
        IncrementalQuantizer(Network(), bits=3).load_state_dict(quantizer.state_dict())
    with pytest.raises(CheckpointError, match="state has codebook geometric, and the quantizer linear"):
        IncrementalQuantizer(Network(), codebook="linear").load_state_dict(quantizer.state_dict())
    with pytest.raises(CheckpointError, match="state has fractions"):  # or it would have more steps done than there are
        IncrementalQuantizer(Network(), fractions=(1.0,)).load_state_dict(quantizer.state_dict())
    with pytest.raises(CheckpointError, match="state has seed 0, and the quantizer 1"):
        IncrementalQuantizer(Network(), seed=1).load_state_dict(quantizer.state_dict())
    with pytest.raises(CheckpointError, match="state has random True, and the quantizer False"):
        IncrementalQuantizer(Network(), random=False).load_state_dict(quantizer.state_dict())
    with pytest.raises(CheckpointError, match="is damaged"):
        IncrementalQuantizer(Network()).load_state_dict({"step": 1})
    with pytest.raises(CheckpointError, match="is of step 9, and there are 4"):
        IncrementalQuantizer(Network()).load_state_dict(quantizer.state_dict() | {"step": 9})


def test_a_fresh_state_brings_no_codebooks() -> None:
    fresh, quantizer = IncrementalQuantizer(Network()).state_dict(), IncrementalQuantizer(Network())
    quantizer.advance()
    quantizer.load_state_dict(fresh)
    assert quantizer.codebooks == {}
    assert quantizer.frozen_fraction == 0


def test_weights_that_are_not_finite_are_refused_at_every_step() -> None:
    network = Network()
    quantizer = IncrementalQuantizer(network)
    quantizer.advance()
    weight = next(weight.parameter for weight in quantizable_weights(network))
    before = quantizer.frozen_fraction
    with torch.no_grad():
        weight[~next(iter(quantizer.frozen.values()))] = torch.nan
    with pytest.raises(ConfigError, match="NaN or infinite: the training diverged"):
        quantizer.advance()
    assert (quantizer.step, quantizer.frozen_fraction) == (1, before)


def test_bits_go_by_the_longest_prefix() -> None:
    quantizer = IncrementalQuantizer(Network(), {"": 5, "conv": 3, "tied.weight": 2})
    assert quantizer.bits == {"conv.weight": 3, "up.weight": 5, "tied.weight": 2, "linear.weight": 5}


def test_misplaced_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="no weight of the module begins with it"):
        IncrementalQuantizer(Network(), {"": 5, "con": 3})
    with pytest.raises(ConfigError, match=r"no bits are given for up\.weight"):
        IncrementalQuantizer(Network(), {"conv": 3})
    with pytest.raises(ConfigError, match="from 2 to 8"):
        IncrementalQuantizer(Network(), 9)
    with pytest.raises(ConfigError, match="choose one of"):
        IncrementalQuantizer(Network(), codebook="magic")
    with pytest.raises(ConfigError, match="no convolution"):
        IncrementalQuantizer(nn.BatchNorm2d(3))


def test_frozen_weights_do_not_count_in_the_clipped_norm() -> None:
    network = nn.Linear(4, 1, bias=False)
    quantizer = IncrementalQuantizer(network, fractions=(0.5, 0.5))
    quantizer.advance()
    network(torch.ones(1, 4)).sum().backward()
    assert network.weight.grad is not None
    assert int(network.weight.grad.count_nonzero()) == 2

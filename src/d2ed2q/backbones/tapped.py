"""Any network as a backbone: named submodules become its taps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from d2ed2q.backbones.layers import CONVOLUTIONS, layers_of
from d2ed2q.backbones.staged import StagedNetwork, Tap, TapHook, no_hook
from d2ed2q.errors import ConfigError

__all__ = ["TappedNetwork"]

_STRIDES = (1, 2, 4, 8, 16, 32, 64)
_LEAST = {2: (32, 192), 3: (16, 96)}  # of the images tried; the larger ones for networks that refuse small images
_BATCH = 2  # one would hide features that mix batch and positions


class TappedNetwork(StagedNetwork):
    """Wraps a network, so that outputs of its submodules can be recorded and replaced.

    A dry run on a small image, in evaluation mode and without a trace in the network or the random numbers, finds what
    is not given, and the channels and the order of the taps.

    A tap is called like its submodule, with underscores for dots (``model.1.0`` becomes ``model_1_0``), because the
    fusion that belongs to it is a module of that name; ``tap_`` comes in front where that would be no valid name.
    :attr:`paths` has the dotted names.

    Args:
        network: of ``B×in_channels×H×W`` (volumes ``B×in_channels×D×H×W``), logits ``B×n_classes`` of the same size.
        taps: dotted names of submodules, in any order, as ``network.named_modules()`` has them. Each is called once in
            a forward pass and returns ``B×c×h×w`` (``B×c×d×h×w``); whatever the network makes of its output, it then
            makes of what the hook gives back.
        in_channels: channels of the input; None takes those of the first convolution.
        n_classes: channels of the logits, to be checked; None takes what the network has.
        dims: number of spatial axes, 2 or 3; None takes those of the first convolution.
        stride: every spatial axis is padded to a multiple of this; None takes the smallest power of two up to 64 of
            whose odd multiples the network gives logits of their size. Give a larger one where an exported graph is to
            be free of the network's own padding.

    Attributes:
        network: the wrapped network.
        paths: of each tap's name, the dotted name of its submodule.

    Raises:
        ConfigError: a tap is unknown, given twice, not called exactly once, or gives something else than a feature;
            or the network cannot be run, or returns something else than logits of the input's size.

    Examples:
        >>> layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 1, 1))
        >>> network = TappedNetwork(layers, taps=["0"])
        >>> network.taps, network.paths, network.stride
        ((Tap(name='tap_0', channels=8, diverse=True),), {'tap_0': '0'}, 1)
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Sequence[str],
        *,
        in_channels: int | None = None,
        n_classes: int | None = None,
        dims: int | None = None,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        given = (taps,) if isinstance(taps, str) else tuple(taps)
        _check_names(network, given)
        self.in_channels, self.dims = _input_of(network, in_channels, dims)
        with _undisturbed(network):
            self.stride, seen = _find_stride(network, given, self.in_channels, self.dims, stride)
            self._minimum = _find_minimum(network, self.in_channels, self.dims, self.stride)
        self.n_classes = seen.n_classes
        if n_classes is not None and n_classes != self.n_classes:
            raise ConfigError(
                f"the network gives logits of {self.n_classes} channels, not of n_classes = {n_classes}: build it with "
                f"{n_classes}"
            )
        self.paths = dict(zip(_tap_names(list(seen.channels)), seen.channels, strict=True))
        self.taps = tuple(Tap(name, seen.channels[path]) for name, path in self.paths.items())
        inplace_dropout = any(isinstance(module, _DropoutNd) and module.inplace for module in network.modules())
        self._written = frozenset(
            name for name, path in self.paths.items() if path in seen.written or inplace_dropout
        )  # dropout does nothing in evaluation mode, so that the dry run cannot see whom it writes to
        self.network = network

    @property
    def minimum(self) -> int:
        """Least size of an axis that the network takes; smaller images are padded."""
        return self._minimum

    def padding(self, extent: int) -> int:
        """To a multiple of the stride, and to :attr:`minimum`."""
        return self._minimum - extent if extent < self._minimum else super().padding(extent)

    def run_stages(self, x: Tensor, at_tap: TapHook) -> Tensor:
        """Computes logits; see :class:`~d2ed2q.backbones.staged.StagedNetwork`."""
        if at_tap is no_hook:
            return _checked_logits(self.network(x), self.dims)

        def hook_of(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
                feature = at_tap(name, output)
                # What the hook gave back may be kept by whoever recorded it, or by autograd.
                return feature.clone() if name in self._written else feature

            return hook

        # Hooks live for one pass and are found by name: a copy of this network never runs those of the original.
        handles = [
            self.network.get_submodule(path).register_forward_hook(hook_of(name)) for name, path in self.paths.items()
        ]
        try:
            return _checked_logits(self.network(x), self.dims)
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class _Seen:
    """What a dry run saw: channels by path in the order of the calls, who was written to afterwards, and the logits."""

    channels: dict[str, int]
    written: frozenset[str]
    n_classes: int
    size: tuple[int, ...]


def _check_names(network: nn.Module, taps: Sequence[str]) -> None:
    known = [name for name, _ in network.named_modules() if name]
    if not taps:
        raise ConfigError("a network of your own needs taps: name the submodules whose outputs are fused")
    for tap in taps:
        if tap not in known:
            near = get_close_matches(tap, known, n=3, cutoff=0.0)
            hint = f", did you mean {' or '.join(map(repr, near))}?" if near else ": it has no submodules at all"
            raise ConfigError(f"the network has no submodule {tap!r} for a tap{hint}")
        if taps.count(tap) > 1:
            raise ConfigError(f"the tap {tap!r} is given twice: name it once")


def _input_of(network: nn.Module, in_channels: int | None, dims: int | None) -> tuple[int, int]:
    found = [module for module in network.modules() if isinstance(module, CONVOLUTIONS)]
    spatial = found[0].weight.ndim - 2 if found else None
    if not found and (in_channels is None or dims is None):
        raise ConfigError(
            "the network has no convolution of images or volumes to tell its input by: give in_channels and dims"
        )
    dims = spatial if dims is None else dims
    assert dims is not None
    layers_of(dims)
    if spatial is not None and spatial != dims:
        raise ConfigError(
            f"the network's convolutions have {spatial} spatial axes, not dims = {dims}: build it for {dims}, or give "
            f"dims = {spatial}"
        )
    return found[0].in_channels if in_channels is None else in_channels, dims


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; modes and random numbers are as before afterwards."""
    modes = {module: module.training for module in network.modules()}
    devices = {parameter.device.index for parameter in network.parameters() if parameter.is_cuda}
    network.eval()
    try:
        # Tensors of inference mode do not count who wrote to them.
        with torch.random.fork_rng(sorted(devices)), torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _run(network: nn.Module, taps: Sequence[str], in_channels: int, size: tuple[int, ...]) -> _Seen:
    like = next(network.parameters(), torch.empty(0))
    shape = (_BATCH, in_channels, *size)
    n = torch.Size(shape).numel()
    image = torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device).reshape(shape)
    features: dict[str, tuple[Tensor, int]] = {}

    def watcher(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def watch(module: nn.Module, inputs: Any, output: Any) -> None:
            if path in features:
                raise ConfigError(
                    f"the tap {path!r} is called more than once in a forward pass: choose another submodule"
                )
            axes = "D×H×W" if len(size) == 3 else "H×W"
            if not isinstance(output, Tensor) or output.ndim != len(shape) or output.shape[0] != _BATCH:
                raise ConfigError(
                    f"the tap {path!r} gives {_described(output)} for a batch of {_BATCH}, not a feature of "
                    f"B×c×{axes}: choose another submodule"
                )
            features[path] = (output, output._version)

        return watch

    handles = [network.get_submodule(path).register_forward_hook(watcher(path)) for path in taps]
    try:
        logits = _checked_logits(network(image), len(size))
    finally:
        for handle in handles:
            handle.remove()
    scores = [path for path, (feature, _) in features.items() if torch.equal(feature, logits)]
    if scores:
        raise ConfigError(
            f"the tap {scores[0]!r} gives the logits, and a fused feature, which is never negative, cannot stand for "
            f"them: choose a submodule before it"
        )
    silent = [path for path in taps if path not in features]
    if silent:
        raise ConfigError(f"the tap {silent[0]!r} is never called in a forward pass: choose another submodule")
    written = frozenset(path for path, (feature, version) in features.items() if feature._version != version)
    channels = {path: feature.shape[1] for path, (feature, _) in features.items()}
    return _Seen(channels, written, logits.shape[1], tuple(logits.shape[2:]))


def _find_stride(
    network: nn.Module, taps: Sequence[str], in_channels: int, dims: int, given: int | None
) -> tuple[int, _Seen]:
    refused = ""
    for least, stride in product(_LEAST[dims], _STRIDES if given is None else (given,)):
        odd = -(-least // stride) // 2 * 2 + 1
        size = tuple(stride * (odd + 2 if axis == 1 else odd) for axis in range(dims))
        try:
            seen = _run(network, taps, in_channels, size)
        except ConfigError:
            raise
        except Exception as error:  # of whatever kind: the network does not take this size
            refused = (
                refused or f"cannot be run on {_shown((_BATCH, in_channels, *size))}, {type(error).__name__}: {error}"
            )
            continue
        if seen.size == size:
            return stride, seen
        refused = f"gives logits of {_shown(seen.size)} for {_shown(size)}, not of the input's size"
    raise ConfigError(f"the network {refused}; mend it, or give in_channels, dims or a stride that it takes")


def _find_minimum(network: nn.Module, in_channels: int, dims: int, stride: int) -> int:
    for extent in range(stride, 8 * stride, stride):
        try:
            _run(network, (), in_channels, (extent,) * dims)
        except Exception:  # of whatever kind: the network does not take this size
            continue
        return extent
    return 8 * stride


def _checked_logits(output: object, dims: int) -> Tensor:
    if not isinstance(output, Tensor):
        raise ConfigError(f"the network returns {_described(output)}, not logits: return one tensor")
    if output.ndim != 2 + dims:
        axes = "D×H×W" if dims == 3 else "H×W"
        raise ConfigError(f"the network returns {_described(output)}, not logits B×n_classes×{axes}: return those")
    return output


def _described(output: object) -> str:
    return f"a tensor of {_shown(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _shown(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _tap_names(paths: Sequence[str]) -> list[str]:
    """Names that a ``ModuleDict`` takes; different for different paths."""
    taken = nn.ModuleDict()
    names: list[str] = []
    for path in paths:
        name = path.replace(".", "_")
        if not name.isidentifier() or hasattr(taken, name):
            name = f"tap_{name}"
        while name in names:
            name += "_"
        names.append(name)
    return names

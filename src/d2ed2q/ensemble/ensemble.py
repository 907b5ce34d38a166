"""The deep ensemble: K base learners, and a meta learner that fuses their features at every resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from d2ed2q.backbones import StagedNetwork, TappedNetwork
from d2ed2q.ensemble.fusion import TapFusion
from d2ed2q.ensemble.named_views import view_names
from d2ed2q.ensemble.output import EnsembleOutput
from d2ed2q.errors import ConfigError

__all__ = ["DeepEnsemble"]


class DeepEnsemble(nn.Module):
    """K base learners B₁…B_K and one meta learner B₀ of the same architecture.

    Every tap of the meta learner passes through a :class:`~d2ed2q.ensemble.fusion.TapFusion` with the base learners'
    features of that tap; the meta learner (its skip connections too) goes on with the fused feature. What the method is
    compared with is built of the same parts: without fusion a plain ensemble of K + 1 learners that do not see each
    other, and without base learners a single network.

    The input's normalisation lives in here, so that training, evaluation and deployment cannot disagree on it. So do
    the decisions taken on validation images: which view is *the* prediction, and the threshold of each view.

    Args:
        make_network: builds one learner; called K + 1 times, each time with new random weights.
        n_base: number K of base learners, at least 2; or 0 for the meta learner alone.
        scale: the network sees ``image · scale + shift``.
        shift: see ``scale``; the defaults are the paper's ``x / 255 · 3.2 − 1.6``.
        fuse: whether the meta learner fuses the base learners' features; if not, it is one more learner beside them.

    Raises:
        ConfigError: ``n_base`` is 1 or negative, or ``make_network`` gives the same network or the same weights twice.

    Examples:
        >>> from d2ed2q.backbones import build_backbone
        >>> ensemble = DeepEnsemble(lambda: build_backbone("unet-xs", in_channels=3, n_classes=1))
        >>> ensemble(torch.rand(2, 3, 64, 64)).logits.shape
        torch.Size([4, 2, 1, 64, 64])
    """

    input_scale: Tensor
    input_shift: Tensor
    thresholds: Tensor
    prediction: Tensor

    def __init__(
        self,
        make_network: Callable[[], StagedNetwork],
        n_base: int = 3,
        scale: float = 3.2,
        shift: float = -1.6,
        fuse: bool = True,
    ) -> None:
        super().__init__()
        if n_base < 0 or n_base == 1:
            raise ConfigError(f"an ensemble needs at least 2 base learners, got n_base = {n_base}")
        self.meta = make_network()
        networks = [make_network() for _ in range(n_base)]
        self.base = nn.ModuleList(networks)
        learners = [{id(parameter) for parameter in learner.parameters()} for learner in (self.meta, *self.base)]
        if len(set().union(*learners)) < sum(map(len, learners)):
            raise ConfigError("the learners share weights: build a new network at every call of the given function")
        if len({_architecture(learner) for learner in (self.meta, *networks)}) > 1:
            raise ConfigError("the learners differ: let every call of the given function build the same architecture")
        for one, other in combinations((self.meta, *self.base), 2):
            pairs = zip(one.parameters(), other.parameters(), strict=True)
            if learners[0] and all(not first.is_meta and torch.equal(first, second) for first, second in pairs):
                raise ConfigError(
                    "two learners begin with the same weights and would stay alike: let every call of the given "
                    "function draw new ones (no fixed seed, and not all of them from one file)"
                )
        fused = self.meta.taps if fuse and n_base else ()
        self.fusions = nn.ModuleDict({tap.name: TapFusion(tap.channels, n_base, self.meta.dims) for tap in fused})
        self.register_buffer("input_scale", torch.tensor(scale))
        self.register_buffer("input_shift", torch.tensor(shift))
        # One threshold a view, in the order of `view_names`; `prediction` is an index into the same order.
        self.register_buffer("thresholds", torch.full((len(view_names(n_base)),), 0.5))
        self.register_buffer("prediction", torch.tensor(0))

    @classmethod
    def from_network(
        cls,
        make_network: Callable[[], nn.Module],
        taps: Sequence[str],
        n_base: int = 3,
        scale: float = 3.2,
        shift: float = -1.6,
        *,
        in_channels: int | None = None,
        n_classes: int | None = None,
        dims: int | None = None,
        stride: int | None = None,
    ) -> DeepEnsemble:
        """An ensemble of any network, whose named submodules become the taps.

        Args:
            make_network: builds one network with new random weights; called K + 1 times.
            taps: dotted names of submodules; see :class:`~d2ed2q.backbones.tapped.TappedNetwork`, also for
                ``in_channels``, ``n_classes``, ``dims`` and ``stride``, which are found where they are not given.
            n_base: number K of base learners, at least 2.
            scale: the network sees ``image · scale + shift``.
            shift: see ``scale``.
            in_channels: channels of the image.
            n_classes: channels of the logits.
            dims: number of spatial axes, 2 or 3.
            stride: every axis of the image is padded to a multiple of this.

        Raises:
            ConfigError: a tap or the network cannot be used; the message says why.

        Examples:
            >>> def make_network():
            ...     return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 1, 1))
            >>> ensemble = DeepEnsemble.from_network(make_network, taps=["1"])
            >>> ensemble(torch.rand(2, 3, 37, 50)).logits.shape
            torch.Size([4, 2, 1, 37, 50])
        """

        def make_learner() -> StagedNetwork:
            network = make_network()
            return TappedNetwork(network, taps, in_channels=in_channels, n_classes=n_classes, dims=dims, stride=stride)

        return cls(make_learner, n_base, scale, shift)

    @property
    def n_base(self) -> int:
        """Number K of base learners."""
        return len(self.base)

    @property
    def n_classes(self) -> int:
        """Output channels C of every learner: 1 for a binary task."""
        return self.meta.n_classes

    @property
    def diverse_taps(self) -> tuple[str, ...]:
        """Names of the taps that take part in the diversity term; none without base learners."""
        return tuple(tap.name for tap in self.meta.taps if tap.diverse and self.n_base)

    @property
    def prediction_name(self) -> str:
        """Name of the view that is this model's prediction."""
        return view_names(self.n_base)[int(self.prediction)]

    def threshold_of(self, view: str) -> float:
        """The threshold of one view, chosen on validation images (0.5 before that)."""
        return float(self.thresholds[view_names(self.n_base).index(view)])

    def decide(self, prediction: str, thresholds: dict[str, float]) -> None:
        """Stores which view is the prediction, and every view's threshold."""
        names = view_names(self.n_base)
        self.prediction.fill_(names.index(prediction))
        for index, name in enumerate(names):
            self.thresholds[index] = thresholds[name]

    def forward(self, image: Tensor) -> EnsembleOutput:
        """Runs all learners.

        Args:
            image: ``B×C×H×W``, or ``B×C×D×H×W`` of learners with three axes, values in [0, 1].

        Returns:
            EnsembleOutput: logits, ``(K+1)×B×n_classes`` and the size of the image (meta first), and the base
            learners' features per tap.
        """
        x = image * self.input_scale + self.input_shift
        features: dict[str, list[Tensor]] = {tap.name: [] for tap in self.meta.taps}

        def record(tap: str, feature: Tensor) -> Tensor:
            features[tap].append(feature)
            return feature

        def fuse(tap: str, feature: Tensor) -> Tensor:
            if tap not in self.fusions:
                return feature
            fused: Tensor = self.fusions[tap](features[tap], feature)
            return fused

        base_logits = [learner(x, record) for learner in self.base]
        meta_logits = self.meta(x, fuse)
        logits = torch.stack([meta_logits, *base_logits])
        return EnsembleOutput(logits, {name: tuple(recorded) for name, recorded in features.items()})


def _architecture(learner: StagedNetwork) -> tuple[object, ...]:
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in learner.named_parameters())
    return learner.taps, learner.n_classes, learner.dims, shapes

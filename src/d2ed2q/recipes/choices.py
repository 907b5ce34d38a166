"""Which settings fit which images: from a dataset's fingerprint to candidates, the most capable first."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from d2ed2q.backbones import canonical_name
from d2ed2q.data import Fingerprint
from d2ed2q.recipes.learning_rate import learning_rate

__all__ = ["Choice", "Kind", "choices", "kind_of"]

Kind = Literal["thin", "texture", "objects", "volume"]

# Work of an optimizer step per pixel, U-Net 16-32-64 is 1. Narrow layers are bound by memory, so half the widths save
# little. Only to guess which candidate to measure next.
_WORK = {"unet-xs": 0.8, "unet-s": 1.0, "res-unet-deep-xs": 0.3, "res-unet-deep": 0.6, "unet-deep": 1.2, "unet-m": 3.0}
_STRIDES = {"unet-xs": 4, "unet-s": 4, "res-unet-deep-xs": 32, "res-unet-deep": 32, "unet-deep": 16, "unet-m": 8}
_THIN_PIXELS = 5.0  # vessels of so many pixels are still told from their surroundings
_THICK_PIXELS = 6.0  # only where they are thicker than this is the resolution reduced
_OBJECT_PIXELS = 24.0  # diameter that objects should still have at a reduced resolution


@dataclass(frozen=True)
class Choice:
    """One candidate.

    Attributes:
        values: settings by name.
        reasons: why, by name; one for each value.
        steps: optimizer steps in full precision below which a smaller candidate is better.
        work: of a step, to guess its time from that of another candidate.
    """

    values: dict[str, Any]
    reasons: dict[str, str]
    steps: int
    work: float = field(compare=False)


@dataclass(frozen=True)
class _Rung:
    """A candidate's size: backbone, side of what the network sees, images a step, and least steps worth it."""

    backbone: str
    side: int
    batch: int
    steps: int


_LADDERS: dict[Kind, tuple[_Rung, ...]] = {
    "thin": (
        _Rung("unet-m", 256, 4, 12000),
        _Rung("unet-deep", 192, 4, 1500),
        _Rung("unet-s", 192, 4, 500),
        _Rung("unet-s", 128, 4, 200),
        _Rung("unet-xs", 96, 2, 0),
    ),
    "texture": (
        _Rung("unet-m", 256, 4, 12000),
        _Rung("unet-s", 256, 4, 1200),
        _Rung("unet-s", 192, 4, 500),
        _Rung("unet-s", 128, 4, 200),
        _Rung("unet-xs", 96, 2, 0),
    ),
    "objects": (
        _Rung("res-unet-deep", 320, 4, 8000),
        _Rung("res-unet-deep-xs", 256, 4, 400),
        _Rung("res-unet-deep-xs", 192, 4, 250),
        _Rung("res-unet-deep-xs", 128, 4, 150),
        _Rung("res-unet-deep-xs", 96, 2, 0),
    ),
    "volume": (
        _Rung("unet-m", 48, 2, 8000),
        _Rung("unet-s", 48, 2, 600),
        _Rung("unet-s", 40, 2, 400),
        _Rung("unet-s", 32, 2, 150),
        _Rung("unet-xs", 32, 2, 0),
    ),
}


def kind_of(found: Fingerprint) -> Kind:
    """What kind of task it is: ``thin`` structures, a dense ``texture`` of small cells, ``objects`` or a ``volume``."""
    if found.dims == 3:
        return "volume"
    walls = found.classes[0].thin and found.classes[0].share < 0.5
    many = any(shape.components >= 20 and shape.diameter < 0.15 for shape in found.classes[1:])
    if walls or (many and not found.thin):
        return "texture"
    return "thin" if found.thin else "objects"


def choices(found: Fingerprint, gpu: bool = False, backbone: str | None = None) -> tuple[Choice, ...]:
    """Candidates, the most capable first and the cheapest last; each different from the one before.

    Args:
        found: the dataset's fingerprint.
        gpu: whether there is an accelerator: it wants larger batches.
        backbone: architecture that was given, instead of those of the candidates.
    """
    kind = kind_of(found)
    candidates: list[Choice] = []
    for rung in _LADDERS[kind]:
        choice = _choice(found, kind, rung, gpu, backbone)
        if not candidates or choice.values != candidates[-1].values:
            candidates.append(choice)
    return tuple(candidates)


def _choice(found: Fingerprint, kind: Kind, rung: _Rung, gpu: bool, backbone: str | None) -> Choice:
    network = canonical_name(backbone) if backbone else rung.backbone
    stride = _STRIDES.get(network, 32)
    batch = rung.batch * (4 if gpu else 1)
    values: dict[str, Any] = {"backbone": network}
    reasons = {"backbone": "given" if backbone else _why_network(found, kind, network)}
    seen, why = _resolution(found, kind, rung.side, stride, values)
    reasons |= why
    if "resize" not in values:
        values["crop"] = _crop(found, seen, rung.side, stride)
        reasons["crop"] = _why_crop(found, seen, values["crop"])
    size = values.get("resize") or values["crop"]
    values["batch_size"] = batch
    reasons["batch_size"] = (
        "an accelerator is faster with larger batches" if gpu else "on a processor many small steps beat few large ones"
    )
    values["lr"] = learning_rate(network, found.dims)
    values["lr_q"] = float(f"{values['lr'] / 3:.3g}")
    reasons["lr"] = f"what {network} is trained well with at batches of a few images"
    reasons["lr_q"] = "a third of it: retraining starts from weights that are good already"
    _augmentation(found, kind, values, reasons)
    work = float(np.prod(size)) * batch * _WORK.get(network, 10.0)
    return Choice(values, reasons, rung.steps, work)


def _why_network(found: Fingerprint, kind: Kind, network: str) -> str:
    what = {
        "thin": "what is thin is recognised by its near surroundings, for which three levels are enough",
        "texture": "cells are recognised by their near surroundings, for which three levels are enough",
        "objects": "objects are recognised from afar: many levels see most of the image at once",
        "volume": "patches are small, and three levels span them",
    }[kind]
    if kind == "thin" and network == "unet-deep":
        what = "vessels are told from what looks like them by farther surroundings: five levels, because there is time"
    more = {
        "unet-xs": "; the smallest, because the budget is small",
        "unet-m": "; the wider one, because there is time",
        "res-unet-deep-xs": "; narrow ones, because more steps are worth more than wider layers",
    }
    return what + more.get(network, "")


def _resolution(
    found: Fingerprint, kind: Kind, side: int, stride: int, values: dict[str, Any]
) -> tuple[tuple[float, ...], dict[str, str]]:
    """Chooses the resolution; gives the median size at which the network sees images, and the reason."""
    size = found.median_size
    if kind == "volume":
        if found.spacing is None or not found.spacing_varies:
            return size, {}
        values["spacing"] = found.spacing
        return size, {"spacing": "spacings differ; this is the median along each axis, so slices keep their detail"}
    longest = max(size)
    if kind in ("thin", "texture"):
        thick = found.thickness_pixels
        factor = _THIN_PIXELS / thick if kind == "thin" and thick > _THICK_PIXELS else 1.0
        if factor == 1.0:
            return size, {}
        why = f"what is thin is {thick:.1f} pixels wide, and {_THIN_PIXELS:.0f} are enough: more context in each crop"
    else:
        # Small objects must stay large enough to be seen; the largest step down is still at half of that.
        wanted = min(max(side, side / 256 * _OBJECT_PIXELS / max(found.diameter, 0.02)), 1024)
        factor = wanted / longest
        if factor > 0.85:
            return size, {}
        why = (
            f"objects span {found.diameter:.0%} of the image, so that a long side of {round(longest * factor)} pixels "
            f"shows them well and lets the network see all around them"
        )
        smallest, _, largest = found.size
        alike = all(high <= 1.1 * low for low, high in zip(smallest, largest, strict=True))
        if alike and longest * factor <= 1.3 * side:
            resize = tuple(max(stride, stride * round(extent * factor / stride)) for extent in size)
            values["resize"] = resize
            return resize, {"resize": f"{why}; all images have nearly one size and shape"}
    factor = max(round(factor, 2), 1 / 16)
    values["scale"] = factor
    return tuple(extent * factor for extent in size), {"scale": why}


def _crop(found: Fingerprint, seen: Sequence[float], side: int, stride: int) -> tuple[int, ...]:
    """A crop that is no larger than the images, rounded up to the network's stride."""
    whole = [stride * max(math.ceil(extent / stride - 1e-6), -(-8 // stride)) for extent in seen]
    step = stride * -(-side // stride)
    if found.dims == 2:
        # Square where it is cut from larger images: quarter turns need that.
        edge = min(step, max(whole))
        return (edge, edge) if min(whole) >= 0.6 * edge else tuple(min(step, extent) for extent in whole)
    crop = list(whole)
    while np.prod(crop) > step**3 and max(crop) > stride:
        crop[int(np.argmax(crop))] -= stride
    return tuple(crop)


def _why_crop(found: Fingerprint, seen: Sequence[float], crop: Sequence[int]) -> str:
    shown = "×".join(str(round(extent)) for extent in reversed(seen))
    if all(side >= extent - 1e-6 for side, extent in zip(crop, seen, strict=True)):
        return f"the whole image: the median is {shown}, rounded up to what the network can halve"
    what = "patches" if found.dims == 3 else "crops"
    return f"{what} of images whose median is {shown}: small steps, and many of them in the time"


def _augmentation(found: Fingerprint, kind: Kind, values: dict[str, Any], reasons: dict[str, str]) -> None:
    values["standardize"] = kind in ("thin", "texture") and found.intensity == "byte"
    reasons["standardize"] = (
        "lights and cameras differ more than vessels and membranes do: every picture gets one mean and one spread"
        if values["standardize"]
        else "light and colour tell objects too, and a scanner's units mean something: no gain was measured"
    )
    if found.color:
        strength = (10.0, 10.0, 15.0) if kind == "thin" else (8.0, 20.0, 20.0)
        values |= dict(zip(("hue", "saturation", "value"), strength, strict=True))
        reasons["hue"] = "colour photographs differ in colour from camera to camera and from stain to stain"
        reasons["saturation"] = reasons["value"] = "likewise"
        values |= {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0}
        reasons["brightness"] = "not beside a change of value"
    else:
        values |= {"hue": 0.0, "saturation": 0.0, "value": 0.0, "brightness": 0.1, "contrast": 0.2, "gamma": 0.2}
        reasons["hue"] = "these are no colour photographs"
        reasons["saturation"] = reasons["value"] = "likewise"
        reasons["brightness"] = "instead of colour: scanners and exposures differ"
    reasons["contrast"] = reasons["gamma"] = "likewise"
    values["zoom"] = {"thin": 0.1, "texture": 0.15, "objects": 0.25, "volume": 0.15}[kind]
    values["rotate"] = {"thin": 15.0, "texture": 45.0, "objects": 45.0, "volume": 10.0}[kind]
    reasons["zoom"] = {
        "thin": "a little: widths carry meaning",
        "texture": "a little: cells differ in size, membranes hardly",
        "objects": "much: objects come in all sizes",
        "volume": "a little: bodies differ in size",
    }[kind]
    sides = _sides(found)
    values["mirror"] = sides is None
    reasons["mirror"] = (
        "mirror images are as likely as images" if sides is None else f"mirrored, {sides[0]} would be {sides[1]}"
    )
    upright = kind in ("thin", "volume")
    reasons["rotate"] = "a little: images are taken upright" if upright else "there is no upright here"
    rare = min((shape.share for shape in found.classes[1:]), default=0.0)
    centred = "resize" not in values and (kind == "volume" or rare < 0.02)
    values["foreground"] = 0.33 if centred else 0.0
    reasons["foreground"] = (
        f"the rarest class covers {rare:.1%} of the pixels: a third of the crops are centred on foreground"
        if centred
        else f"not needed: every class covers at least {rare:.1%} of the pixels"
        if rare >= 0.02
        else "whole images have all there is"
    )
    overlap = kind in ("objects", "volume") or (kind == "texture" and not found.thin)
    values["loss"] = "bce_dice" if overlap else "bce"
    reasons["loss"] = (
        "Dice counts each object as a whole, whatever its share of the pixels"
        if overlap
        else "edges of thin structures are uncertain, and plain cross-entropy keeps probabilities honest there"
    )


def _sides(found: Fingerprint) -> tuple[str, str] | None:
    """Two classes that are each other's mirror images by their names, such as kidney_left and kidney_right."""
    known = {shape.name.lower(): shape.name for shape in found.classes}
    for name in known:
        other = re.sub(r"(?<![a-z])left(?![a-z])", "right", name)
        if other != name and other in known:
            return known[name], known[other]
    return None

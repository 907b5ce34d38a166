"""Pictures of scored images: the panels of a report page, and one wide picture for a README."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from d2ed2q.errors import DataError
from d2ed2q.files import atomic_path
from d2ed2q.report.content import Example
from d2ed2q.report.overlays import FALSE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE, overlay, uncertainty_map
from d2ed2q.report.svg import plain_style

__all__ = ["Panel", "draw_hero", "example_panels"]

_SIDE = 440  # pixels; sharp on a phone's dense screen, and three examples stay far below the page's limit


class Panel(NamedTuple):
    """One small picture of an example."""

    caption: str
    source: str
    """``data:`` address of a PNG."""
    width: int
    height: int


def example_panels(example: Example, side: int = _SIDE) -> list[Panel]:
    """Image, prediction against ground truth, probability and uncertainty of one example.

    What lies outside the region of interest is not scored and is drawn as background, certain and empty.

    Args:
        example: what to draw.
        side: pixels of the longer side; smaller pictures keep their size.
    """
    mask, label, probability, uncertainty = _inside(example)
    grey = np.round(np.clip(probability, 0, 1) * 255).astype(np.uint8)
    pictures = {
        "Image": example.image,
        "Prediction against truth": overlay(example.image, mask, label),
        "Probability": grey,
        "Uncertainty": uncertainty_map(uncertainty),
    }
    return [_panel(caption, picture, side) for caption, picture in pictures.items()]


def _inside(example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mask, label, probability and uncertainty with everything outside the region of interest set to nothing."""
    roi = np.ones(example.label.shape, np.bool_) if example.roi is None else example.roi.astype(np.bool_)
    mask = example.mask.astype(np.bool_) & roi
    label = example.label.astype(np.bool_) & roi
    return mask, label, np.where(roi, example.probability, 0.0), np.where(roi, example.uncertainty, 0.0)


def _panel(caption: str, picture: np.ndarray, side: int) -> Panel:
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Panel(caption, source, *image.size)


def draw_hero(path: Path, examples: Sequence[Example]) -> Path:
    """Draws photograph, ground truth, prediction and uncertainty of the median example side by side.

    Args:
        path: the PNG file to write.
        examples: of a report; the one of role ``median`` is drawn, or the first if there is none.

    Returns:
        Path: ``path``.

    Raises:
        DataError: there are no examples.
        StorageError: the file could not be written.
    """
    if not examples:
        raise DataError("there is no example to draw; evaluate the run on at least one labelled image")
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    example = next((item for item in examples if item.role == "median"), examples[0])
    mask, label, _, uncertainty = _inside(example)
    pictures = {
        "photograph": example.image,
        "annotator": np.where(label, 255, 0).astype(np.uint8),
        "prediction": overlay(example.image, mask, label),
        "uncertainty": uncertainty_map(uncertainty),
    }
    crop = _bounds(example)
    with plain_style():
        height, width = (part.stop - part.start for part in crop)
        layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.01)
        figure = Figure(figsize=(12.0, 3.0 * height / width + 0.78), layout=layout, facecolor="white")
        for axes, (title, picture) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
            axes.imshow(picture[crop], cmap="gray", vmin=0, vmax=255, interpolation="lanczos")
            axes.set_title(title, loc="center", fontsize=13, color="#1f2328")
            axes.set_axis_off()
        handles = [_swatch(color) for color in (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE)]
        names = ["found", "false alarm", "missed"]
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=11, labelcolor="#1f2328")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    return path


def _bounds(example: Example) -> tuple[slice, slice]:
    """The part of the picture that holds the region of interest."""
    if example.roi is None or not example.roi.any():
        return slice(0, example.image.shape[0]), slice(0, example.image.shape[1])
    rows, columns = (np.flatnonzero(example.roi.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _swatch(color: tuple[int, int, int]) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=[part / 255 for part in color], edgecolor="#8c959f", linewidth=0.6)

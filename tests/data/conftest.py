"""Small datasets on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2ed2q.data import write_phantom_dataset

FolderMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training and two test phantoms of 96×96 pixels; not to be changed."""
    root = tmp_path_factory.mktemp("phantoms")
    write_phantom_dataset(root, 4, 2, (96, 96), seed=3)
    return root


@pytest.fixture
def make_folder(tmp_path: Path) -> FolderMaker:
    """Writes a plain folder of three images of 24×32 pixels, whose masks the test may give."""

    def make(masks: list[np.ndarray] | None = None, part: str = "", n: int = 3) -> Path:
        folder = tmp_path / part
        rng = np.random.default_rng([5, *part.encode()])  # the same picture on both sides would be refused
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(n if masks is None else len(masks)):
            mask = (rng.random((24, 32)) < 0.3).astype(np.uint8) * 255 if masks is None else masks[index]
            pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"case_{index}.png")
            Image.fromarray(mask).save(folder / "masks" / f"case_{index}.png")
        return tmp_path

    return make

"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# A loaded machine may take seconds over one example; what a test may take in all is pytest's timeout.
hypothesis.settings.register_profile("d2ed2q", deadline=None)
hypothesis.settings.load_profile("d2ed2q")
# The networks of the tests are too small for threads to help, and threads that wait for each other are very slow.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _same_random_numbers() -> Iterator[None]:
    """Every test starts from the same random numbers and leaves the global switches as they were."""
    torch.manual_seed(0)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(1)  # an engine in PyTorch sets it, and sums of another number of threads differ


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Finds a real dataset by its folder's name, or skips the test."""
    places = [Path(os.environ["D2ED2Q_DATA"])] if "D2ED2Q_DATA" in os.environ else []
    places.append(ROOT.parent / "shared" / "data")

    def find(name: str) -> Path:
        for place in places:
            if (place / name).is_dir():
                return place / name
        pytest.skip(f"the real dataset {name} is not here; set D2ED2Q_DATA to the folder that holds it")

    return find

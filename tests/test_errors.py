from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from d2ed2q.errors import _EXTRAS, missing_extra, out_of_memory
from d2ed2q.recipes.config import load_toml


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("Failed to allocate memory for requested buffer of size 4096"),
        MemoryError(),
        "MemoryError",
    ],
)
def test_what_says_that_memory_ran_out(error: RuntimeError | MemoryError | str) -> None:
    assert out_of_memory(error)


def test_numpy_says_so_too() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, np.uint8)
    assert out_of_memory(caught.value)
    assert out_of_memory(f"numpy._core._exceptions._ArrayMemoryError: {caught.value}")


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "unsupported operation: some elements of the input tensor refer to a single memory location",
        "Unsupported memory format option Preserve",
        "pin memory thread exited unexpectedly",
        "allocator was asked for the wrong device",
    ],
)
def test_other_faults_have_the_word_in_them_too(message: str) -> None:
    assert not out_of_memory(RuntimeError(message))


def test_every_package_of_an_extra_is_known_by_it() -> None:
    extras = load_toml(Path(__file__).parents[1] / "pyproject.toml")["project"]["optional-dependencies"]
    for extra, known in _EXTRAS.items():
        needed = (re.split(r"[>=<\[;]", line)[0] for line in extras[extra] if not line.startswith("d2ed2q"))
        imported = {{"scikit-image": "skimage"}.get(name, name.replace("-", "_")) for name in needed}
        assert imported == set(known)
        for package in known:
            message = str(missing_extra(ModuleNotFoundError(name=f"{package}.part")))
            assert f"d2ed2q[{extra}]" in message
            assert package in message
    assert missing_extra(ModuleNotFoundError(name="elsewhere")) is None

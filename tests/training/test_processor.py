from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_PAGES = """
import resource, sys, torch
from d2ed2q.training import keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "kept" else None)
for turn in range(40):
    if turn == 32:  # by then the holes between small pieces are large enough
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 << 20)  # 40 MiB, which are freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(way: str, **environment: str) -> tuple[str, int]:
    said = subprocess.run(
        [sys.executable, "-c", _PAGES, way],
        env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return said[0], int(said[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep what is freed")
def test_freed_memory_is_not_given_back() -> None:
    _, given_back = _faults("given back")
    answer, kept = _faults("kept")
    assert answer == "True"
    assert kept < given_back / 20
    assert _faults("kept", MALLOC_ARENA_MAX="4")[0] == "False", "the user's own choice stands"

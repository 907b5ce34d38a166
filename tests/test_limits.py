from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from d2ed2q import limits


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to a core")
def test_cores_are_those_that_the_process_is_bound_to() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); " + (
        "from d2ed2q.limits import usable_cores; print(usable_cores())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"1\n"


def test_one_core_is_not_several() -> None:
    assert [limits.cores_in_words(cores) for cores in (1, 2)] == ["1 core", "2 cores"]


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 64),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({}, 64),
    ],
)
def test_a_container_that_gets_a_share_of_the_time_has_fewer_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(limits, "_groups", lambda controller: [tmp_path])
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64), raising=False)
    assert limits.usable_cores() == cores


def test_memory_is_what_is_left_below_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 300000\nactive_file 7\n")
    monkeypatch.setattr(limits, "_groups", lambda controller: [tmp_path])
    assert limits.free_memory() == 400000  # cached files make room when it is needed
    (tmp_path / "memory.max").write_text("max\n")
    free = limits.free_memory()
    assert free is None or free > 400000

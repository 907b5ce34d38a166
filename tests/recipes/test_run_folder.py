from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from d2ed2q.errors import RunFolderError
from d2ed2q.recipes.run_folder import RunFolder


def test_a_lock_of_a_removed_folder_leaves_the_new_one_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    with run.locked():
        shutil.rmtree(run.path)
        run.path.mkdir()
        (run.path / ".lock").write_text("another's")
    assert (run.path / ".lock").read_text() == "another's"
    (run.path / ".lock").unlink()
    with run.locked(), pytest.raises(RunFolderError, match="another process"), run.locked():
        pass


def test_what_killed_writes_leave_behind_is_removed(tmp_path: Path) -> None:
    """Our own temporary files, and those of safetensors; nothing else."""
    names = (".checkpoint-a1b2c3d4.safetensors", ".tmptrFIb8", ".mine", "notes.txt")
    for name in names:
        (tmp_path / name).write_text("x")
    RunFolder(tmp_path).remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {".mine", "notes.txt"}

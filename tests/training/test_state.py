from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from d2ed2q.errors import CheckpointError, StorageError
from d2ed2q.training import load_state, load_tensors, save_state, save_tensors


def test_a_nested_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "tensor": torch.arange(6).reshape(2, 3),
        "scalar": torch.tensor(1.5),
        "bits": torch.tensor([True, False]),
        "nested": {0: {"x": torch.ones(2, dtype=torch.bfloat16)}, 7: [1, "two", None, 3.5, float("-inf")]},
        "empty": {},
    }
    save_state(tmp_path / "state.safetensors", state)
    loaded = load_state(tmp_path / "state.safetensors")
    assert torch.equal(loaded["tensor"], state["tensor"])
    assert torch.equal(loaded["scalar"], state["scalar"])
    assert loaded["bits"].dtype == torch.bool
    assert loaded["nested"][0]["x"].dtype == torch.bfloat16
    assert loaded["nested"][7] == [1, "two", None, 3.5, float("-inf")]
    assert loaded["empty"] == {}


def test_tied_tensors_can_be_saved(tmp_path: Path) -> None:
    tensor = torch.randn(3)
    save_tensors(tmp_path / "t.safetensors", {"a": tensor, "b": tensor}, {"note": "x"})
    tensors, header = load_tensors(tmp_path / "t.safetensors")
    assert torch.equal(tensors["a"], tensors["b"])
    assert header == {"note": "x"}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_off_file_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"x": torch.randn(100)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"state\.safetensors is cut off"):
        load_state(path)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights file"):
        load_state(tmp_path / "nothing")
    save_tensors(tmp_path / "other.safetensors", {"x": torch.ones(1)})
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_state(tmp_path / "other.safetensors")


def test_a_disk_that_fills_up_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"x": torch.ones(10)})
    before = path.read_bytes()
    # A limit on file size is how a full disk looks to one process; it needs a process of its own.
    script = """
import resource, signal, sys, torch
from pathlib import Path
from typing import Any
from d2ed2q.errors import StorageError
from d2ed2q.training import save_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_state(Path(sys.argv[1]), {"x": torch.ones(100_000)})
except StorageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert "the disk is full" in done.stdout
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        save_state(tmp_path / "file" / "state.safetensors", {})

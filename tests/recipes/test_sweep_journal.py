from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from d2ed2q.errors import ConfigError
from d2ed2q.recipes.sweep_journal import open_journal

HOLD = """
import sys, time
from pathlib import Path
from d2ed2q.recipes.sweep_journal import _Lock
_Lock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(600)
"""

FULL = """
import resource, sys
from pathlib import Path
import optuna
from d2ed2q.errors import StorageError
from d2ed2q.recipes.sweep_journal import open_journal
study = optuna.load_study(storage=open_journal(Path(sys.argv[1])), study_name="s")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    study.ask()
except StorageError as error:
    print(error)
"""


def study(folder: Path) -> optuna.Study:
    return optuna.create_study(storage=open_journal(folder), study_name="s", load_if_exists=True)


def test_a_killed_worker_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("search")  # a link to what is named from here would lead nowhere
    folder.mkdir()
    study(folder).ask()
    worker = subprocess.Popen([sys.executable, "-c", HOLD, "search/journal.log"], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "held\n"
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    study(folder).ask()
    assert len(study(folder).trials) == 2


def test_half_a_record_is_cut_off(tmp_path: Path) -> None:
    study(tmp_path).ask()
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    for half in (b'{"op_code":4,"worker', b"{", whole.splitlines()[-1]):
        journal.write_bytes(whole + half)
        study(tmp_path).ask()
        assert journal.read_bytes().startswith(whole + b"{")
        assert len(study(tmp_path).trials) == 2


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    study(tmp_path).ask()
    journal = tmp_path / "journal.log"
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    for damage in (b"{no record\n", b"{}\n"):
        journal.write_bytes(first + damage + b"".join(rest))
        with pytest.raises(ConfigError, match=r"journal\.log is damaged .*; restore it from a copy, or begin"):
            open_journal(tmp_path)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    study(tmp_path)
    journal = tmp_path / "journal.log"
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(journal.stat().st_size + 10)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "journal.log: the disk is full" in ended.stdout
    assert not journal.read_bytes().endswith(b"\n"), "half a record"
    study(tmp_path).ask()
    assert len(study(tmp_path).trials) == 1

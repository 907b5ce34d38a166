"""What a run tells while it goes on: ``metrics.jsonl``, TensorBoard, and a progress bar with the time left."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from d2ed2q.errors import StorageError
from d2ed2q.files import append_line, storage_error, write_text

__all__ = ["MetricsLog", "NoLog", "TrainingProgress", "read_log"]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a ``metrics.jsonl``; what follows a line that a kill cut off is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or not {"kind", "step"} <= set(row):
                break
            rows.append(row)
    return rows


class MetricsLog:
    """Rows of figures, one JSON object a line, and the same figures for TensorBoard.

    Args:
        path: the ``metrics.jsonl``.
        tensorboard: folder of the TensorBoard events, or None for none.
        resume_step: rows of later steps than this are dropped, because the resumed run writes them again.
        open_epoch: whether the run goes on inside an epoch, which was stopped after its last step, perhaps: then it
            writes the rows of that very step again.

    Attributes:
        on_failure: told of a row that could not be written, in place of an error.
    """

    on_failure: Callable[[StorageError], None] | None = None

    def __init__(
        self, path: Path, tensorboard: Path | None = None, resume_step: int = 0, open_epoch: bool = False
    ) -> None:
        self.path = path
        # A run resumed at a phase's first step writes the beginning of that phase again.
        rows = [
            row
            for row in (read_log(path) if resume_step else [])
            if row["step"] < resume_step or (row["step"] == resume_step and row["kind"] != "phase" and not open_epoch)
        ]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._writer: Any = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            earlier = tensorboard.is_dir() and any(tensorboard.iterdir())
            try:
                self._writer = SummaryWriter(str(tensorboard), purge_step=resume_step + 1 if earlier else None)
            except OSError as error:
                raise storage_error(tensorboard, error) from error

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Writes one row.

        Args:
            kind: ``phase``, ``train``, ``validation`` or ``pace``.
            step: optimizer steps done since the beginning of the run.
            **values: figures and names of the row.

        Raises:
            StorageError: the row could not be written, and ``on_failure`` is not told instead.
        """
        try:
            append_line(self.path, json.dumps({"kind": kind, "step": step, **values}))
            if self._writer is not None:
                for name, value in values.items():
                    if isinstance(value, float):
                        self._scalar(f"{kind}/{name}", value, step)
        except StorageError as error:
            if self.on_failure is None:
                raise
            self.on_failure(error)

    def _scalar(self, name: str, value: float, step: int) -> None:
        try:
            self._writer.add_scalar(name, value, step)
        except OSError as error:  # its writing thread keeps the error, and gives it to the next caller
            raise storage_error(self.path.parent, error) from error

    def close(self) -> None:
        """Flushes what TensorBoard holds back."""
        if self._writer is not None:
            # Whatever could not be written is in metrics.jsonl, or the disk is full and that has been said.
            with contextlib.suppress(OSError):
                self._writer.close()


class NoLog(MetricsLog):
    """Writes nothing: of several processes only the first keeps a log."""

    def __init__(self) -> None:
        self._writer = None

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Leaves the row out."""


class TrainingProgress:
    """A progress bar over all steps of a run; silent where the console is not a terminal."""

    def __init__(self, total: int, done: int = 0, console: Console | None = None, shown: bool = True) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
            transient=True,
        )
        self._task = self._progress.add_task("", total=total, completed=done)

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, description: str, total: int) -> None:
        """One more step is done, of so many that there are by now."""
        self._progress.update(self._task, advance=1, total=total, description=description)

"""Where tables are printed, and how things are counted in words."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

__all__ = ["counted", "show"]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leaves it to the command line: Rich would end with exit code 1."""
        raise BrokenPipeError


def counted(number: int, what: str) -> str:
    """So many of something, in words: "1 mask", "2 masks"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def show(*tables: Table | str) -> None:
    """Prints tables and lines on the terminal; wide enough not to be cut where the output is a file."""
    console = _Console()
    if not console.is_terminal:
        console = _Console(width=160)
    for table in tables:
        console.print(table, markup=False, highlight=False)

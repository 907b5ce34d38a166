"""The pages of the documentation, and what is in their fenced blocks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[tuple[int, str]]:
    """Line number and text of all fenced blocks of one language."""
    text = text_of(name)
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match.group(1)) for match in found]


def command_lines(name: str) -> list[str]:
    """The commands of a page's shell blocks, as they are written."""
    lines = [line for _, text in blocks(name, "sh") for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if shlex.split(line, comments=True)]


def commands(name: str) -> list[list[str]]:
    """The same, split into words."""
    return [shlex.split(line, comments=True) for line in command_lines(name)]

"""The command line: finds the verb, reads its settings, and says in one line what went wrong."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from d2ed2q.errors import ConfigError, D2ED2QError, Interrupted, missing_extra, out_of_memory
from d2ed2q.verbs import VERBS, speaks

__all__ = ["main"]

_HELP = """usage: d2ed2q VERB [OPTIONS]

An ensemble of segmentation networks in fewer bytes than one of them: train, quantize to a few bits, trust its doubt.

verbs:
{verbs}

d2ed2q VERB --help shows a verb's options; --config FILE.toml sets any of them (of serve: the node's).
Research use only; not a medical device.
"""


def _overview() -> str:
    lines = []
    for name, (settings, _) in VERBS.items():
        lines.append(f"  {name:<16} {(settings.__doc__ or '').strip().splitlines()[0]}")
    return _HELP.format(verbs="\n".join(lines))


def _parse(name: str, settings: type[Any], arguments: Sequence[str]) -> Any:
    """Settings from a TOML file (``--config``), overridden by the command line."""
    rest = list(arguments)
    values: dict[str, Any] = {}
    own = any(field.name == "config" for field in dataclasses.fields(settings))  # then the file is the verb's to read
    for index, argument in enumerate([] if own else rest):
        if argument == "--config" or argument.startswith("--config="):
            from d2ed2q.recipes.config import read_values

            inline = argument.partition("=")[2]
            if not inline and index + 1 == len(rest):
                raise ConfigError("--config needs the path of a TOML file")
            path = Path(inline or rest[index + 1])
            del rest[index : index + (1 if inline else 2)]
            values = read_values(path, settings)
            break
    rest = _spelled_out(rest, settings)
    options: dict[str, Any] = {"prog": f"d2ed2q {name}", "args": rest}
    if values:
        # Not checked yet: file and command line count only together.
        default = object.__new__(settings)
        for field in dataclasses.fields(settings):
            fallback = tyro.MISSING_NONPROP if field.default is dataclasses.MISSING else field.default
            object.__setattr__(default, field.name, values.get(field.name, fallback))
        options["default"] = default
    return tyro.cli(settings, **options)


def _spelled_out(arguments: Sequence[str], settings: type[Any]) -> list[str]:
    """Lets what is true, false or not set be given as ``--random`` and ``--no-random``, like any other switch."""
    flags: dict[str, list[str]] = {}
    for field in dataclasses.fields(settings):
        if field.type == "bool | None":
            name = field.name.replace("_", "-")
            flags |= {f"--{name}": [f"--{name}", "True"], f"--no-{name}": [f"--{name}", "False"]}
    words: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        spelled = following in ("True", "False", "None")
        words += [argument] if spelled else flags.get(argument, [argument])
    return words


def _choose(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    for name in VERBS:
        words = name.split()
        if list(arguments[: len(words)]) == words:
            return name, arguments[len(words) :]
    import difflib

    near = difflib.get_close_matches(arguments[0], [name.split()[0] for name in VERBS], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see d2ed2q --help"
    whole = [name for name in VERBS if name.split()[0] == arguments[0]]
    if whole:
        hint = f"the verb is: {' or '.join(f'd2ed2q {name}' for name in whole)}"
    raise ConfigError(f"unknown verb {arguments[0]!r}; {hint}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Returns:
        int: 0; 1 where some images were left out or a self-test failed; 2 after bad input (one line on stderr, no
        traceback); 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):  # names of files may be anything, and a terminal may not know it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = _run(arguments)
        sys.stdout.flush()  # here, where it is known what is done if it cannot be written
        return code
    except D2ED2QError as error:
        if speaks():
            print(f"d2ed2q: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        known = missing_extra(error)
        if known is None:
            raise
        print(f"d2ed2q: {known}", file=sys.stderr)
        return known.exit_code
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            print(
                "d2ed2q: there is not enough memory; take smaller images (--scale, --resize), smaller windows or "
                "fewer learners, or a machine with more",
                file=sys.stderr,
            )
            return D2ED2QError.exit_code
        # Of several processes that train together, each one loses the one that ended.
        if not any(sign in str(error) for sign in ("onnection", "gloo", "NCCL")):
            raise
        if speaks():
            print(
                "d2ed2q: a process that trains with this one is gone; start all of them with --resume", file=sys.stderr
            )
        return D2ED2QError.exit_code
    except KeyboardInterrupt:
        print("d2ed2q: stopped", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # whoever read our output has seen enough
        _silence()
        return 0
    except OSError as error:
        said = f"{error}; check the path and its permissions"
        if error.filename is None:  # then it was the output that could not be written
            _silence()
            said = f"cannot write the output: {error.strerror or error}; make room, or send it elsewhere"
        print(f"d2ed2q: {said}", file=sys.stderr)
        return D2ED2QError.exit_code


def _run(arguments: Sequence[str]) -> int:
    halves = [name.split()[0] for name in VERBS if " " in name]
    if not arguments or next(word for word in (*arguments, "") if word not in halves) in ("-h", "--help"):
        print(_overview(), end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("d2ed2q"))
        return 0
    name, rest = _choose(arguments)
    settings, verb = VERBS[name]
    return verb(_parse(name, settings, rest)) or 0


def _silence() -> None:
    """Lets what is left of the output go nowhere: Python would try to write it once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    raise SystemExit(main())

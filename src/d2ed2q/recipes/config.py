"""Settings ↔ TOML: unknown keys and wrong types are errors that say what was meant."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from d2ed2q.errors import ConfigError
from d2ed2q.files import write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "convert",
    "first_difference",
    "load_toml",
    "read_values",
    "require_kept",
    "settings_from",
    "write_settings",
    "write_values",
]

EXPERIMENT = "experiment"
_OF_ONE_FILE = ("lines", "superseded_by", "title")  # what builds on it is called otherwise, and may be better


def load_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file, and the one that it builds on.

    With ``base = "other.toml"`` in its table ``[experiment]``, every key that it does not set itself comes from that
    file, which lies beside it; keys of ``[experiment]`` likewise, but for those that
    are of one file: ``lines``, ``superseded_by`` and ``title``.

    Raises:
        ConfigError: no such file, not TOML, or files that build on each other.
    """
    return _load_toml(path, ())


def _load_toml(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise ConfigError(f"{path} builds on itself")
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    own = table.get(EXPERIMENT)
    if not isinstance(own, dict) or not isinstance(own.get("base"), str):
        return table
    base = _load_toml(path.parent / own["base"], (*above, path))
    above_it = base.get(EXPERIMENT, {})
    if not isinstance(above_it, dict):
        raise ConfigError(f"{path.parent / own['base']}: {EXPERIMENT} is a table, [{EXPERIMENT}]")
    inherited = {key: value for key, value in above_it.items() if key not in _OF_ONE_FILE}
    return {**base, **table, EXPERIMENT: {**inherited, **own}}


def read_values(path: Path, settings: type) -> dict[str, Any]:
    """Reads a TOML file whose keys are fields of a settings class.

    Returns:
        dict: the values that the file sets, converted to the fields' types.

    Raises:
        ConfigError: no such file, not TOML, an unknown key or a value of the wrong type.
    """
    table = load_toml(path)
    if isinstance(table.get(EXPERIMENT), dict):  # for d2ed2q experiment
        del table[EXPERIMENT]
    return convert(table, settings, str(path))


def convert(table: dict[str, Any], settings: type, origin: str) -> dict[str, Any]:
    """Checks and converts plain values for the fields of a settings class.

    Raises:
        ConfigError: an unknown key or a value of the wrong type; the message names ``origin``.
    """
    hints = typing.get_type_hints(settings)
    values = {}
    for key, value in table.items():
        if key not in hints:
            near = difflib.get_close_matches(key.replace("-", "_"), hints, n=1, cutoff=0.65)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(sorted(hints))}"
            raise ConfigError(f"{origin}: unknown key {key!r}; {hint}")
        try:
            values[key] = msgspec.convert(value, hints[key], dec_hook=_decode)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{origin}: {key} = {value!r} is of the wrong type: {error}") from error
    return values


def _decode(kind: type, value: Any) -> Any:
    if kind is Path or issubclass(kind, Path):
        if not isinstance(value, str):
            raise ValueError("expected a path as a string")
        return Path(value)
    raise NotImplementedError


def settings_from(path: Path, settings: type[Any]) -> Any:
    """Reads a complete settings object from a TOML file.

    Raises:
        ConfigError: as :func:`read_values`, or a required key is missing.
    """
    values = read_values(path, settings)
    for field in dataclasses.fields(settings):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise ConfigError(f"{path}: the key {field.name!r} is missing")
    return settings(**values)


def first_difference(one: Any, other: Any, free: Sequence[str]) -> tuple[str, Any, Any] | None:
    """The first field in which two settings of one kind differ.

    Args:
        one: settings.
        other: settings.
        free: names of fields that may differ.

    Returns:
        tuple: its name, and the value in either; None where there is none.
    """
    for field in dataclasses.fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name not in free and ours != theirs:
            return field.name, ours, theirs
    return None


def require_kept(path: Path, begun: Any, given: Mapping[str, Any]) -> None:
    """Checks that what is given to a resumed run is what it was begun with.

    Args:
        path: the run's folder, for the message.
        begun: the settings that the run was begun with.
        given: by name, what is given now.

    Raises:
        ConfigError: a value is another one.
    """
    for name, value in given.items():
        if value != getattr(begun, name):
            raise ConfigError(
                f"{name} is {value} here, but {path} was begun with {getattr(begun, name)}; a resumed run keeps its "
                f"settings"
            )


def write_settings(path: Path, settings: Any) -> None:
    """Writes a settings object as TOML; fields that are None are left out, because TOML has no null.

    Raises:
        StorageError: the file could not be written.
    """
    write_values(path, {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)})


def write_values(path: Path, values: Mapping[str, Any]) -> None:
    """Writes settings by name, as :func:`write_settings` does.

    Raises:
        StorageError: the file could not be written.
    """
    given = {name: value for name, value in values.items() if value is not None}
    table = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    write_text(path, tomli_w.dumps(table))

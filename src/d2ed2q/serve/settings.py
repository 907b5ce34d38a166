"""The settings of a node: one TOML file, checked as a whole before anything is opened."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from d2ed2q.errors import ConfigError
from d2ed2q.recipes.config import load_toml
from d2ed2q.serve.settings_check import check_settings

__all__ = [
    "DicomSettings",
    "HttpSettings",
    "MqttSettings",
    "NodeSettings",
    "PeerSettings",
    "QueueSettings",
    "TlsSettings",
    "WatchSettings",
    "read_node_settings",
]


@dataclass(frozen=True)
class TlsSettings:
    """Certificates of one side of a connection; PEM files.

    Attributes:
        certificate: of this node, with what leads to its authority.
        key: its private key.
        authority: certificates that the other side's must come from; of a server this makes clients show theirs.
    """

    certificate: Path
    key: Path
    authority: Path | None = None


@dataclass(frozen=True)
class HttpSettings:
    """The HTTP door.

    Attributes:
        host: address to listen at.
        port: 0 takes a free one.
        tokens: SHA-256 of every bearer token that may be used, in hexadecimal, by the name of who has it. Without any,
            everybody may ask, and then ``host`` must be this machine.
        tls: certificates; None is plain HTTP.
        largest_mb: size of a request.
        per_minute: requests of one client.
        page: whether there is a web page at ``/``.
        names: further host names that browsers may ask the node by where nobody needs a token.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    tokens: dict[str, str] = field(default_factory=dict)
    tls: TlsSettings | None = None
    largest_mb: int = 64
    per_minute: int = 600
    page: bool = True
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class PeerSettings:
    """Where results are sent: a DICOM application entity, or a STOW-RS service.

    Attributes:
        ae_title: of the application entity.
        host: its address.
        port: its port.
        tls: certificates for it; None is plain DICOM.
        stow: address of a STOW-RS service, such as ``https://pacs/dicom-web/studies``, in place of the above.
        token_file: file with the service's bearer token.
        authority: certificates that the service's must come from; None takes those of the system.
    """

    ae_title: str = ""
    host: str = ""
    port: int = 0
    tls: TlsSettings | None = None
    stow: str = ""
    token_file: Path | None = None
    authority: Path | None = None


@dataclass(frozen=True)
class DicomSettings:
    """The DICOM door.

    Attributes:
        ae_title: of this node.
        host: address to listen at.
        port: 0 takes a free one.
        allowed: application entity titles that may send; none lets every one.
        tls: certificates; with an authority, senders must show theirs.
        segmentation: ``binary`` sends masks, ``fractional`` probabilities.
        overlay: whether a picture of the result is sent too.
        largest_mb: size of an image.
        associations: at the same time.
        peers: where results go, by name.
    """

    ae_title: str = "D2ED2Q"
    host: str = "127.0.0.1"
    port: int = 11112
    allowed: tuple[str, ...] = ()
    tls: TlsSettings | None = None
    segmentation: Literal["binary", "fractional"] = "binary"
    overlay: bool = True
    largest_mb: int = 256
    associations: int = 16
    peers: dict[str, PeerSettings] = field(default_factory=dict)


@dataclass(frozen=True)
class MqttSettings:
    """The MQTT broker that is told what happens; MQTT 5.

    Attributes:
        host: of the broker.
        port: of the broker.
        topic: prefix of all topics: ``<topic>/status`` and ``<topic>/results``.
        user: name at the broker.
        password_file: file with the password.
        tls: certificates; None is plain MQTT.
    """

    host: str
    port: int = 1883
    topic: str = "d2ed2q"
    user: str = ""
    password_file: Path | None = None
    tls: TlsSettings | None = None


@dataclass(frozen=True)
class WatchSettings:
    """A folder that cameras write into.

    Attributes:
        folder: that is watched; results of ``photo.png`` go to ``photo.png_mask.png`` and so on.
        results: where they go; None puts them into ``results/`` in the folder.
        failed: where images go that cannot be segmented, with the reason; None takes ``failed/`` in the folder.
        settled_seconds: a file is finished when it has not changed for so long.
    """

    folder: Path
    results: Path | None = None
    failed: Path | None = None
    settled_seconds: float = 2.0


@dataclass(frozen=True)
class QueueSettings:
    """The queue behind all doors.

    Attributes:
        waiting: jobs that may wait; more are sent away until there is room.
        attempts: how often a job is begun before it is given up.
        keep_days: how long results stay on the node; days count on which it runs.
        delivery_hours: how long a peer that does not answer is tried.
    """

    waiting: int = 256
    attempts: int = 3
    keep_days: float = 7.0
    delivery_hours: float = 72.0


@dataclass(frozen=True)
class NodeSettings:
    """Everything of a node.

    Attributes:
        state: folder of the queue, the results and the audit log.
        name: of the node, in results and messages.
        engine: that runs the model.
        threads: cores; None takes all.
        refuse: images whose doubt is above this are refused; None takes the model's own bound, if it has one.
        http: the HTTP door; None is closed, and so it is with the next ones.
        dicom: the DICOM door.
        mqtt: the broker.
        watch: watched folders.
        queue: the queue.
    """

    state: Path
    name: str = "d2ed2q"
    engine: Literal["auto", "openvino", "onnxruntime", "torch"] = "auto"
    threads: int | None = None
    refuse: float | None = None
    http: HttpSettings | None = None
    dicom: DicomSettings | None = None
    mqtt: MqttSettings | None = None
    watch: tuple[WatchSettings, ...] = ()
    queue: QueueSettings = field(default_factory=QueueSettings)


def read_node_settings(path: Path) -> NodeSettings:
    """Reads and checks the file of a node.

    Raises:
        ConfigError: no such file, an unknown key, a value that cannot be, or a file of it that is not there.
    """
    settings: NodeSettings = _built(load_toml(path), NodeSettings, str(path), "")
    check_settings(settings, str(path))
    return settings


def _built(table: Any, kind: type[Any], origin: str, place: str) -> Any:
    """Builds a dataclass of a table, and those within it; the first thing that is wrong is named by its place."""
    if not isinstance(table, dict):
        raise ConfigError(f"{origin}: {place or 'it'} must be a table")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        where = f"{place}.{key}" if place else key
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(sorted(hints))}"
            raise ConfigError(f"{origin}: unknown key {where!r}; {hint}")
        values[key] = _value(value, hints[key], origin, where)
    for entry in dataclasses.fields(kind):
        needed = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if needed and entry.name not in values:
            raise ConfigError(f"{origin}: the key {f'{place}.{entry.name}' if place else entry.name!r} is missing")
    return kind(**values)


def _value(value: Any, hint: Any, origin: str, where: str) -> Any:
    inner = [part for part in typing.get_args(hint) if part is not type(None)]
    if dataclasses.is_dataclass(hint):
        return _built(value, typing.cast("type[Any]", hint), origin, where)
    if len(inner) == 1 and dataclasses.is_dataclass(inner[0]) and typing.get_origin(hint) is not tuple:
        return _built(value, typing.cast("type[Any]", inner[0]), origin, where)
    if typing.get_origin(hint) is tuple and inner and dataclasses.is_dataclass(inner[0]):
        if not isinstance(value, list):
            raise ConfigError(f"{origin}: {where} is a list of tables: [[{where}]]")
        return tuple(
            _built(v, typing.cast("type[Any]", inner[0]), origin, f"{where}[{index}]") for index, v in enumerate(value)
        )
    if typing.get_origin(hint) is dict and dataclasses.is_dataclass(inner[-1]):
        if not isinstance(value, dict):
            raise ConfigError(f"{origin}: {where} is a table of tables: [{where}.NAME]")
        return {
            name: _built(v, typing.cast("type[Any]", inner[-1]), origin, f"{where}.{name}") for name, v in value.items()
        }
    try:
        return msgspec.convert(value, hint, dec_hook=lambda kind, text: Path(text) if issubclass(kind, Path) else text)
    except (msgspec.ValidationError, TypeError) as error:
        raise ConfigError(f"{origin}: {where} = {value!r} is of the wrong type: {error}") from error

"""What types cannot say of a node's settings: values that cannot be, or not together, and files that are not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from d2ed2q.errors import ConfigError
from d2ed2q.serve.access import LOCAL
from d2ed2q.serve.database import MQTT_PEER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from d2ed2q.serve.settings import (
        DicomSettings,
        HttpSettings,
        MqttSettings,
        NodeSettings,
        PeerSettings,
        TlsSettings,
        WatchSettings,
    )

    Need = Callable[[bool, str], None]

__all__ = ["check_settings"]

_ALL = ("0.0.0.0", "::")
_MOST = 1_000_000
_AE_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")  # PS3.5 6.2: 16 characters, no backslash, no control characters


def check_settings(settings: NodeSettings, origin: str) -> None:
    """Checks settings as a whole.

    Args:
        settings: built of a file.
        origin: what the file is called in messages.

    Raises:
        ConfigError: a value that cannot be, or a file that is not there.
    """

    def need(good: bool, message: str) -> None:
        if not good:
            raise ConfigError(f"{origin}: {message}")

    need(bool(re.fullmatch(r"[\w.-]{1,64}", settings.name)), "name takes letters, digits, dots and hyphens")
    need(settings.threads is None or 1 <= settings.threads <= 1024, "threads is a number from 1 to 1024")
    need(settings.refuse is None or 0 <= settings.refuse <= 1, "refuse lies between 0 and 1")
    queue = settings.queue
    _check_counts(need, "queue", waiting=queue.waiting, attempts=queue.attempts)
    need(queue.keep_days >= 0 and queue.delivery_hours > 0, "queue.keep_days and queue.delivery_hours are not negative")
    need(bool(settings.http or settings.dicom or settings.watch), "it has no door: add [http], [dicom] or [[watch]]")
    if settings.http is not None:
        _check_http(need, settings.http)
    if settings.dicom is not None:
        _check_dicom(need, settings.dicom)
    if settings.http is not None and settings.dicom is not None:
        hosts, port = (settings.http.host, settings.dicom.host), settings.http.port
        met = hosts[0] == hosts[1] or any(host in _ALL for host in hosts)
        need(port == 0 or port != settings.dicom.port or not met, f"http.port and dicom.port are both {port}")
    if settings.mqtt is not None:
        _check_mqtt(need, settings.mqtt)
    _check_folders(need, settings.watch)


def _check_counts(need: Need, place: str, **counts: int) -> None:
    for key, count in counts.items():
        need(1 <= count <= _MOST, f"{place}.{key} is {count}, not from 1 to {_MOST:,}")


def _check_http(need: Need, http: HttpSettings) -> None:
    _check_door(need, "http", http.host, http.port, http.tls)
    _check_counts(need, "http", largest_mb=http.largest_mb, per_minute=http.per_minute)
    for who, digest in http.tokens.items():
        need(
            bool(re.fullmatch(r"[0-9a-f]{64}", digest)),
            f"http.tokens.{who} is not a SHA-256 in hexadecimal; make one with: d2ed2q serve --new-token",
        )
    need(
        bool(http.tokens) or http.host in LOCAL or (http.tls is not None and http.tls.authority is not None),
        f"http.host is {http.host}, which others can reach, but nobody is asked who they are; add [http.tokens], "
        f"or a tls.authority that clients' certificates must come from",
    )


def _check_dicom(need: Need, dicom: DicomSettings) -> None:
    _check_door(need, "dicom", dicom.host, dicom.port, dicom.tls)
    _check_counts(need, "dicom", largest_mb=dicom.largest_mb, associations=dicom.associations)
    for title in (dicom.ae_title, *dicom.allowed):
        _check_title(need, "dicom.ae_title" if title is dicom.ae_title else "dicom.allowed", title)
    for name, peer in dicom.peers.items():
        need(name != MQTT_PEER, f"dicom.peers.{name}: the node calls the MQTT broker so; take another name")
        _check_peer(need, f"dicom.peers.{name}", peer)


def _check_mqtt(need: Need, mqtt: MqttSettings) -> None:
    _check_host(need, "mqtt", mqtt.host)
    need(0 < mqtt.port < 65536, f"mqtt.port is {mqtt.port}")
    need(bool(re.fullmatch(r"[^#+\x00]{1,200}", mqtt.topic)), "mqtt.topic has none of the characters # and +")
    need(
        mqtt.password_file is None or bool(mqtt.user),
        "mqtt.password_file is not used without mqtt.user; name the user too",
    )
    _check_files(need, "mqtt", mqtt.tls, mqtt.password_file)


def _check_folders(need: Need, folders: Sequence[WatchSettings]) -> None:
    watched = {watch.folder.resolve(): index for index, watch in enumerate(folders)}
    written: dict[Path, int] = {}
    for index, watch in enumerate(folders):
        need(watch.folder.is_dir(), f"watch[{index}].folder: there is no folder {watch.folder}")
        for key, aside in (("results", watch.results), ("failed", watch.failed)):
            place = aside or watch.folder / key
            taken = watched.get(place.resolve())  # whatever it is written as
            need(
                taken is None,
                f"watch[{index}].{key} is {place}, the folder that watch[{taken}] watches: what the node writes there "
                f"it would take for new images; name another folder",
            )
        results = watch.results or watch.folder / "results"
        other = written.setdefault(results.resolve(), index)
        need(
            other == index,
            f"watch[{index}].results is {results}, where the results of watch[{other}] go too: images of equal names "
            f"would overwrite each other's; name another folder",
        )
        need(watch.settled_seconds >= 0, f"watch[{index}].settled_seconds is not negative")


def _check_door(need: Need, place: str, host: str, port: int, tls: TlsSettings | None) -> None:
    _check_host(need, place, host)
    need(0 <= port < 65536, f"{place}.port is {port}, not from 0 to 65535")
    _check_files(need, place, tls, None)


def _check_peer(need: Need, place: str, peer: PeerSettings) -> None:
    entity = bool(peer.host)
    need(entity != bool(peer.stow), f"{place} needs either host, port and ae_title, or stow")
    if entity:
        _check_host(need, place, peer.host)
        need(0 < peer.port < 65536, f"{place}.port is {peer.port}, not from 1 to 65535")
        _check_title(need, f"{place}.ae_title", peer.ae_title)
        need(
            peer.authority is None and peer.token_file is None,
            f"{place}: authority and token_file are of stow, and not used for a host; name its authority, with a "
            f"certificate of this node, in [{place}.tls]",
        )
    else:
        need(_is_address(peer.stow), f"{place}.stow is no address: {peer.stow}")
        need(
            peer.stow.startswith("https:") or (peer.tls is None and peer.authority is None),
            f"{place}.stow is {peer.stow}, where no certificates are shown; begin it with https, or leave out tls and "
            f"authority",
        )
    _check_files(need, place, peer.tls, peer.token_file, peer.authority)


def _check_title(need: Need, place: str, title: str) -> None:
    good = bool(_AE_TITLE.fullmatch(title)) and not title.isspace()
    need(good, f"{place}: {title!r} is no application entity title (1 to 16 characters, not all of them spaces)")


def _check_host(need: Need, place: str, host: str) -> None:
    need(_is_host(host), f"{place}.host is {host!r}, which is neither a name nor an address of a machine")


def _is_host(host: str) -> bool:
    """Whether a host can be looked up; Python encodes names so before it does (UnicodeError)."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return bool(re.fullmatch(r"[^\s\x00-\x1f\x7f/@?#]+", host))


def _is_address(stow: str) -> bool:
    try:
        parts = urlsplit(stow)
        port = parts.port
    except ValueError:
        return False
    good = parts.scheme in ("http", "https") and parts.path.startswith("/") and port != 0
    return good and _is_host(parts.hostname or "")


def _check_files(need: Need, place: str, tls: TlsSettings | None, *others: Path | None) -> None:
    files = (*others, *((tls.certificate, tls.key, tls.authority) if tls is not None else ()))
    for file in files:
        need(file is None or file.is_file(), f"{place}: there is no file {file}")

"""Sending results to one peer: by C-STORE (PS3.4 B) or STOW-RS (PS3.18 10.5)."""

from __future__ import annotations

import io
import json
import secrets
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import replace

import httpx2
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE

from d2ed2q.errors import ConfigError, D2ED2QError
from d2ed2q.serve.settings import PeerSettings
from d2ed2q.serve.tls import client_context
from d2ed2q.serve.worker import whereabouts

__all__ = ["PeerError", "send_by_c_store", "send_by_stow", "stow_context"]

_SEGMENTATION, _CAPTURE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.7"
_FAILED, _INSTANCE, _REASON = "00081198", "00081155", "00081197"  # FailedSOPSequence and what it has of each
_DUPLICATE = 0x0111  # the peer has an instance of this UID (PS3.7 C.5.3): nothing is gained by sending it for days
_TIMEOUT = 30.0
_LONGEST_ANSWER = 1 << 20


class PeerError(Exception):
    """A peer cannot be reached, or takes nothing at the moment.

    Attributes:
        answered: what it said of files before it went away, as the functions here return it.
    """

    def __init__(self, message: str, answered: Mapping[str, str | None] | None = None) -> None:
        super().__init__(message)
        self.answered = dict(answered or {})


def send_by_c_store(peer: PeerSettings, own_title: str, files: Mapping[str, bytes]) -> dict[str, str | None]:
    """Sends files in one association.

    Returns:
        dict: of each file why it was not taken, or None.

    Raises:
        PeerError: there is no association, or none any more, or it is not answered in.
    """
    where = f"{peer.ae_title} at {peer.host}:{peer.port}"
    entity = AE(own_title)
    for uid in (_SEGMENTATION, _CAPTURE):
        entity.add_requested_context(uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _TIMEOUT
    try:
        arguments = {} if peer.tls is None else {"tls_args": (client_context(peer.tls), peer.host)}
        association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title, **arguments)  # type: ignore[arg-type]
    except (D2ED2QError, OSError, ValueError) as error:  # a certificate that is being renewed, most likely
        raise PeerError(f"{where} cannot be asked: {error}") from error
    if not association.is_established:
        why = "refused the association" if association.is_rejected else "cannot be reached"
        raise PeerError(f"{where} {why}")
    outcome: dict[str, str | None] = {}
    try:
        for name, data in files.items():
            try:
                status = association.send_c_store(pydicom.dcmread(io.BytesIO(data)))
            except Exception as error:  # the association broke, the peer takes no such class, the file has odd headers
                if not association.is_established:
                    raise PeerError(f"{where} has ended the association", outcome) from error
                outcome[name] = whereabouts(error)  # without the message, which may quote them
                continue
            code = status.get("Status")
            if code is None:
                raise PeerError(f"{where} does not answer", outcome)
            taken = code in (0, _DUPLICATE) or code & 0xF000 == 0xB000
            outcome[name] = None if taken else f"status 0x{code:04X}"
    finally:
        association.release()
    return outcome


def send_by_stow(
    peer: PeerSettings, files: Mapping[str, bytes], context: ssl.SSLContext | bool
) -> dict[str, str | None]:
    """Sends files of one image in one STOW-RS request.

    Returns:
        dict: of each file why it was not taken, or None.

    Raises:
        PeerError: the service cannot be reached.
    """
    boundary = secrets.token_hex(16)
    parts = [
        f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + data + b"\r\n" for data in files.values()
    ]
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": "application/dicom+json",
    }
    try:
        if peer.token_file is not None:
            headers["Authorization"] = f"Bearer {peer.token_file.read_text(encoding='utf-8').strip()}"
        answer = httpx2.post(
            peer.stow, content=b"".join(parts) + f"--{boundary}--\r\n".encode(), headers=headers, timeout=_TIMEOUT,
            verify=context,
        )  # fmt: skip
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise PeerError(f"{peer.stow} cannot be reached: {error}") from error
    except ValueError as error:  # a token that is no text, or none that a header can hold; it is not quoted
        raise PeerError(f"{peer.stow} cannot be asked: {whereabouts(error)}") from error
    if answer.status_code == 200:
        return dict.fromkeys(files)
    if answer.status_code not in (202, 409):
        return dict.fromkeys(files, f"HTTP {answer.status_code}")
    # 202: some were taken, or all of them with a warning; 409: none. The answer says which (PS3.18 10.5.3).
    failed = dict(_refused(answer.content))
    unnamed = None if answer.status_code == 202 else "HTTP 409"
    return {name: failed.get(_instance(data), unnamed) for name, data in files.items()}


def _instance(data: bytes) -> str:
    return str(pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).get("SOPInstanceUID", ""))


def _refused(answer: bytes) -> Iterator[tuple[str, str | None]]:
    """Instances that a service did not take, and why, from its answer (PS3.18 10.5.3.1.1); None where it has them."""
    try:
        found = json.loads(answer[:_LONGEST_ANSWER])
        found = found[0] if isinstance(found, list) else found
        entries = found.get(_FAILED, {}).get("Value", [])
        for entry in entries:
            reason = int(entry.get(_REASON, {}).get("Value", [0])[0])
            why = None if reason == _DUPLICATE else f"failure reason 0x{reason:04X}"
            yield str(entry[_INSTANCE]["Value"][0]), why
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return  # not what the standard says; what was read up to here counts


def stow_context(peer: PeerSettings) -> ssl.SSLContext | bool:
    """How a STOW-RS service's certificate is checked; True as the system does.

    Raises:
        ConfigError: certificates that cannot be used.
    """
    if peer.tls is not None:
        return client_context(replace(peer.tls, authority=peer.tls.authority or peer.authority))
    if peer.authority is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(peer.authority))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the authority {peer.authority} cannot be used: {error}; it is a PEM file") from error

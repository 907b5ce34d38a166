"""The bundle (``.d2q``): one file that holds a model and all that is known of it. The specification is docs/bundle.md.

A bundle is a ZIP archive without compression of its own; large parts are gzip streams inside. The archive's comment is
the SHA-256 of every byte before it, so that no bit of the file can change unseen; the manifest has the SHA-256 of
each part. Nothing in it is code, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from d2ed2q.deploy.manifest import Manifest, Part
from d2ed2q.deploy.wire import has_external_data
from d2ed2q.errors import BundleError, StorageError
from d2ed2q.files import atomic_path

__all__ = ["PARTS", "Bundle", "is_bundle", "read_bundle", "write_bundle"]

MANIFEST = "manifest.json"
MODEL, SAMPLE_INPUT, SAMPLE_OUTPUT = "model.onnx", "sample_input.npy", "sample_output.npy"
METADATA, CARD = "metadata.json", "model_card.md"
PARTS = (MODEL, SAMPLE_INPUT, SAMPLE_OUTPUT, METADATA, CARD)
"""Names of all parts but the manifest; there are no others."""

_DIGEST = 64  # hexadecimal digits of a SHA-256
_LARGEST_PART = 2**31  # what a protocol buffer, and so an ONNX graph, may have
_LARGEST_MANIFEST = 2**22
_LARGEST_FILE = 2**31  # so that no ZIP64 is needed
_ZIP64 = 20  # bytes of what stands before that record in archives whose list is elsewhere
_END = 22  # bytes of the record that a ZIP archive ends with, before its comment
_LARGEST_LIST = 2**12  # bytes of the archive's list of its few entries
_DEFLATE_LIMIT = 1032  # no deflate stream grows by more than this
_MEMBER = 2**17  # bytes of a part that are compressed together
_GZIP = 31  # zlib's word for a gzip stream with the largest window


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked.

    Attributes:
        path: where it came from.
        manifest: what it says of itself.
        parts: the uncompressed parts by name.
        sha256: of the whole file.
        size: of the file, in bytes.
    """

    path: Path
    manifest: Manifest
    parts: Mapping[str, bytes]
    sha256: str
    size: int

    @property
    def model(self) -> bytes:
        """The graph with its weights, as ONNX."""
        return self.parts[MODEL]

    @property
    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """A made-up image, uint8 ``*spatial×C``, and the probabilities expected for it, float32 ``(K+1)×C×*spatial``.

        The probabilities are stored in steps of 1/255.

        Raises:
            BundleError: the parts are no such arrays.
        """
        try:
            image, expected = (
                np.load(io.BytesIO(self.parts[name]), allow_pickle=False) for name in (SAMPLE_INPUT, SAMPLE_OUTPUT)
            )
        except Exception as error:  # NumPy's reader raises nearly anything on a hostile header
            raise BundleError(f"{self.path}: its sample is damaged ({error}); export it again") from error
        given, output = self.manifest.input, self.manifest.output
        if not (isinstance(image, np.ndarray) and isinstance(expected, np.ndarray)):
            raise BundleError(f"{self.path}: its sample is damaged: not two arrays; export it again")
        if image.dtype != np.uint8 or image.ndim != given.dims + 1 or image.shape[-1] != given.channels:
            raise BundleError(
                f"{self.path}: its sample image is not uint8 of {given.dims} axes and {given.channels} channels"
            )
        if expected.dtype != np.uint8 or expected.shape != (output.learners + 1, output.channels, *image.shape[:-1]):
            raise BundleError(f"{self.path}: its sample's output does not fit its sample image")
        return image, expected.astype(np.float32) / np.float32(255)


def is_bundle(path: Path) -> bool:
    """Whether a path is meant as a bundle rather than as a run folder: by what is there, or by its name."""
    return path.is_file() or (path.suffix == ".d2q" and not path.is_dir())


def write_bundle(path: Path, manifest: Manifest, parts: Mapping[str, bytes]) -> Manifest:
    """Writes a bundle, atomically.

    Args:
        path: the file.
        manifest: its ``parts`` are filled in here.
        parts: all of :data:`PARTS`, uncompressed.

    Returns:
        Manifest: as written.

    Raises:
        StorageError: the file could not be written.
    """
    assert set(parts) == set(PARTS)
    stored = {name: _compress(content) for name, content in parts.items()}
    described = {
        name: Part(len(content), hashlib.sha256(content).hexdigest(), len(stored[name]) < len(content))
        for name, content in parts.items()
    }
    manifest = replace(manifest, parts=described)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        # One fixed date, so that the same model gives the same bytes.
        archive.writestr(zipfile.ZipInfo(MANIFEST), manifest.to_json())
        for name, content in parts.items():
            gzipped = described[name].compressed
            archive.writestr(zipfile.ZipInfo(_entry(name, gzipped)), stored[name] if gzipped else content)
        archive.comment = b"0" * _DIGEST
    body = buffer.getbuffer()[:-_DIGEST]
    digest = hashlib.sha256(body).hexdigest().encode()
    with atomic_path(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                file.write(body)
                file.write(digest)
        finally:
            body.release()
    return manifest


def _entry(name: str, compressed: bool) -> str:
    return name + ".gz" if compressed else name


def _compress(content: bytes) -> bytes:
    """One gzip stream of several members, each of the smaller of two kinds.

    Codes of weights have no repeats worth finding: Huffman coding alone comes near their entropy, and the ordinary
    search for repeats makes them larger. Names and nodes of the graph are the other way round.
    """
    members = []
    for start in range(0, len(content), _MEMBER):
        part = content[start : start + _MEMBER]
        coded = _deflate(part, zlib.Z_HUFFMAN_ONLY, 1)
        # A quick search tells whether there are repeats; the thorough one takes minutes on a large network's codes.
        repeats = len(_deflate(part, zlib.Z_DEFAULT_STRATEGY, 1)) < len(coded)
        members.append(_deflate(part, zlib.Z_DEFAULT_STRATEGY, 9) if repeats else coded)
    return b"".join(members)


def _deflate(content: bytes, strategy: int, level: int) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, _GZIP, 9, strategy)
    return compressor.compress(content) + compressor.flush()


def read_bundle(path: Path) -> Bundle:
    """Reads a bundle and checks every byte of it, before anything in it is used.

    Raises:
        BundleError: no such file, not a bundle, cut off, changed, of a newer version, or hostile.
    """
    data = _read(path)
    if not data.startswith(b"PK\x03\x04"):
        raise BundleError(f"{path} is not a d2ed2q bundle; make one with: d2ed2q export RUN -o model.d2q")
    body = memoryview(data)[:-_DIGEST]
    if hashlib.sha256(body).hexdigest().encode() != data[-_DIGEST:]:
        raise BundleError(f"{path} is cut off or was changed: its SHA-256 is not the one it ends with; copy it again")
    end = data[-_DIGEST - _END : -_DIGEST]
    large = data[-_DIGEST - _END - _ZIP64 : -_DIGEST - _END].startswith(b"PK\x06\x07")  # another list would count
    if large or not end.startswith(b"PK\x05\x06") or int.from_bytes(end[12:16], "little") > _LARGEST_LIST:
        raise BundleError(f"{path} holds more than a bundle's few parts; do not use it")  # before they are listed
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            stored = _entries(path, archive)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        raise BundleError(f"{path} is not a sound archive ({error}); copy it again") from error
    if MANIFEST not in stored:
        raise BundleError(f"{path} is an archive, but no d2ed2q bundle: it has no {MANIFEST}")
    manifest = Manifest.from_json(stored.pop(MANIFEST), str(path))
    expected = {_entry(name, part.compressed) for name, part in manifest.parts.items()}
    if set(manifest.parts) != set(PARTS) or expected != set(stored):
        odd = sorted((set(manifest.parts) ^ set(PARTS)) | (expected ^ set(stored)))[0]
        raise BundleError(f"{path}: the manifest and the parts disagree on {odd}; export it again")
    parts = {name: _expand(path, name, part, stored) for name, part in manifest.parts.items()}
    try:
        external = has_external_data(parts[MODEL])
    except ValueError as error:
        raise BundleError(f"{path}: its graph is no ONNX model ({error}); export it again") from error
    if external:
        raise BundleError(f"{path}: its graph refers to files outside of the bundle; it was not made by d2ed2q")
    return Bundle(path, manifest, parts, hashlib.sha256(data).hexdigest(), len(data))


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise BundleError(f"{path} is a folder, not a bundle")
        if path.stat().st_size > _LARGEST_FILE:
            raise BundleError(f"{path} is larger than {_LARGEST_FILE >> 30} GiB: it is not a d2ed2q bundle")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"there is no bundle {path}; make one with: d2ed2q export RUN -o {path}") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}; check its permissions") from error


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Contents of all entries as stored; names and sizes are checked first."""
    known = {MANIFEST, *(_entry(name, gzipped) for name in PARTS for gzipped in (False, True))}
    stored: dict[str, bytes] = {}
    for entry in archive.infolist():
        if entry.filename not in known or entry.filename in stored:
            raise BundleError(f"{path} holds the path {entry.filename!r}, which no bundle has; do not use it")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise BundleError(f"{path}: {entry.filename} is compressed as no bundle's part is; do not use it")
        if entry.file_size > (_LARGEST_MANIFEST if entry.filename == MANIFEST else _LARGEST_PART):
            raise BundleError(f"{path}: {entry.filename} claims {entry.file_size:,} bytes; do not use it")
        stored[entry.filename] = archive.read(entry)
    return stored


def _expand(path: Path, name: str, part: Part, stored: Mapping[str, bytes]) -> bytes:
    content = stored[_entry(name, part.compressed)]
    if not 0 <= part.bytes <= min(_LARGEST_PART, _DEFLATE_LIMIT * len(content) + 64):
        raise BundleError(f"{path}: {name} claims {part.bytes:,} bytes, which cannot be; do not use it")
    if part.compressed:
        try:
            content = _decompress(content, part.bytes + 1)
        except (zlib.error, EOFError) as error:
            raise BundleError(f"{path}: {name} is damaged ({error}); copy the file again") from error
    if len(content) != part.bytes or hashlib.sha256(content).hexdigest() != part.sha256:
        raise BundleError(f"{path}: {name} is not what the manifest says, by its size or SHA-256; do not use it")
    return content


def _decompress(stream: bytes, limit: int) -> bytes:
    """Expands the members of a gzip stream, and stops once there is more than expected."""
    found: list[bytes] = []
    size = position = 0
    while position < len(stream) and size < limit:
        expander, before = zlib.decompressobj(_GZIP), size
        while not expander.eof and position < len(stream) and size < limit:
            # Piece by piece: whatever follows a member is copied by the expander.
            piece = stream[position : position + _MEMBER]
            found.append(expander.decompress(piece, limit - size))
            size += len(found[-1])
            position += len(piece) - len(expander.unused_data) - len(expander.unconsumed_tail)
        if not expander.eof and size < limit:
            raise EOFError("it is cut off")
        if size == before and position < len(stream):
            raise EOFError("a piece of it is empty")  # millions of which would keep a reader busy
    return b"".join(found)

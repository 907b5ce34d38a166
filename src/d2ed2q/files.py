"""Writing files so that a crash, a kill or a full disk never costs what was already saved."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from d2ed2q.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "append_line",
    "atomic_path",
    "hold",
    "is_held",
    "require_place",
    "sha256_of",
    "storage_error",
    "sync_folder",
    "unwritable",
    "write_text",
]

_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # what says that another process has the lock

# Asked once: to ask is to change it, and whatever another thread makes meanwhile would be open to everybody.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


def storage_error(path: Path, error: OSError) -> StorageError:
    """Turns an operating system's refusal to write into one clear message."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError(f"cannot write {path}: the disk is full; free some space and run the same command again")
    return StorageError(f"cannot write {path}: {error.strerror or error}; check the folder and its permissions")


def unwritable(folder: Path) -> Path | None:
    """What keeps files from being written into a folder, which may have to be made first; None where nothing does."""
    nearest = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return None if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK) else nearest


def require_place(path: Path) -> None:
    """Checks that a file can be written at a path, before long work has nowhere to go.

    Raises:
        StorageError: it cannot.
    """
    if not _is_device(path) and (obstacle := unwritable(path.parent)) is not None:
        raise StorageError(f"cannot write {path}: {obstacle} is no folder that can be written into; choose another")
    if path.is_dir():
        raise StorageError(f"cannot write {path}: it is a folder; name a file in it")


def _is_device(path: Path) -> bool:
    return Path("/dev") in path.absolute().parents and path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that takes its place when the block ends without an error.

    The file is flushed to the disk before it is renamed, so ``path`` always holds either the old or the new content. A
    link is replaced, not followed; a device, as ``/dev/stdout`` or ``/dev/null``, is written to.

    Raises:
        StorageError: the file could not be written; whatever ``path`` held before is untouched.
    """
    if _is_device(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            try:
                path.write_bytes(temporary.read_bytes())
            except OSError as error:
                raise storage_error(path, error) from error
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last, because image writers choose their format by it.
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise storage_error(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; results should be readable like any file the user writes.
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk: what was renamed there stays so when the power is cut."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file atomically.

    Raises:
        StorageError: the file could not be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str, sync: bool = False) -> None:
    """Appends one line to a text file; a line that could not be written whole is taken back.

    Args:
        path: the file.
        line: without its end.
        sync: whether it is flushed to the disk, so that a power cut cannot take it.

    Raises:
        StorageError: the line could not be written.
    """
    try:
        # Without a buffer, nothing of a line that was taken back is left to be written when the file is closed.
        with open(path, "ab", buffering=0) as file:
            end, rest = file.tell(), line.encode("utf-8") + b"\n"
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                os.truncate(path, end)
                raise
    except OSError as error:
        raise storage_error(path, error) from error


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def hold(path: Path, wait: bool = False) -> Iterator[bool]:
    """Holds a lock file for one process; the system lets go of it when the process ends, however it ends.

    Args:
        path: the file; it is removed at the end.
        wait: whether to wait for another process that holds it.

    Yields:
        bool: False if another process holds it.

    Raises:
        StorageError: the file cannot be made, or its file system has no locks.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "w")  # noqa: SIM115  # closed below, and with the process
        except OSError as error:
            raise storage_error(path, error) from error
        with file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except OSError as error:
                    if error.errno not in _TAKEN:
                        raise StorageError(
                            f"cannot lock {path} ({error.strerror or error}): its file system has no locks; choose a "
                            "folder on another"
                        ) from error
                    yield False
                    return
            if not _is_at(file, path):  # whoever held it has removed it meanwhile
                continue
            try:
                yield True
            finally:
                # Not another's: the folder may have been removed, and a new file made in its place.
                if _is_at(file, path):
                    path.unlink(missing_ok=True)
            return


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file, see :func:`hold`."""
    try:
        file = open(path)  # noqa: SIM115  # closed below
    except OSError:  # whoever lets go of it removes it
        return False
    with file:
        if fcntl is None:
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _TAKEN
    return False


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False

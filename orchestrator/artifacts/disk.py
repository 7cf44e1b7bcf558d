"""Files on disk: errors that name the cure, and writes that are either whole or absent."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator import errors
from orchestrator.errors import HostError

_HINTS = {
    errno.ENOSPC: "Free some disk space or move the data directory to a larger disk, then run the same command again.",
    errno.EDQUOT: "Your disk quota is used up: free some space, then run the same command again.",
    errno.EACCES: "Make the directory writable for this user, or use another data directory.",
    errno.EPERM: "Make the directory writable for this user, or use another data directory.",
    errno.EROFS: "The file system is read-only: use another data directory; ORCH_STORES lets it read what is here.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
}


@contextmanager
def host_errors(doing: str) -> Iterator[None]:
    """Turns an OSError of the block into a HostError: `Cannot DOING: REASON`."""
    with errors.host_errors(doing, _HINTS, "Check the disk and its permissions, then run the same command again."):
        yield


def amount(size: int) -> str:
    """Bytes for people, in decimal units."""
    unit, name = next((pair for pair in ((10**8, "GB"), (10**5, "MB")) if size >= pair[0]), (10**2, "kB"))
    return f"{size / unit / 10:.1f} {name}"


def fsync_directory(directory: Path) -> None:
    """Makes the names in `directory` durable, as fsync of a file does for its bytes only."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Makes the bytes of `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` to write to; on success it is fsynced and takes the name, else it is removed.

    The sibling's name is always the same, so the next attempt overwrites what a killed one left. HostError while
    another process writes it.
    """
    partial = out.with_name(f".{out.name}.part")
    with alone_at(partial, os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)):
        try:
            yield partial
            fsync_file(partial)
            partial.replace(out)
            fsync_directory(out.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def alone_at(path: Path, descriptor: int) -> Iterator[None]:
    """Nobody else works at `path`, which `descriptor` (closed at the end) was opened at; HostError if somebody does."""
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the opening and the lock, another's finished work may have been renamed away.
            mine = os.path.samestat(os.fstat(descriptor), path.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise HostError(f"Another process is writing {path}.", "Wait until it ends, or write to another place.")
        yield
    finally:
        os.close(descriptor)


def write_whole(out: Path, content: bytes) -> None:
    """Writes a small file so that nobody ever sees half of it."""
    with replacing(out) as partial:
        partial.write_bytes(content)


def reserve(descriptor: int, size: int) -> None:
    """Takes the space for the whole file at once, so that a full disk is known before minutes of work."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.truncate(descriptor, size)


def pwrite_all(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """`os.pwrite` until everything is written; `content` is contiguous."""
    view = memoryview(content).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written

"""Small files that must never be seen half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator import errors

_HINTS = {
    errno.ENOSPC: "The disk is full: free some space and try again.",
    errno.EDQUOT: "The disk quota is used up: free some space and try again.",
    errno.EROFS: "The file system is read-only: use another directory; ORCH_HOME names orch's.",
    errno.EACCES: "Give this user the right to it, or use a directory of your own: ORCH_HOME names orch's.",
    errno.EPERM: "Give this user the right to it, or use a directory of your own: ORCH_HOME names orch's.",
    errno.ENOTDIR: "Set ORCH_HOME to a directory.",
    errno.EMFILE: "Too many files are open: see ulimit -n.",
    errno.ENOSYS: "Linux 5.3 or newer is needed.",
}


@contextlib.contextmanager
def host_errors(doing: str) -> Iterator[None]:
    """HostError `Cannot DOING: REASON.` for every OSError."""
    with errors.host_errors(doing, _HINTS):
        yield


def require_readable(directory: Path) -> None:
    """HostError where a directory is there and this user may not look into it: it must not seem empty."""
    with host_errors(f"look into {directory}"), contextlib.suppress(FileNotFoundError), os.scandir(directory):
        pass


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, also after a crash.

    Missing parent directories are made. Raises HostError (disk full, no permission); the old file stays then.
    """
    with host_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(path.parent)


def write_json(path: Path, value: object, mode: int = 0o644) -> None:
    """`write_atomic` of `value` as indented JSON with a final newline."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), mode)


def read_json(path: Path) -> object:
    """The JSON value in `path`, or None when there is no such file.

    Raises HostError when it cannot be read and ValueError when it is not JSON.
    """
    with host_errors(f"read {path}"):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    value: object = json.loads(data)
    return value


def move_aside(path: Path) -> Path:
    """Rename a damaged file to `NAME.broken` (replacing an earlier one) and return its new path."""
    aside = path.with_name(f"{path.name}.broken")
    with host_errors(f"move {path} aside"):
        path.replace(aside)
        sync_directory(path.parent)
    return aside


def sync_directory(path: Path) -> None:
    """fsync a directory, which makes a rename inside it last. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

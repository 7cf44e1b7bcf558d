"""Small files that must never be seen half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from pathlib import Path

from orchestrator.errors import HostError

_HINTS = {
    errno.ENOSPC: "The disk is full: free some space and try again.",
    errno.EDQUOT: "The disk quota is used up: free some space and try again.",
    errno.EROFS: "The file system is read-only.",
    errno.EACCES: "Give this user the right to it, or choose another directory.",
    errno.EPERM: "Give this user the right to it, or choose another directory.",
}


def _host_error(what: str, path: Path, error: OSError) -> HostError:
    return HostError(f"{what} {path}: {error.strerror or error}.", hint=_HINTS.get(error.errno or 0, ""))


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, also after a crash.

    Missing parent directories are made. Raises HostError (disk full, no permission); the old file stays then.
    """
    try:
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
    except OSError as error:
        raise _host_error("Cannot write", path, error) from error


def write_json(path: Path, value: object, mode: int = 0o644) -> None:
    """`write_atomic` of `value` as indented JSON with a final newline."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(), mode)


def read_json(path: Path) -> object:
    """The JSON value in `path`, or None when there is no such file.

    Raises HostError when it cannot be read and ValueError when it is not JSON.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _host_error("Cannot read", path, error) from error
    value: object = json.loads(data)
    return value


def move_aside(path: Path) -> Path:
    """Rename a damaged file to `NAME.broken` (replacing an earlier one) and return its new path."""
    aside = path.with_name(f"{path.name}.broken")
    try:
        path.replace(aside)
        sync_directory(path.parent)
    except OSError as error:
        raise _host_error("Cannot move aside", path, error) from error
    return aside


def sync_directory(path: Path) -> None:
    """fsync a directory, which makes a rename inside it last. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

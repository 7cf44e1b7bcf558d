"""Where the operating system's errors become the user's."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from orchestrator.errors import HostError

_HINTS = {
    errno.ENOSPC: "The disk is full: free some space and try again.",
    errno.EDQUOT: "The disk quota is used up: free some space and try again.",
    errno.EROFS: "The file system is read-only: set ORCH_HOME to another directory.",
    errno.EACCES: "Give this user the right to it, or set ORCH_HOME to another directory.",
    errno.EMFILE: "Too many files are open: see ulimit -n.",
    errno.ENOSYS: "Linux 5.3 or newer is needed.",
}


@contextlib.contextmanager
def host_errors(doing: str) -> Iterator[None]:
    """HostError `Cannot DOING: REASON.` for every OSError."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        hint = _HINTS.get(error.errno or 0, "")
        raise HostError(f"Cannot {doing}: {error.strerror or error}{where}.", hint) from error

"""Everything that can go wrong, and the exit code that says so.

OrchError(message, hint="", detail="")          exit
+- UsageError        asked in words that do not fit together                2
+- ProfileError      path in the file, all problems at once                 3
+- HostError         docker down, GPU missing, disk full, hub unreachable   4
+- PlanRefused       cannot be planned: memory, engine x artifact, adapter x base   5
+- StepFailed        rolled back; the old system serves                     6
|  +- StepStranded   not fully rolled back: what is left and the next command   7
+- LockHeld          who, since when                                        8
+- SourceError       weights, adapters or files that are not what they claim    10
+- Interrupted       Ctrl-C or SIGTERM, after undo                          130

Besides these: 0 ok (also --plan, and status with nothing deployed), 1 a bug in orch,
9 status: drift, unhealthy, or damage found by verify.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Mapping
from pathlib import Path

OK = 0
BUG = 1
DRIFT = 9


class OrchError(Exception):
    """What happened (`message`), what to do (`hint`), and the evidence (`detail`, such as a log's tail)."""

    exit_code = BUG

    def __init__(self, message: str, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail


class UsageError(OrchError):
    """The command line asks for something that its words cannot mean."""

    exit_code = 2


class ProfileError(OrchError):
    """The user's profile is wrong; `detail` lists every problem with its path, a line each."""

    exit_code = 3


class HostError(OrchError):
    """The machine or its network cannot do it now: a port, a disk, a hub, a binary."""

    exit_code = 4


class PlanRefused(OrchError):
    """No plan can reach what was asked: memory, engine x artifact, adapter x base."""

    exit_code = 5


class StepFailed(OrchError):
    """A step failed and everything before it was undone: what served before serves still."""

    exit_code = 6


class StepStranded(StepFailed):
    """A step failed and something is left over; the message says what, the hint which command goes on."""

    exit_code = 7


class LockHeld(OrchError):
    """Another orch is changing things; the message says who, since when, doing what."""

    exit_code = 8


class SourceError(OrchError):
    """Weights, adapters or files that are not what they claim."""

    exit_code = 10


class Interrupted(OrchError):
    """Ctrl-C or SIGTERM; raised between chunks and steps, never inside one."""

    exit_code = 130

    def __init__(self, message: str = "Interrupted.", hint: str = "", detail: str = "") -> None:
        super().__init__(message, hint, detail)


def why(error: OSError) -> str:
    """What the operating system says; where this user lacks a right, also whose the file is, or what it is in."""
    reason = error.strerror or str(error)
    if error.errno not in (errno.EACCES, errno.EPERM) or not isinstance(error.filename, str):
        return reason
    path = Path(error.filename)
    for place in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return f"{reason}, {place} belongs to {_name_of(place.stat().st_uid)}"
    return reason


@contextlib.contextmanager
def host_errors(doing: str, hints: Mapping[int, str], otherwise: str = "") -> Iterator[None]:
    """HostError `Cannot DOING: REASON.` for every OSError of the block; `hints` by errno."""
    try:
        yield
    except OSError as error:
        reason = why(error)
        named = not error.filename or reason != error.strerror or str(error.filename) in doing
        where = "" if named else f" ({error.filename})"
        raise HostError(f"Cannot {doing}: {reason}{where}.", hints.get(error.errno or 0, otherwise)) from error


def _name_of(uid: int) -> str:
    import pwd  # few need it

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"

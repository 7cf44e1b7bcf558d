"""The gateway's API keys on disk: one a line, for this user only."""

from __future__ import annotations

from pathlib import Path

from orchestrator.core.text import decoded
from orchestrator.drivers import files
from orchestrator.drivers.files import host_errors


class KeyFile:
    """The keys that the gateway asks for; `given` is the one that this command brings along, if any.

    Beside the file lies `unread` from before a key is written until a gateway has proved that it goes by it: whoever
    is killed in between leaves that for the next command to finish, with a key of its own or without.
    """

    def __init__(self, path: Path, given: str | None) -> None:
        self._path = path
        self._unread = path.with_name("unread")
        self._given = given
        self._taken = False
        self._before: bytes | None = None

    def first(self) -> str | None:
        """The key that orch itself shows; None when the gateway asks for none."""
        try:
            lines = decoded(self._path.read_bytes()).splitlines()
        except FileNotFoundError:
            return None
        return next((line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")), None)

    @property
    def is_new(self) -> bool:
        """Whether there is a key that a gateway may not know yet."""
        return self._unread.exists() or (self._given is not None and self._given != self.first())

    def take(self) -> None:
        """Make the given key the only one."""
        if self._given is None or self._given == self.first():
            return
        with host_errors(f"write {self._path}"):
            self._before = self._path.read_bytes() if self._path.is_file() else None
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_atomic(self._unread, b"", mode=0o600)
            self._taken = True
            files.write_atomic(self._path, f"{self._given}\n".encode(), mode=0o600)

    def settle(self) -> None:
        """The gateway goes by what is there."""
        with host_errors(f"remove {self._unread}"):
            self._unread.unlink(missing_ok=True)

    def give_back(self) -> None:
        """What was there before `take` counts again, if it has taken anything; without it there is none."""
        if not self._taken:
            return
        with host_errors(f"write {self._path}"):
            if self._before is not None:
                files.write_atomic(self._path, self._before, mode=0o600)
            else:
                self._path.unlink(missing_ok=True)

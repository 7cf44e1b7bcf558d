"""The gateway's API keys on disk: one a line, for this user only."""

from __future__ import annotations

from pathlib import Path

from orchestrator.core.text import decoded
from orchestrator.drivers import files
from orchestrator.drivers.files import host_errors


class KeyFile:
    """The keys that the gateway asks for; `given` is the one that this command brings along, if any."""

    def __init__(self, path: Path, given: str | None) -> None:
        self._path = path
        self._given = given
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
        """Whether a key was given that is not the one that counts."""
        return self._given is not None and self._given != self.first()

    def take(self) -> None:
        """Make the given key the only one."""
        if self._given is None or not self.is_new:
            return
        with host_errors(f"write {self._path}"):
            self._before = self._path.read_bytes() if self._path.is_file() else None
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_atomic(self._path, f"{self._given}\n".encode(), mode=0o600)

    def give_back(self) -> None:
        """What was there before `take` counts again; without it there is none."""
        with host_errors(f"write {self._path}"):
            if self._before is not None:
                files.write_atomic(self._path, self._before, mode=0o600)
            else:
                self._path.unlink(missing_ok=True)

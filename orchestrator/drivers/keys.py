"""The gateway's API keys on disk: digests, for this user only."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from orchestrator.core.keys import KeyRing
from orchestrator.core.text import decoded
from orchestrator.drivers import files
from orchestrator.drivers.files import host_errors
from orchestrator.errors import HostError


class KeyFile:
    """The keys in `path`; as long as it is not there those in `old`, which an earlier version wrote as they are, one a
    line."""

    def __init__(self, path: Path, old: Path) -> None:
        self._path = path
        self._old = old

    @property
    def has_old_file(self) -> bool:
        """Whether keys still lie there as plain text."""
        return self._old.exists()

    @property
    def written(self) -> bool:
        """Whether there are digests, of whatever keys."""
        return self._path.exists()

    def read(self) -> KeyRing:
        """The keys; HostError when they cannot be read."""
        path = self._path if self._path.exists() else self._old
        if not path.exists():
            return KeyRing()
        try:
            with host_errors(f"read {path}"):
                text = decoded(path.read_bytes())
                written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            return KeyRing.from_text(text) if path == self._path else KeyRing.of_lines(text, written)
        except ValueError as error:
            raise HostError(
                f"The API keys in {path} cannot be read: {error}.",
                hint=f"Until it is started anew, the gateway uses those that it has read. To begin anew: rm {path}, "
                "then orch keys add NAME",
            ) from error

    def write(self, ring: KeyRing) -> None:
        """Keep these; HostError when they cannot be written, and then those of before stay."""
        with host_errors(f"write {self._path}"):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_atomic(self._path, ring.to_text().encode(), mode=0o600)

    def drop_old_file(self) -> None:
        """Remove what an earlier version wrote."""
        with host_errors(f"remove {self._old}"):
            for path in (self._old, self._old.with_name("unread")):
                path.unlink(missing_ok=True)

"""The gateway's API keys on disk: digests, for this user only."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from orchestrator.core.keys import ApiKey, KeyRing, digest_of, utc
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

    def read(self) -> KeyRing:
        """The keys; HostError when they cannot be read."""
        try:
            with host_errors(f"read {self._path}"):
                return KeyRing.from_text(decoded(self._path.read_bytes())) if self._path.exists() else self._of_old()
        except ValueError as error:
            raise HostError(
                f"The API keys in {self._path} cannot be read: {error}.",
                hint=f"The gateway keeps using those that it has read. To start over: rm {self._path}",
            ) from error

    def write(self, ring: KeyRing) -> None:
        """Keep these; HostError when they cannot be written, and then those of before stay."""
        with host_errors(f"write {self._path}"):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_atomic(self._path, ring.to_text().encode(), mode=0o600)

    def drop_old_file(self) -> None:
        """Remove what an earlier version wrote."""
        with host_errors(f"remove {self._old}"):
            self._old.unlink(missing_ok=True)

    def _of_old(self) -> KeyRing:
        if not self._old.exists():
            return KeyRing()
        written = utc(datetime.fromtimestamp(self._old.stat().st_mtime, UTC))
        lines = (line.strip() for line in decoded(self._old.read_bytes()).splitlines())
        keys = dict.fromkeys(line for line in lines if line and not line.startswith("#"))
        return KeyRing(tuple(ApiKey(f"key-{n}", digest_of(key), written) for n, key in enumerate(keys, start=1)))

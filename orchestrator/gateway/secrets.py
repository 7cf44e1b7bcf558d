"""What engines ask of whoever asks them: a secret of each one's own, which the gateway adds to what it sends on."""

from __future__ import annotations

from pathlib import Path

from aiohttp import hdrs


class EngineSecrets:
    """The secrets in a directory, a file each, by the instances' names. Those of no file, or of none that can be read,
    are asked without: the engine then says what it wants."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._paths: dict[str, Path] = {}
        self._known: dict[str, tuple[tuple[int, int], str]] = {}

    def headers(self, instance: str) -> list[tuple[str, str]]:
        """The request headers for an instance. Its file is read again when it is another: names come back."""
        secret = self._of(instance)
        return [(hdrs.AUTHORIZATION, f"Bearer {secret}")] if secret else []

    def _of(self, instance: str) -> str:
        if self._directory is None:
            return ""
        path = self._paths.get(instance) or self._paths.setdefault(instance, self._directory / instance)
        try:
            found = path.stat()
            state = (found.st_mtime_ns, found.st_ino)
            known = self._known.get(instance)
            if known is None or known[0] != state:
                known = self._known[instance] = (state, path.read_text("ascii").strip())
        except (OSError, ValueError):
            return ""
        return known[1]

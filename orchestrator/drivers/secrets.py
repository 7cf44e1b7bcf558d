"""What engines ask of whoever asks them: a secret for each instance, in a file that only this user can read."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from orchestrator.drivers import files
from orchestrator.drivers.files import host_errors


class EngineSecrets:
    """The secrets in `directory`, by instance name. One stays as long as its instance: over crashes and restarts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def ensure(self, name: str) -> Path:
        """The file of an instance's secret, made where there is none."""
        path = self._directory / name
        if not path.exists():
            with host_errors(f"write {path}"):
                self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_atomic(path, f"{secrets.token_urlsafe(32)}\n".encode(), mode=0o600)
        return path

    def read(self, name: str) -> str:
        """An instance's secret; empty where it asks for none."""
        path = self._directory / name
        with host_errors(f"read {path}"), contextlib.suppress(FileNotFoundError):
            return path.read_text("ascii", errors="replace").strip()
        return ""

    def remove(self, name: str) -> None:
        """Forget it."""
        with host_errors(f"remove {self._directory / name}"):
            (self._directory / name).unlink(missing_ok=True)

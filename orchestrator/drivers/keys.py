"""The gateway's API keys on disk: one a line, for this user only."""

from __future__ import annotations

from pathlib import Path

from orchestrator.core.text import decoded
from orchestrator.drivers import files


def first_key(path: Path) -> str | None:
    """The key that orch itself uses; None when the gateway asks for none."""
    try:
        lines = decoded(path.read_bytes()).splitlines()
    except FileNotFoundError:
        return None
    return next((line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")), None)


def write_key(path: Path, key: str) -> None:
    """Make it the only one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_atomic(path, f"{key}\n".encode(), mode=0o600)

"""The repositories that the hub tests serve, and the hub server of scripts/, loaded by path."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

from orchestrator.core.weights import HubSource

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests" / "assets"
TINY = HubSource("test/tiny", "main")
UNTIED = HubSource("test/untied", "main")

_spec = importlib.util.spec_from_file_location("hub_server", ROOT / "scripts" / "hub_server.py")
assert _spec
assert _spec.loader
hub_server = importlib.util.module_from_spec(_spec)
sys.modules["hub_server"] = hub_server
_spec.loader.exec_module(hub_server)


def digests(directory: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of everything in a directory, by relative path."""
    return {
        path.relative_to(directory).as_posix(): (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in directory.rglob("*")
        if not path.is_dir()
    }

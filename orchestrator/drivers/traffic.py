"""The lines that gateways write down of what clients do; what is in them is for core/traffic_window.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from orchestrator.drivers.files import host_errors


def read_lines(directory: Path, names: Iterable[str]) -> list[str]:
    """The lines of those files of a directory that there are, without their ends. Raises HostError."""
    lines: list[str] = []
    for name in names:
        path = directory / name
        with host_errors(f"read {path}"), contextlib.suppress(FileNotFoundError):
            lines += path.read_text("utf-8", errors="replace").split("\n")
    return [line for line in lines if line]

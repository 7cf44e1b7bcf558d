"""Disks that are full or cannot be written to, for whoever may mount one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(place: Path, size: str = "1m") -> Iterator[Path]:
    """An empty disk of so many bytes at `place` while the block runs; without the right to mount one, a skip."""
    place.mkdir(parents=True, exist_ok=True)
    _mount("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(place: Path, way: str) -> None:
    """Makes such a disk read-only (`ro`) or writable again (`rw`)."""
    _mount("mount", "-o", f"remount,{way}", str(place))


def _mount(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")

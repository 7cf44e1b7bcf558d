"""Atomic writes, with real files and a real limit."""

from __future__ import annotations

import stat
import subprocess
import sys

import pytest

from orchestrator.drivers import files
from orchestrator.errors import HostError


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "new" / "directory" / "x.json"
    assert files.read_json(path) is None
    files.write_json(path, {"ä": [1, None]}, mode=0o600)
    assert files.read_json(path) == {"ä": [1, None]}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files.write_json(path, [])
    assert files.read_json(path) == []
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    files.write_atomic(path, b"old")
    program = f"""
import resource
from pathlib import Path
from orchestrator.drivers import files
from orchestrator.errors import HostError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    files.write_atomic(Path({str(path)!r}), b"x" * 2000)
except HostError as error:
    print(error.message)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == f"Cannot write {path}: File too large.\n"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_or_read(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="Cannot write"):
        files.write_atomic(tmp_path / "file" / "x", b"")
    with pytest.raises(HostError, match="Cannot read"):
        files.read_json(tmp_path)


def test_damaged_json_is_a_value_error_and_can_be_moved_aside(tmp_path):
    path = tmp_path / "x.json"
    for content in (b"{", b"", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(ValueError):
            files.read_json(path)
        assert files.move_aside(path).read_bytes() == content
        assert not path.exists()

"""What an incomplete file's record says after a kill, after a power cut, and when it makes no sense."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.drivers.hub.part import RECORD, Part, piece_size


def filled(path: Path, boot: str) -> Part:
    """100 bytes in pieces of 10; the first 15 and 5 of the fourth piece have come, the first 10 are flushed."""
    part = Part(path, 100, 10, boot)
    part.put(0, b"a" * 10)
    part.flush()
    part.put(10, b"b" * 5)
    part.put(30, b"c" * 5)
    return part


def test_a_killed_process_leaves_all_that_it_wrote(tmp_path: Path) -> None:
    filled(tmp_path / "part", "this boot").close()
    part = Part(tmp_path / "part", 100, 10, "this boot")
    assert (part.arrived, part.prefix, part.span(1, 1), part.span(3, 9)) == (20, 15, (15, 20), (35, 100))
    part.close()


def test_after_a_power_cut_only_what_was_flushed_counts(tmp_path: Path) -> None:
    filled(tmp_path / "part", "this boot").close()
    for boot in ("the next boot", "and one more"):
        part = Part(tmp_path / "part", 100, 10, boot)
        assert (part.arrived, part.prefix) == (10, 10)
        part.put(10, b"d" * 3)
        part.close()


def test_bytes_that_the_file_has_lost_are_not_believed(tmp_path: Path) -> None:
    filled(tmp_path / "part", "boot").close()
    os.truncate(tmp_path / "part", 12)
    part = Part(tmp_path / "part", 100, 10, "boot")
    assert (part.arrived, part.prefix) == (12, 12)
    part.close()


@pytest.mark.parametrize("record", [b"", b"x" * 40, b"x" * 288, b"orch pieces 1 size=100 piece=10 boot=boot\n"])
def test_a_record_that_makes_no_sense_is_none(tmp_path: Path, record: bytes) -> None:
    filled(tmp_path / "part", "boot").close()
    (tmp_path / f"part{RECORD}").write_bytes(record)
    part = Part(tmp_path / "part", 100, 10, "boot")
    assert (part.arrived, (tmp_path / "part").stat().st_size) == (0, 0)
    part.close()


def test_counts_are_never_more_than_a_piece(tmp_path: Path) -> None:
    filled(tmp_path / "part", "boot").close()
    path = tmp_path / f"part{RECORD}"
    head = path.read_bytes()[:128]
    path.write_bytes(head + b"\xff" * 160)
    part = Part(tmp_path / "part", 100, 10, "boot")
    assert part.arrived == 35, "as far as the file goes"
    part.close()


def test_bytes_that_are_there_are_passed_over(tmp_path: Path) -> None:
    part = filled(tmp_path / "part", "boot")
    assert part.put(0, bytes(range(100))) == 80
    assert part.arrived == part.prefix == 100
    part.close()
    assert (tmp_path / "part").read_bytes() == b"a" * 10 + b"b" * 5 + bytes(range(15, 30)) + b"c" * 5 + bytes(
        range(35, 100)
    )


@pytest.mark.parametrize(
    ("size", "piece"),
    [(1, 16), (100, 16), (256, 16), (700, 43.75), (1024, 64), (16_000, 64), (64 * 4096, 64), (64 * 8192, 128)],
)
def test_how_large_pieces_are(size: int, piece: float) -> None:
    assert piece_size(size << 20) == piece * 2**20
    assert -(-(10**17) // piece_size(10**17)) <= 4096

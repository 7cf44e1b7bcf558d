"""A file that is still coming, as it lies on disk: its bytes, and beside them how far each piece of it has come.

The record is written after the bytes, so what it says is there after kill -9. A power cut may keep the record and lose
the bytes; therefore it names the boot that it was written in and counts apart what has been flushed to the disk: on
another boot only that counts. The hash of the whole is checked anyway before a file gets its name.
"""

from __future__ import annotations

import os
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from orchestrator.drivers.local.proc import boot_id

PIECE: Final = 64 << 20
# A file of some hundred MB is to fill several connections too, and a hub may state any size.
FEWEST_PIECES: Final = 16
MOST_PIECES: Final = 4096
RECORD: Final = ".pieces"
_HEAD: Final = 128
_COUNTS: Final = struct.Struct("<QQ")  # bytes of a piece that have arrived, and how many of them are flushed


class Part:
    """The incomplete file at `path`, `size` bytes when it is whole, in pieces of `piece` bytes that fill up separately.

    Opening it finds what an earlier try left. Raises OSError. One thread puts bytes in; another may flush.
    """

    def __init__(self, path: Path, size: int, piece: int, boot: str | None = None) -> None:
        self.path, self.size, self._piece = path, size, piece
        self._boot = boot_id() if boot is None else boot
        found = _counts(path, size, self._piece, self._boot)
        self._counts, self._flushed = [have for have, _ in found], [safe for _, safe in found]
        self.arrived = sum(self._counts)
        self._first = 0  # pieces before it are whole
        self._lock = threading.Lock()
        fresh = os.O_TRUNC if not self.arrived else 0
        self._data = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | fresh, 0o644)
        self._record = os.open(_record(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._write_record()

    def __len__(self) -> int:
        """How many pieces there are."""
        return len(self._counts)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Where the missing bytes of pieces `first` to `last` begin and end; the same twice when none is missing."""
        end = self._end(last)
        begins = (self._begin(index) for index in range(first, last + 1) if self._begin(index) < self._end(index))
        return next(begins, end), end

    def _begin(self, index: int) -> int:
        """Where what is missing of a piece begins."""
        return index * self._piece + self._counts[index]

    def _end(self, index: int) -> int:
        """Where a piece ends."""
        return min((index + 1) * self._piece, self.size)

    @property
    def prefix(self) -> int:
        """How many bytes from the start are there without a gap."""
        while self._first < len(self) and self._begin(self._first) == self._end(self._first):
            self._first += 1
        return self._begin(self._first) if self._first < len(self) else self.size

    def put(self, offset: int, data: bytes) -> int:
        """Writes bytes that belong at `offset`, and returns how many of them were missing. They leave no gap."""
        new = 0
        view = memoryview(data)
        while view:
            index = offset // self._piece
            chunk = view[: (index + 1) * self._piece - offset]
            begin = self._begin(index)
            assert begin >= offset, f"a gap at {begin} of {self.path}"
            if here := chunk[begin - offset :]:
                self._write(begin, here)
                self._counts[index] += len(here)
                os.pwrite(self._record, self._counts[index].to_bytes(8, "little"), _HEAD + index * _COUNTS.size)
                new += len(here)
            offset += len(chunk)
            view = view[len(chunk) :]
        self.arrived += new
        return new

    def _write(self, offset: int, view: memoryview) -> None:
        while view:
            written = os.pwrite(self._data, view, offset)
            view, offset = view[written:], offset + written

    def flush(self) -> None:
        """Makes what has arrived by now last over a power cut. For another thread: it takes as long as the disk."""
        counts = list(self._counts)
        with self.path.open("rb") as data:
            os.fdatasync(data.fileno())
        with self._lock:
            if self._record >= 0:
                # Never more than there is: it may have been restarted meanwhile.
                self._flushed = list(map(min, counts, self._counts))
                for index, count in enumerate(self._flushed):
                    os.pwrite(self._record, count.to_bytes(8, "little"), _HEAD + index * _COUNTS.size + 8)
                os.fdatasync(self._record)

    def restart(self) -> None:
        """Forgets all bytes."""
        with self._lock:
            self._counts, self._flushed, self.arrived = [0] * len(self), [0] * len(self), 0
            self._first = 0
            self._write_record()
            os.ftruncate(self._data, 0)

    def finish(self, target: Path) -> None:
        """Gives the whole file, which has been flushed, its name."""
        self.close()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path.replace(target)
        _record(self.path).unlink()

    def remove(self) -> None:
        """Leaves nothing of it."""
        self.close()
        self.path.unlink(missing_ok=True)
        _record(self.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Leaves it as it is, for the next try."""
        with self._lock:
            for descriptor in (self._data, self._record):
                if descriptor >= 0:
                    os.close(descriptor)
            self._data = self._record = -1

    def _write_record(self) -> None:
        counts = b"".join(map(_COUNTS.pack, self._counts, self._flushed))
        os.pwrite(self._record, counts, _HEAD)
        os.pwrite(self._record, _head(self.size, self._piece, self._boot), 0)
        os.ftruncate(self._record, _HEAD + len(counts))


def piece_size(size: int, usual: int = PIECE) -> int:
    """Into pieces of how many bytes a file of `size` is divided: by this alone, or no later try would find them."""
    return max(min(usual, max(usual // 4, size // FEWEST_PIECES)), -(-size // MOST_PIECES))


def arrived(path: Path, size: int, piece: int) -> int:
    """How many bytes of an incomplete file are there; reads its record only."""
    return sum(have for have, _ in _counts(path, size, piece, boot_id()))


def _counts(path: Path, size: int, piece: int, boot: str) -> list[tuple[int, int]]:
    """For each piece, how many bytes of it can be relied on, and how many of those are flushed.

    All zero when there is no file, or no record of one of this size in such pieces.
    """
    starts = range(0, size, piece)
    record, length = b"", 0
    with suppress(FileNotFoundError):
        record, length = _record(path).read_bytes(), path.stat().st_size
    head, body = record[:_HEAD], record[_HEAD:]
    if head.split(b" boot=")[0] != _head(size, piece, boot).split(b" boot=")[0]:
        return [(0, 0) for _ in starts]
    if len(body) != len(starts) * _COUNTS.size:
        return [(0, 0) for _ in starts]
    same_boot = head == _head(size, piece, boot)
    counts = []
    for start, (have, safe) in zip(starts, _COUNTS.iter_unpack(body), strict=True):
        most = max(0, min(piece, size - start, length - start))
        counts.append((min(have if same_boot else safe, most), min(safe, most)))
    return counts


def _record(path: Path) -> Path:
    return path.with_name(path.name + RECORD)


def _head(size: int, piece: int, boot: str) -> bytes:
    return f"orch pieces 1 size={size} piece={piece} boot={boot}".ljust(_HEAD - 1).encode() + b"\n"

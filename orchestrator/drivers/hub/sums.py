"""Hashes of files: of what is there, and of what is still coming, in order and close behind it."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Final

from orchestrator.core.artifact import FileEntry
from orchestrator.core.weights import HubFile
from orchestrator.drivers.hub.part import Part
from orchestrator.drivers.hub.stream import Lane, hand_over

BLOCK: Final = 1 << 20
# What a power cut can cost, and how long the disk is given to take in what comes meanwhile.
FLUSH_S: Final = 5.0


class Sums:
    """Size and hashes of a file's bytes as they come, against what the hub states of it."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self.size = 0
        self._sha256 = hashlib.sha256()
        # A git blob id is over the size too; a wrong size is found before the id is looked at.
        self._blob = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)

    def add(self, block: bytes) -> None:
        self.size += len(block)
        self._sha256.update(block)
        if self._file.sha256 is None:
            self._blob.update(block)

    def problem(self) -> str | None:
        """What differs from the hub's word, if anything."""
        name, expected, got = "SHA-256", self._file.sha256, self._sha256.hexdigest()
        if expected is None:
            name, expected, got = "git blob id", self._file.blob_id, self._blob.hexdigest()
        if self.size != self._file.size:
            return f"expected {self._file.size} bytes, got {self.size}"
        return None if got == expected else f"expected {name} {expected}, got {got}"

    def entry(self) -> FileEntry:
        return FileEntry(path=self._file.path, size=self.size, sha256=self._sha256.hexdigest())


class Follower:
    """A thread that hashes a Part as far as it is there without a gap, and flushes it now and then.

    So a file is read once, out of memory that still holds it, and is hashed when its last byte comes. It hands over its
    Sums when the file is whole and flushed, or an OSError; until then it reads the file, and writes only the record.
    """

    def __init__(self, file: HubFile, part: Part, lane: Lane) -> None:
        self._file, self._part, self._lane = file, part, lane
        self._sums = Sums(file)
        self._reached = part.prefix
        self._news = threading.Condition()
        self._left = threading.Event()
        threading.Thread(target=self._run, name="hub-sums", daemon=True).start()

    def reach(self, size: int) -> None:
        """So many bytes are there without a gap now."""
        with self._news:
            self._reached = size
            self._news.notify()

    def leave(self) -> None:
        """Nothing is wanted of it any more."""
        with self._news:
            self._left.set()
            self._news.notify()

    def _run(self) -> None:
        try:
            self._follow(self._part.path)
            if not self._left.is_set():
                self._part.flush()
                hand_over(self._lane, self, self._sums, self._left)
        except OSError as error:
            hand_over(self._lane, self, error, self._left)

    def _follow(self, path: Path) -> None:
        flushed = time.monotonic()
        with path.open("rb", buffering=0) as data:
            while self._sums.size < self._file.size and not self._left.is_set():
                with self._news:
                    self._news.wait_for(lambda: self._reached > self._sums.size or self._left.is_set(), FLUSH_S)
                    ready = self._reached - self._sums.size
                if ready > 0:
                    if not (block := data.read(min(ready, BLOCK))):
                        return  # somebody has cut it short: the sums will tell
                    self._sums.add(block)
                if time.monotonic() - flushed > FLUSH_S:
                    self._part.flush()
                    flushed = time.monotonic()

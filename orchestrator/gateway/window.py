"""What was measured, on disk: lines of JSON by minute (core/traffic_window.py), written by a thread, for a week.

Nothing here may cost a client anything: what cannot be written is dropped. A gateway that this one replaces writes to
the same files, so each line goes in by one append, and none is written anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.core.traffic_window import MINUTE_S, Line, file_name, is_old
from orchestrator.gateway.measures import Measures

log = logging.getLogger("orchestrator.gateway")

_MODE = 0o600


class Window:
    """The files in `directory`, written every `every_s` seconds, of which a minute has a whole number."""

    def __init__(self, directory: Path, measures: Measures, every_s: float = MINUTE_S) -> None:
        self._directory = directory
        self._measures = measures
        self._every_s = every_s
        self._failing = False

    async def keep(self) -> None:
        """Write what there is, at the end of each minute, for ever."""
        while True:
            began = time.time()
            await asyncio.sleep(self._every_s - began % self._every_s)
            if lines := self._measures.lines(began):
                await asyncio.to_thread(self._write, lines, began)

    def write(self) -> None:
        """The rest, at the end."""
        now = time.time()
        if lines := self._measures.lines(now):
            self._write(lines, now)

    def _write(self, lines: Sequence[Line], at: float) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._append(self._directory / file_name(at), "".join(line.to_text() for line in lines).encode())
            self._remove_old(at)
        except OSError as error:
            if not self._failing:
                log.error("What clients do is not recorded any more, because %s cannot be written: %s.",
                          self._directory, error.strerror or error)  # fmt: skip
            self._failing = True
            return
        if self._failing:
            log.info("What clients do is recorded again.")
        self._failing = False

    def _append(self, path: Path, data: bytes) -> None:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                # Somebody was killed over a line, or the disk was full: it must not take the next one with it.
                data = b"\n" + data
            written = os.write(handle, data)
            if written < len(data):
                # On a full disk the next one says why.
                os.write(handle, data[written:])
        finally:
            os.close(handle)

    def _remove_old(self, now: float) -> None:
        for path in self._directory.iterdir():
            if is_old(path.name, now):
                path.unlink(missing_ok=True)

"""What a fetch reports of itself while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from orchestrator.core.progress import Progress, part_of
from orchestrator.drivers.hub.stream import TICK

REPORT_BYTES: Final = 1 << 20
# (name, bytes done, bytes in all) of a file under way, or (remark, 0, 0).
PartReport = tuple[str, int, int]


class Meter:
    """Counts bytes over all files, and reports every MiB or tick, with the files under way; the reports are also how a
    job is told to stop."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress, self._what, self._total = progress, what, total
        self._reported, self._ticked = 0, 0.0
        self.done = 0
        self.parts: Callable[[], Iterable[PartReport]] = tuple

    def add(self, size: int) -> None:
        self.done += size
        self.tick()

    def tick(self) -> None:
        """To be called often: reports when it is time."""
        if abs(self.done - self._reported) >= REPORT_BYTES or time.monotonic() - self._ticked >= TICK:
            self.report()

    def report(self) -> None:
        self._reported, self._ticked = self.done, time.monotonic()
        self._progress(self._what, self.done, self._total)
        for name, done, total in self.parts():
            self._progress(part_of(self._what, name), done, total)

"""Time."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's own."""

    def monotonic(self) -> float:
        """Seconds since boot or so."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

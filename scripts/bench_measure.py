"""What one process cost, its children included, as the kernel counted it.

This module stays small on purpose: a child begins as a copy of the process that measures, whose resident size is
therefore the least that its own peak can be.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """CPU seconds (user and system, of all processes and threads), wall seconds, and the largest resident size that any
    of the processes had, in bytes: private memory, and pages of files that it had mapped."""

    cpu_s: float
    wall_s: float
    peak_bytes: int

    def then(self, later: Cost) -> Cost:
        """Of two steps, one after the other."""
        return Cost(self.cpu_s + later.cpu_s, self.wall_s + later.wall_s, max(self.peak_bytes, later.peak_bytes))

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def measured(argv: list[str], log: Path, env: dict[str, str] | None = None) -> Cost:
    """Runs a command to its end; its output goes to `log`. SystemExit with the end of it when it fails."""
    start = time.monotonic()
    with log.open("wb") as output:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **(env or {})}
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(argv)} ended with {child.returncode}:\n{tail}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - start, usage.ru_maxrss * 1024)

"""What GPUs were seen to do while a level ran: the most memory, the mean power, the mean utilization."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from orchestrator.core.host import GpuSample

# Seconds between two looks.
PERIOD_S = 0.5


@dataclass
class GpuUse:
    """Samples so far, by GPU, in the order in which they came."""

    samples: dict[str, list[GpuSample]] = field(default_factory=dict)
    _next: float = 0.0

    def look(self, gpus: Callable[[], Iterable[GpuSample]]) -> None:
        """Take a sample of each, if it is time again."""
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + PERIOD_S
        for sample in gpus():
            self.samples.setdefault(sample.uuid, []).append(sample)

    def to_json(self) -> list[dict[str, object]]:
        """For each GPU: bytes of memory at most, mean watts and mean per cent (null: not told), and of how many
        samples."""
        return [
            {
                "uuid": uuid,
                "memory_used_max": max(sample.memory_used for sample in samples),
                "power_mean": _mean(sample.power for sample in samples),
                "utilization_mean": _mean(sample.utilization for sample in samples),
                "samples": len(samples),
            }
            for uuid, samples in self.samples.items()
        ]


def _mean(told: Iterable[float | None]) -> float | None:
    known = [value for value in told if value is not None]
    return statistics.fmean(known) if known else None

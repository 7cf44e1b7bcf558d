"""What a build will take, told before it begins: time, disk, memory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.artifacts.disk import amount, host_errors
from orchestrator.artifacts.one_pass import BLOCK_ITEMS, HELD_BYTES, Cost, OutputSpec, fused_with, opened
from orchestrator.artifacts.threads import MAX_WORKERS
from orchestrator.drivers.cgroups import usable_cpus
from orchestrator.errors import HostError

# Python with numpy and gguf, and the tokenizer's tables.
_ITSELF = 150 << 20
# A block as bf16 and as float32, what is made of it, and what that takes on the way; two are in flight for each core.
_BLOCK_BYTES = BLOCK_ITEMS * 16


@dataclass(frozen=True)
class Estimate:
    """`reads` and `writes` in bytes; `seconds` on an otherwise idle machine whose disk keeps up; `memory` in bytes, at
    most."""

    reads: int
    writes: int
    seconds: float
    memory: int
    cores: int

    @property
    def text(self) -> str:
        """For people."""
        minutes = f"{self.seconds / 60:.0f} min" if self.seconds >= 90 else f"{max(1, self.seconds):.0f} s"
        return (
            f"Reads {amount(self.reads)} once and writes {amount(self.writes)}; takes about {minutes} on "
            f"{self.cores} idle cores, and up to {amount(self.memory)} of memory."
        )


def estimate(source: Path, specs: Sequence[OutputSpec]) -> Estimate:
    """What it will take to make all of `specs` from `source`. SourceError where that cannot be made at all."""
    with opened(source) as weights:
        costs = [one.cost(weights) for one in specs]
        units: dict[str, int] = {}
        for tensor in weights.tensors:
            units[fused_with(tensor.name)] = units.get(fused_with(tensor.name), 0) + tensor.size
        reads = sum(tensor.size for tensor in weights.tensors)
    held = 2 * min(max(units.values()), HELD_BYTES) if any(cost.holds for cost in costs) else 0
    return estimate_costs(reads, costs, held)


def estimate_costs(reads: int, costs: Sequence[Cost], held: int = 0) -> Estimate:
    """The same when it is known how many bytes are read and held, and what each artifact costs."""
    cores = min(usable_cpus(), MAX_WORKERS)
    return Estimate(
        reads=reads,
        writes=sum(cost.size for cost in costs),
        seconds=sum(cost.cpu_s for cost in costs) / cores,
        memory=_ITSELF + held + 2 * cores * _BLOCK_BYTES,
        cores=cores,
    )


def refuse_full(place: Path, needed: Estimate) -> None:
    """HostError when the disk of `place` has no room for what will be written."""
    there = next(path for path in (place, *place.parents) if path.exists())
    with host_errors(f"write {place}"):
        free = shutil.disk_usage(there).free
    if needed.writes > free:
        raise HostError(
            f"{place} has {amount(free)} free, and {amount(needed.writes)} are to be written.",
            "Free some disk space, or write to another disk.",
        )

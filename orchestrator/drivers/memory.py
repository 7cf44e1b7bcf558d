"""How much memory there is: the machine's own, and what control groups leave of it."""

from __future__ import annotations

from pathlib import Path

from orchestrator.core.host import Memory
from orchestrator.drivers.cgroups import Limits


def of_machine() -> Memory:
    """What the kernel says that all processes together have."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()
        if number:
            found[name] = int(number[0]) * 1024
    return Memory(found.get("MemTotal", 0), found.get("MemAvailable", 0))


def memory_within(limits: Limits, machine: Memory) -> Memory:
    """The memory of a machine, or of the control group that leaves less of it. A limit above all of it is none."""
    bounds = (bound for bound in limits.memory if bound.limit < machine.total)
    tightest = Limits(tuple(bounds)).tightest
    if tightest is None or tightest.available >= machine.available:
        return machine
    return Memory(tightest.limit, tightest.available, tightest.file)

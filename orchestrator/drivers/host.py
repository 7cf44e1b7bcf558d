"""What this machine is: CPUs, memory, CPU flags, GPUs, and an Ollama that the user installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orchestrator.core.host import Gpu, Host
from orchestrator.drivers.nvml import read_gpus


def read_host() -> Host:
    """The facts of this moment."""
    memory = _meminfo()
    gpus, problem = read_gpus()
    return Host(
        cpus=len(os.sched_getaffinity(0)),
        memory_total=memory.get("MemTotal", 0),
        memory_available=memory.get("MemAvailable", 0),
        cpu_flags=_cpu_flags(),
        gpus=_visible(gpus),
        gpu_problem=problem,
        ollama=shutil.which("ollama"),
    )


def _visible(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves (an empty value leaves none); by index or UUID, as CUDA reads it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    wanted = [item.strip() for item in visible.split(",") if item.strip()]
    return tuple(gpu for index, gpu in enumerate(gpus) if str(index) in wanted or gpu.uuid in wanted)


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()
        if number:
            found[name] = int(number[0]) * 1024
    return found


def _cpu_flags() -> frozenset[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()

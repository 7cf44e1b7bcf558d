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
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus, problem = read_gpus()
    left = visible(gpus, asked)
    return Host(
        cpus=len(os.sched_getaffinity(0)),
        memory_total=memory.get("MemTotal", 0),
        memory_available=memory.get("MemAvailable", 0),
        cpu_flags=_cpu_flags(),
        gpus=left,
        # An empty value asks for the CPU: then no GPU is missing.
        gpu_problem="" if asked == "" else problem or _problem(gpus, left, asked),
        ollama=shutil.which("ollama"),
    )


def visible(gpus: tuple[Gpu, ...], asked: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves (None: unset, all; an empty value: none), in its order, as CUDA reads it:
    by index or the beginning of a UUID, up to the first entry that names none."""
    if asked is None:
        return gpus
    left = []
    for item in (item.strip() for item in asked.split(",")):
        named = next(
            (gpu for gpu in gpus if item == str(gpu.index) or (item[:4] == "GPU-" and gpu.uuid.startswith(item))), None
        )
        if named is None:
            break
        left.append(named)
    return tuple(left)


def _problem(gpus: tuple[Gpu, ...], left: tuple[Gpu, ...], asked: str | None) -> str:
    if asked and gpus and not left:
        return f"CUDA_VISIBLE_DEVICES={asked} names no GPU that orch can use"
    return ""


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

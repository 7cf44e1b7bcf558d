"""What this machine is: CPUs, memory, CPU flags, GPUs and their driver, and an Ollama that the user installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orchestrator.core.host import Gpu, Host
from orchestrator.drivers.nvml import read_nvml


def read_host() -> Host:
    """The facts of this moment."""
    memory = _meminfo()
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    nvidia = read_nvml()
    left = visible(nvidia.gpus, asked)
    return Host(
        cpus=len(os.sched_getaffinity(0)),
        memory_total=memory.get("MemTotal", 0),
        memory_available=memory.get("MemAvailable", 0),
        cpu_flags=_cpu_flags(),
        gpus=left,
        # An empty value asks for the CPU: then no GPU is missing.
        gpu_problem="" if asked == "" else nvidia.problem or _problem(nvidia.gpus, left, asked),
        ollama=shutil.which("ollama"),
        driver=nvidia.driver,
        cuda=nvidia.cuda,
        amd=amd_in(Path("/dev")),
    )


def visible(gpus: tuple[Gpu, ...], asked: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves (None: unset, all; an empty value: none), in its order, as CUDA reads it:
    by index or the beginning of a UUID, up to the first entry that names none. An index or the UUID of a GPU where MIG
    is on means the first of its MIG devices."""
    if asked is None:
        return gpus
    left = []
    for item in (item.strip() for item in asked.split(",")):
        named = next((gpu for gpu in gpus if _names(item, gpu)), None)
        if named is None:
            break
        left.append(named)
    return tuple(left)


def _names(item: str, gpu: Gpu) -> bool:
    """Whether an entry of CUDA_VISIBLE_DEVICES means this GPU, or the GPU that it is a part of."""
    if item.startswith(("GPU-", "MIG-")):
        return gpu.uuid.startswith(item) or gpu.parent.startswith(item)
    return item == str(gpu.index)


def amd_in(devices: Path) -> bool:
    """Whether that directory has the devices that ROCm needs."""
    return (devices / "kfd").exists() and (devices / "dri").is_dir()


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

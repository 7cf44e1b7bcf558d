"""What this machine is: CPUs, memory, CPU flags, GPUs and their driver, and programs that the user installed."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from orchestrator.core.host import Gpu, Host, Nvidia
from orchestrator.drivers import cgroups
from orchestrator.drivers.memory import memory_within, of_machine

NVML = "libnvidia-ml.so.1"


def read_host(programs: Iterable[str] = ()) -> Host:
    """The facts of this moment, the disk excepted; which of these programs are on PATH, too."""
    limits = cgroups.limits_of()
    memory = memory_within(limits, of_machine())
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    nvidia = _nvidia()
    left = visible(nvidia.gpus, asked)
    return Host(
        cpus=cgroups.usable_cpus(limits),
        memory_total=memory.total,
        memory_available=memory.available,
        memory_limit_file=memory.limit_file,
        cpu_flags=_cpu_flags(),
        gpus=left,
        # An empty value asks for the CPU: then no GPU is missing.
        gpu_problem="" if asked == "" else nvidia.problem or _problem(nvidia.gpus, left, asked),
        programs={name: path for name in programs if (path := shutil.which(name)) is not None},
        driver=nvidia.driver,
        cuda=nvidia.cuda,
        amd=amd_in(Path("/dev")),
        gpus_asked=asked is not None,
    )


def disk_free(directory: Path) -> int | None:
    """Bytes that are free on the disk of a directory, which need not be there yet."""
    try:
        there = next(place for place in (directory.absolute(), *directory.absolute().parents) if place.is_dir())
        return shutil.disk_usage(there).free
    except OSError:
        return None


def _nvidia() -> Nvidia:
    try:
        ctypes.CDLL(NVML)
    except OSError:
        return Nvidia()
    # Its binding is large, and most machines that only look have no such GPU.
    from orchestrator.drivers.nvml import read_nvml

    return read_nvml()


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


def _cpu_flags() -> frozenset[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()

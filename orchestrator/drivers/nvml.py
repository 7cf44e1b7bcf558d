"""GPUs through NVML, the library of the NVIDIA driver.

A MIG device is a part of a GPU with memory of its own. Where MIG is on, CUDA runs on such parts only, so they stand for
their GPU here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pynvml

from orchestrator.core.host import Gpu, GpuUser, Nvidia

T = TypeVar("T")

# The kernel's fixed name of the first PID namespace. In any other one (a container, WSL) the driver may leave out the
# processes that are outside of it.
FIRST_PID_NAMESPACE = "pid:[4026531836]"
NO_INSTANCES = "MIG is on, but it has no instances (make one with nvidia-smi mig -cgi PROFILE -C, or turn MIG off)"


def read_gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that answer, and what is wrong with the others, or with the driver (else an empty string)."""
    nvidia = read_nvml()
    return nvidia.gpus, nvidia.problem


def read_nvml() -> Nvidia:
    """All of it, at this moment. No library at all means that there is no NVIDIA GPU, and is no problem."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return Nvidia()
    except pynvml.NVMLError as error:
        return Nvidia(problem=f"NVML: {error}")
    try:
        gpus, problems = _read_each()
        problem = f"NVML: {'; '.join(problems)}" if problems else ""
        return Nvidia(gpus, problem, _driver(), _cuda())
    finally:
        with contextlib.suppress(pynvml.NVMLError):  # with a lost GPU this may fail as well, and all is read by now
            pynvml.nvmlShutdown()


def _read_each() -> tuple[tuple[Gpu, ...], list[str]]:
    """One that has fallen off the bus must not hide the others."""
    gpus: list[Gpu] = []
    problems: list[str] = []
    try:
        count = int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        return (), [str(error)]
    for index in range(count):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            gpu = _gpu(handle, index)
            if not _mig_is_on(handle):
                gpus.append(_with_users(gpu, handle))
                continue
            parts, broken = _mig_devices(handle, gpu)
            gpus += parts
            problems += broken
            if not parts and not broken:
                problems.append(f"GPU {index}: {NO_INSTANCES}")
        except pynvml.NVMLError as error:
            problems.append(f"GPU {index}: {error}")
    return tuple(gpus), problems


def _gpu(handle: Any, index: int) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_total=int(memory.total),
        memory_free=int(memory.free),
        compute_capability=(int(major), int(minor)),
        index=index,
        minor=_optional(lambda: int(pynvml.nvmlDeviceGetMinorNumber(handle))),
    )


def _mig_is_on(handle: Any) -> bool:
    try:
        now, _after_reset = pynvml.nvmlDeviceGetMigMode(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False
    return bool(now == pynvml.NVML_DEVICE_MIG_ENABLE)


def _mig_devices(handle: Any, gpu: Gpu) -> tuple[list[Gpu], list[str]]:
    """The MIG devices of a GPU, and what is wrong with those that do not answer."""
    parts: list[Gpu] = []
    problems: list[str] = []
    for place in range(int(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle))):
        try:
            part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            parts.append(_with_users(_mig_device(part, gpu), part))
        except pynvml.NVMLError_NotFound:
            continue  # the places that a GPU has are more than its instances
        except pynvml.NVMLError as error:
            problems.append(f"GPU {gpu.index}, MIG device {place}: {error}")
    return parts, problems


def _mig_device(part: Any, gpu: Gpu) -> Gpu:
    """What it does not have of its own, it has of its GPU."""
    memory = pynvml.nvmlDeviceGetMemoryInfo(part)
    return replace(
        gpu,
        uuid=str(pynvml.nvmlDeviceGetUUID(part)),
        name=str(pynvml.nvmlDeviceGetName(part)),
        memory_total=int(memory.total),
        memory_free=int(memory.free),
        parent=gpu.uuid,
    )


def _with_users(gpu: Gpu, handle: Any) -> Gpu:
    """Asked after the memory: an engine that is loading then seems to hold too much and never too little."""
    found: list[Any] = []
    complete = _sees_every_process()
    for asked in (
        pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
        pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3,  # clients of MPS are in no other list
    ):
        try:
            found += asked(handle)
        except pynvml.NVMLError_NotSupported:
            # Some GPUs have no graphics and some no MPS; one that does not tell of CUDA tells nothing.
            complete = complete and asked is not pynvml.nvmlDeviceGetComputeRunningProcesses_v3
        except pynvml.NVMLError:
            complete = False
    return replace(gpu, users=tuple(_merged(found)), users_complete=complete)


def _merged(found: list[Any]) -> Iterator[GpuUser]:
    """One for each process: those of two lists have the same memory in both. Without a pid it may be any process."""
    memory: dict[int, int] = {}
    for process in found:
        held = int(process.usedGpuMemory or 0)
        if process.pid == 0:
            yield GpuUser(0, "", held)
        else:
            before = memory.get(process.pid, held)
            memory[process.pid] = max(before, held) if before and held else 0
    for pid, held in memory.items():
        yield GpuUser(pid, _command(pid), held)


def _command(pid: int) -> str:
    """The kernel's name of it ("ollama"; also of a script, where NVML names the interpreter), or else NVML's."""
    try:
        return Path("/proc", str(pid), "comm").read_text("utf-8", "replace").rstrip("\n")
    except OSError:
        words = (_optional(lambda: str(pynvml.nvmlSystemGetProcessName(pid))) or "").split()
    return Path(words[0]).name if words else ""


def _sees_every_process() -> bool:
    return str(Path("/proc/self/ns/pid").readlink()) == FIRST_PID_NAMESPACE


def _driver() -> str:
    return _optional(lambda: str(pynvml.nvmlSystemGetDriverVersion())) or ""


def _cuda() -> tuple[int, int] | None:
    """NVML has it as one number: 13000 is 13.0, 12090 is 12.9."""
    number = _optional(lambda: int(pynvml.nvmlSystemGetCudaDriverVersion_v2()))
    return (number // 1000, number % 1000 // 10) if number else None


def _optional(ask: Callable[[], T]) -> T | None:
    """An answer that orch can do without: None where the driver has none."""
    try:
        return ask()
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None

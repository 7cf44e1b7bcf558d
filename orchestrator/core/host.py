"""What the machine is: facts read once per command, never remembered."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as NVML sees it; memory in bytes, compute capability as (major, minor).

    `index` counts all GPUs of the machine, in the order of their PCI addresses; after a reboot it may be another.
    """

    uuid: str
    name: str
    memory_total: int
    memory_free: int
    compute_capability: tuple[int, int]
    index: int = 0


@dataclass(frozen=True)
class Host:
    """cpus, memory in bytes, CPU flags that engines need, GPUs, and engines that the user installed.

    gpu_problem says which GPUs were left out and why, or why none was found where a driver seems to be present; else
    it is empty.
    """

    cpus: int
    memory_total: int
    memory_available: int
    cpu_flags: frozenset[str]
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""
    ollama: str | None = None

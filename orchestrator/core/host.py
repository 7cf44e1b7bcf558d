"""What the machine is: facts read once per command, never remembered."""

from __future__ import annotations

from dataclasses import dataclass

# ASSUMPTION, not measured: what the NVIDIA driver and the GPU's firmware hold for themselves, with no process to show
# for it. 0.6 GiB, or 2 % of the memory where that is more.
DRIVER_RESERVE = 6 * 2**30 // 10
DRIVER_SHARE = 0.02


@dataclass(frozen=True)
class GpuUser:
    """A process that holds memory of a GPU.

    `pid` and `memory` (bytes) are 0 and `name` (its command's: "ollama", "python3") is empty where the driver does not
    tell them: WSL, MIG, processes of another container.
    """

    pid: int
    name: str
    memory: int

    def __str__(self) -> str:
        who = self.name or "a process"
        told = [f"pid {self.pid}" if self.pid else "", f"{self.memory / 2**30:.1f} GiB" if self.memory else ""]
        return f"{who} ({', '.join(part for part in told if part)})" if any(told) else who


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, or one MIG device of it, as NVML sees it; memory in bytes, compute capability as (major, minor).

    `index` counts all GPUs of the machine, in the order of their PCI addresses; after a reboot it may be another. MIG
    devices have the index of their GPU, which is `parent` by its UUID (empty for a whole GPU). `minor` is N of
    /dev/nvidiaN. `users_told` says that `users` are all that there are: without it, none in the list means nothing.
    """

    uuid: str
    name: str
    memory_total: int
    memory_free: int
    compute_capability: tuple[int, int]
    index: int = 0
    users: tuple[GpuUser, ...] = ()
    parent: str = ""
    minor: int | None = None
    users_told: bool = False

    @property
    def lingering(self) -> int:
        """Bytes that are held and that no living process accounts for: what a dead process has not given back yet.

        0 where it is not known who holds how much; what the driver itself holds is an assumption.
        """
        if not self.users_told or not all(user.memory for user in self.users):
            return 0
        reserve = max(DRIVER_RESERVE, int(self.memory_total * DRIVER_SHARE))
        return max(0, self.memory_total - self.memory_free - sum(user.memory for user in self.users) - reserve)


@dataclass(frozen=True)
class Host:
    """cpus, memory in bytes, CPU flags that engines need, GPUs, and engines that the user installed.

    gpu_problem says which GPUs were left out and why, or why none was found where a driver seems to be present; else
    it is empty. `driver` is the NVIDIA driver's version ("580.65.06"; empty without) and `cuda` the newest CUDA that it
    runs, (13, 0). `amd` says that an AMD GPU could be used: its devices are there.
    """

    cpus: int
    memory_total: int
    memory_available: int
    cpu_flags: frozenset[str]
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""
    ollama: str | None = None
    driver: str = ""
    cuda: tuple[int, int] | None = None
    amd: bool = False

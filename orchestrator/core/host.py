"""What the machine is: facts read once per command, never remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# GPUs, as many as one machine usually has at most.
MOST_GPUS = 8
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
        known = [f"pid {self.pid}" if self.pid else "", f"{self.memory / 2**30:.1f} GiB" if self.memory else ""]
        return f"{who} ({', '.join(part for part in known if part)})" if any(known) else who


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, or one MIG device of it, as NVML sees it; memory in bytes, compute capability as (major, minor).

    `index` counts all GPUs of the machine, in the order of their PCI addresses; after a reboot it may be another. MIG
    devices have the index of their GPU, which is `parent` by its UUID (empty for a whole GPU). `minor` is N of
    /dev/nvidiaN. `users_complete` says that `users` are all that there are: without it, none in the list means nothing.
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
    users_complete: bool = False

    @property
    def lingering(self) -> int:
        """Bytes that are held and that no living process accounts for: what a dead process has not given back yet.

        0 where it is not known who holds how much; what the driver itself holds is an assumption.
        """
        if not self.users_complete or not all(user.memory for user in self.users):
            return 0
        reserve = max(DRIVER_RESERVE, int(self.memory_total * DRIVER_SHARE))
        return max(0, self.memory_total - self.memory_free - sum(user.memory for user in self.users) - reserve)


@dataclass(frozen=True)
class GpuSample:
    """What a GPU does at a moment: bytes of its memory that are in use, the watts that it draws, and the per cent of
    the last moments in which it computed; None where the driver does not tell (MIG)."""

    uuid: str
    memory_used: int
    power: float | None
    utilization: int | None


@dataclass(frozen=True)
class Memory:
    """What processes may take together, in bytes, and what of it is free.

    `limit_file` is where the limit of the control group stands that leaves least; empty: the machine itself does.
    """

    total: int
    available: int
    limit_file: str = ""

    @property
    def name(self) -> str:
        """Whose it is, for people."""
        return f"this control group ({self.total >> 20} MiB)" if self.limit_file else "this machine"


@dataclass(frozen=True)
class Nvidia:
    """What NVML tells: the GPUs that answer, what is wrong with the others or with the driver (else an empty string),
    the driver's version (else empty), and the newest CUDA that it runs."""

    gpus: tuple[Gpu, ...] = ()
    problem: str = ""
    driver: str = ""
    cuda: tuple[int, int] | None = None


@dataclass(frozen=True)
class Host:
    """CPUs and memory, CPU flags that engines need, GPUs, and programs that the user installed.

    CPUs and memory are what a process that orch starts has, of this machine or of the control groups that it is in:
    `cpus` those that it can keep busy, memory in bytes and as in Memory.
    gpu_problem says which GPUs were left out and why, or why none was found where a driver seems to be present; else
    it is empty. `programs` has the path of each program that engines ask for (their sheets) and that is on PATH, by
    name. `driver` is the NVIDIA driver's version ("580.65.06"; empty without) and `cuda` the newest CUDA that it
    runs, (13, 0). `gpus_asked`: the caller has said which GPUs count, or that none does. `amd` says that an AMD GPU
    could be used: its devices are there. `disk_free`: bytes that are free where orch keeps its data, None where nobody
    has looked.
    """

    cpus: int
    memory_total: int
    memory_available: int
    cpu_flags: frozenset[str]
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""
    programs: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""
    cuda: tuple[int, int] | None = None
    amd: bool = False
    gpus_asked: bool = False
    memory_limit_file: str = ""
    disk_free: int | None = None

    @property
    def memory(self) -> Memory:
        """The memory that processes of this host have."""
        return Memory(self.memory_total, self.memory_available, self.memory_limit_file)

    def having(self, memory: Memory | None) -> Host:
        """The same for what runs elsewhere on it, with other memory; None: nothing else is known."""
        if memory is None:
            return self
        return replace(
            self,
            memory_total=memory.total,
            memory_available=memory.available,
            memory_limit_file=memory.limit_file,
        )

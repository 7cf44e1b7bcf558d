"""How a process is started, and what is seen of it: the values between engine fact sheets and targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

# What stands in a Launch for a secret of its instance's own.
SECRET = "{secret}"
# The names of the targets: processes of this machine, containers of its Docker daemon.
LOCAL = "local"
DOCKER = "docker"


@dataclass(frozen=True)
class Container:
    """What a Launch needs besides, to be a container.

    `image` names exactly one image: NAME@sha256:DIGEST, or sha256:ID of one that was built or loaded here. `reads` and
    `writes` are host directories that it sees at their own paths, so that paths mean the same inside and outside.
    `gpus` are UUIDs, given to it `gpu_way` ("nvidia": the toolkit's hook, "cdi"); `devices` are host device nodes.
    `memory_mib` None: as much as the target allows any. On the host's network it has no address of its own, and its
    port is the host's.
    """

    image: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    gpu_way: str = ""
    devices: tuple[str, ...] = ()
    shm_mib: int = 64
    memory_mib: int | None = None
    pids: int = 4096
    host_network: bool = False


@dataclass(frozen=True)
class Launch:
    """One process to be kept running.

    argv and env's values may hold

        {port}    chosen by the target when it starts the process first, kept over restarts
        {dir}     where the target wrote this instance's files
        {tmp}     a directory of this instance alone with a short path, empty at each start, gone when it is stopped
        {cache}   a directory of all instances that outlives them; nothing in it may be needed
        {python}  orch's own interpreter
        {threads} how many threads are to compute, by the CPUs that it has where it starts
        {secret}  of this instance alone, in env only: what it asks of whoever asks it (empty in a file for others)

    An argv[0] without a slash is looked up in `environment`'s bin/, or on PATH when environment is None; in a
    container an argv[0] of {entrypoint} is the image's own entrypoint, word by word.
    env comes on top of a small allow-list of the caller's environment; it is never inherited whole.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    environment: str | None = None
    stop_grace_s: float = 10.0
    port: int | None = None  # a fixed port (the gateway's); None: the target picks a free one
    container: Container | None = None


class InstanceState(StrEnum):
    """RUNNING: the process lives. BACKOFF: it crashed and its keeper waits to restart it.
    STOPPED: nobody asks for it to run, or its keeper and it are both gone."""

    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Exit:
    """How a process ended: its exit code (None when unknown), the signal that ended it, UTC ISO 8601 time; `reason`
    where the target knows more. `memory_limit` is not None where the kernel ended it, or a part of it, for want of
    memory: the bytes that there were, 0 where only the machine sets a limit."""

    code: int | None
    signal: int | None
    at: str
    reason: str = ""
    memory_limit: int | None = None

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        if self.signal is not None:
            return f"was ended by signal {self.signal}"
        return f"exited with code {self.code}" if self.code is not None else "ended"


def out_of_memory(code: int | None, signal: int | None, at: str, limit: int) -> Exit:
    """An exit for want of memory (`limit`: see Exit). What exited by itself did so when another process was ended."""
    reason = ran_out(limit)
    if signal is None and code is not None:
        reason = f"exited with code {code} as memory ran out ({_whose(limit)})"
    return Exit(code, signal, at, reason, limit)


def ran_out(limit: int) -> str:
    """What a process did that the kernel ended for want of memory: of `limit` bytes, or (0) of all that there is."""
    return f"ran out of memory ({_whose(limit)})"


def _whose(limit: int) -> str:
    return f"its limit is {limit >> 20} MiB" if limit else "this machine has no more"


@dataclass(frozen=True)
class Children:
    """The living processes that an instance's own has started: how many, and how long they have computed together, in
    clock ticks."""

    count: int
    ticks: int


@dataclass(frozen=True)
class Usage:
    """What a running instance takes of its host: bytes of memory in RAM (None: its target cannot tell), of all its
    processes; and their pids, as the host counts them, where it may hold memory of a GPU."""

    memory: int | None = None
    pids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Instance:
    """One instance as its target sees it now.

    label is the JSON that was given with the launch (the Deployment's record: truth lies with the process).
    starts counts how often the process was started since the last ensure (1 = never restarted);
    last_exit is the latest exit that nobody asked for since the last ensure.
    problem says what is wrong with its record, empty when nothing is: the rest is then what could be read (no argv, an
    empty label), and it can only be stopped and removed. secret is what its {secret} stands for. children are None
    where they are not seen.
    """

    name: str
    state: InstanceState
    supervised: bool
    launch: Launch
    label: str
    port: int | None = None
    pid: int | None = None
    since: str | None = None
    starts: int = 0
    last_exit: Exit | None = None
    problem: str = ""
    target: str = LOCAL
    host: str = "127.0.0.1"
    drift: str = ""
    secret: str = field(default="", repr=False)
    children: Children | None = None

    @property
    def url(self) -> str:
        """Where it answers: http://HOST:PORT."""
        return f"http://{self.host}:{self.port}"

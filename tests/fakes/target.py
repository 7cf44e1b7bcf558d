"""A target in memory: processes that start, answer after a while, crash and hang as they are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fakes.engine import EngineServer, OllamaStore
from fakes.faults import Faults
from orchestrator import __version__
from orchestrator.core.deployment import Deployment
from orchestrator.core.gateway_status import GatewayState, Phase, is_gateway
from orchestrator.core.keys import KeyRing
from orchestrator.core.launch import (
    DOCKER,
    LOCAL,
    SECRET,
    Children,
    Exit,
    Instance,
    InstanceState,
    Launch,
    Usage,
    out_of_memory,
)
from orchestrator.core.progress import Progress
from orchestrator.core.routes import PROTOCOL, RouteTable
from orchestrator.drivers.base import ApiKeys, Environments, Images
from orchestrator.errors import HostError

BOOT_S = 0.5
LOOPBACK = "127.0.0.1"
FIRST_PORT = 20001
CONTAINER_PORT = 8000
PAUSED = "is paused"
FIRST_PID = 101
MEMORY = 100_000_000


class FakeClock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Fate:
    """What becomes of an instance when it starts: it hangs, or (with a log) dies instead of getting ready, of want of
    memory if there is a `memory_limit`; an Ollama may fall back to the CPU. How it died is known `late` seconds later.
    """

    hangs: bool = False
    falls_back: bool = False
    log: str = ""
    code: int = 1
    memory_limit: int | None = None
    late: float = 0.0


@dataclass
class Process:
    """One instance of the fake target: its record, and its process as long as that lives."""

    launch: Launch
    label: str
    port: int
    state: InstanceState = InstanceState.STOPPED
    supervised: bool = False
    pid: int | None = None
    starts: int = 0
    last_exit: Exit | None = None
    coming: tuple[float, Exit] | None = None  # an exit, and when it will be known
    ready_at: float = 0.0
    fate: Fate = field(default_factory=Fate)
    server: EngineServer | None = None
    problem: str = ""  # with one, nothing else of its record can be read
    host: str = LOOPBACK
    drift: str = ""
    secret: str = ""
    keys: KeyRing = field(default_factory=KeyRing)
    # What the gateway and an Ollama keep on disk, in the instance's directory.
    routes: RouteTable = field(default_factory=RouteTable)
    paused_until: dict[str, float] = field(default_factory=dict)
    phase: Phase = Phase.SERVING
    version: str = __version__
    protocol: int = PROTOCOL
    kept: OllamaStore = field(default_factory=OllamaStore)
    children: Children | None = None
    computes: bool = False

    @property
    def listens(self) -> bool:
        """It has its port: one that leaves has given it away."""
        return self.state is InstanceState.RUNNING and self.phase is Phase.SERVING


class FakeTarget:
    """Instances by name; `fates` by instance name are taken at every start; `logs_of` outlive their instances. With
    `unreachable` set nothing of it can be asked or done."""

    def __init__(
        self,
        clock: FakeClock,
        faults: Faults,
        environments: Environments,
        images: Images,
        keys: ApiKeys,
        name: str = LOCAL,
    ) -> None:
        self.name = name
        self.processes: dict[str, Process] = {}
        self.files: dict[str, dict[str, str]] = {}
        self.logs_of: dict[str, str] = {}
        self.fates: dict[str, Fate] = {}
        self.unreachable: HostError | None = None
        self.next_port = FIRST_PORT
        self.next_pid = FIRST_PID
        self._clock = clock
        self._faults = faults
        self._environments = environments
        self._images = images
        self._keys = keys

    @contextmanager
    def _call(self, what: str) -> Iterator[None]:
        with self._faults.call(f"target.{what}"):
            if self.unreachable is not None:
                raise self.unreachable
            yield

    def observe(self) -> tuple[Instance, ...]:
        with self._call("observe"):
            return tuple(self._instance(name) for name in sorted(self.processes))

    def ensure(self, name: str, launch: Launch, label: str) -> Instance:
        with self._call(f"ensure {name}"):
            process = self.now(name)
            if process is not None and process.state is InstanceState.RUNNING:
                self._check_record(name, process)
                if process.launch != launch:
                    raise HostError(f"{name} already runs, with other settings.", "Stop it first, then start it again.")
                process.label, process.supervised, process.drift = label, True, ""
            else:
                self._check_program(name, launch)
                new = Process(launch, label, self._choose_port(launch, process), supervised=True)
                new.host = self._choose_host(name, launch)
                if process is not None:
                    new.routes, new.kept = process.routes, process.kept
                if any(SECRET in value for _, value in launch.env):
                    new.secret = process.secret if process is not None and process.secret else f"of {name}"
                self.processes[name] = new
                self.start(name)
            return self._instance(name)

    def relabel(self, name: str, launch: Launch, label: str) -> None:
        with self._call(f"relabel {name}"):
            process = self._known(name)
            process.launch, process.label = launch, label

    def release(self, name: str) -> None:
        with self._call(f"release {name}"):
            self._known(name).supervised = False

    def write_file(self, name: str, filename: str, text: str) -> None:
        with self._call(f"write_file {name} {filename}"):
            self.files.setdefault(name, {})[filename] = text

    def remove_file(self, name: str, filename: str) -> None:
        with self._call(f"remove_file {name} {filename}"):
            self.files.get(name, {}).pop(filename, None)
            process = self.processes.get(name)
            if process is not None:
                process.kept.blobs.discard(filename.removeprefix("models/blobs/").replace("-", ":"))

    def stop(self, name: str, progress: Progress) -> None:
        with self._call(f"stop {name}"):
            process = self.processes.get(name)
            if process is not None:
                progress(f"stopping {name}", 0, 0)
                self._end(process, InstanceState.STOPPED)
                process.supervised = False

    def remove(self, name: str) -> None:
        with self._call(f"remove {name}"):
            process = self.now(name)
            lives = process is not None and (process.state is not InstanceState.STOPPED or process.supervised)
            if process is not None and lives and not process.problem:
                raise HostError(f"{name} still runs.", "Stop it before it is removed.")
            self.processes.pop(name, None)
            self.files.pop(name, None)

    def usage(self, instance: Instance) -> Usage:
        with self._call(f"usage {instance.name}"):
            process = self.now(instance.name)
            if process is None or process.pid is None:
                return Usage()
            return Usage(MEMORY, (process.pid,) if self.name == LOCAL else ())

    def log_tail(self, name: str, lines: int) -> str:
        with self._call(f"log_tail {name}"):
            return "\n".join(self.logs_of.get(name, "").splitlines()[-lines:])

    def log(self, name: str, lines: int, going_on: Callable[[], bool]) -> Iterator[str] | None:
        text = self.logs_of.get(name)
        return iter(text.splitlines()[-lines:]) if text is not None else None

    def logs(self) -> tuple[str, ...]:
        return tuple(sorted(self.logs_of))

    def start(self, name: str) -> None:
        """Have the process of a known instance live, as its keeper does after a crash."""
        process = self.processes[name]
        process.state, process.pid, process.starts = InstanceState.RUNNING, self.next_pid, process.starts + 1
        self.next_pid += 1
        process.ready_at = self._clock.now + BOOT_S
        process.fate = self.fates.get(name, Fate())
        self.logs_of[name] = "starting\n"
        if is_gateway(name):
            kept = self.files.get(name, {}).get("routes.json")
            if kept is not None:
                process.routes = GatewayState.from_json(json.loads(kept)).routes
            process.keys = self._keys.read()
            process.phase = Phase.WAITING if "--take-over" in process.launch.argv else Phase.SERVING
        elif process.label.startswith("{"):
            made = Deployment.from_label(process.label)
            on_gpu = False if process.fate.falls_back else None
            process.server = EngineServer(made, self.files.get(name, {}), process.kept, on_gpu)

    def crash(self, name: str, code: int = 1) -> None:
        """Its process ends and nobody asked for that; its keeper waits to restart it."""
        process = self.processes[name]
        self._end(process, InstanceState.BACKOFF if process.supervised else InstanceState.STOPPED)
        at = f"at {self._clock.now}"
        limit = process.fate.memory_limit
        told = Exit(code, None, at) if limit is None else out_of_memory(None, 9, at, limit)
        process.last_exit, process.coming = None, (self._clock.now + process.fate.late, told)

    def damage(self, name: str) -> None:
        """Its record can be read no more; its process goes on."""
        self.processes[name].problem = "spec.json: log is missing"

    def answering(self, host: str, port: int) -> Process | None:
        """The process that listens there, if it is ready."""
        for name in self.processes:
            process = self.now(name)
            at = process is not None and (process.host, process.port) == (host, port)
            if process is not None and at and process.listens:
                silent = process.fate.hangs or process.drift == PAUSED
                return process if self._clock.now >= process.ready_at and not silent else None
        return None

    def now(self, name: str) -> Process | None:
        """The instance as it is now: what dies while it gets ready is dead once that time has come."""
        process = self.processes.get(name)
        if process is None:
            return None
        dies = process.state is InstanceState.RUNNING and process.fate.log != ""
        if dies and self._clock.now >= process.ready_at:
            self.logs_of[name] += process.fate.log
            self.crash(name, process.fate.code)
        if process.coming is not None and self._clock.now >= process.coming[0]:
            process.last_exit, process.coming = process.coming[1], None
        return process

    def _instance(self, name: str) -> Instance:
        process = self.now(name)
        assert process is not None
        return Instance(
            name=name,
            state=process.state,
            supervised=process.supervised,
            launch=Launch(()) if process.problem else process.launch,
            label="" if process.problem else process.label,
            port=process.port,
            pid=process.pid,
            starts=process.starts,
            last_exit=process.last_exit,
            problem=process.problem,
            target=self.name,
            host=process.host,
            drift=process.drift,
            secret=process.secret,
            children=self._children(process),
        )

    @staticmethod
    def _children(process: Process) -> Children | None:
        """What computes has computed more each time that somebody looks; an Ollama without a model has none."""
        if process.server is not None and process.server.unloaded:
            return Children(0, 0)
        if process.children is not None and process.computes:
            process.children = Children(process.children.count, process.children.ticks + 100)
        return process.children

    def _known(self, name: str) -> Process:
        process = self.now(name)
        if process is None:
            kind = "container" if self.name == DOCKER else "local process"
            raise HostError(f"There is no {kind} named {name}.")
        self._check_record(name, process)
        return process

    def _check_record(self, name: str, process: Process) -> None:
        if process.problem:
            raise HostError(f"The record of {name} is damaged, and it still runs: {process.problem}.")

    def _end(self, process: Process, state: InstanceState) -> None:
        process.state, process.pid, process.server = state, None, None

    def _check_program(self, name: str, launch: Launch) -> None:
        if self.name != DOCKER:
            ready = {seen.name for seen in self._environments.observe() if not seen.problem}
            if launch.environment is not None and launch.environment not in ready:
                raise HostError(f"Environment {launch.environment} is not ready: it is not installed.")
        elif launch.container is None:
            raise HostError(f"{name} has no image to run in a container.")
        elif launch.container.image not in self._images.observe():
            raise HostError(f"The image {launch.container.image} is not here.", "orch up pulls it")

    def _choose_port(self, launch: Launch, before: Process | None) -> int:
        if launch.port is not None:
            if any(p.port == launch.port and p.listens for p in self.processes.values()):
                raise HostError(f"Port {launch.port} is taken.", "End that program, or choose another port.")
            return launch.port
        if self.name == DOCKER:
            return CONTAINER_PORT
        if before is not None:
            return before.port
        self.next_port += 1
        return self.next_port - 1

    def _choose_host(self, name: str, launch: Launch) -> str:
        """The lowest address that no other container has; the host's network has none of its own."""
        if launch.container is None or launch.container.host_network:
            return LOOPBACK
        taken = {process.host for other, process in self.processes.items() if other != name}
        return next(host for host in (f"172.30.0.{n}" for n in range(2, 255)) if host not in taken)

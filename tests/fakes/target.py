"""A target in memory: processes that start, answer after a while, crash and hang as they are told."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from fakes.faults import Faults
from orchestrator.core.deployment import Deployment
from orchestrator.core.launch import Exit, Instance, InstanceState, Launch
from orchestrator.core.progress import Progress
from orchestrator.core.routes import RouteTable
from orchestrator.drivers.base import Environments, Reply
from orchestrator.errors import HostError

BOOT_S = 0.5
FIRST_PORT = 20001
FIRST_PID = 101


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
    """What becomes of an instance when it starts: it hangs, or (with a log) dies instead of getting ready."""

    hangs: bool = False
    log: str = ""
    code: int = 1


class EngineServer:
    """The HTTP side of one started engine. Its adapters come from the argv, as the real one's do; `asked` are the
    bodies of all chats so far."""

    def __init__(self, deployment: Deployment, launch: Launch) -> None:
        self.deployment = deployment
        self.imported = not deployment.imports
        self.asked: list[dict[str, Any]] = []
        argv = launch.argv
        modules = argv[argv.index("--lora-modules") + 1 :] if "--lora-modules" in argv else ()
        self.adapters = {entry["name"]: entry["path"] for entry in map(json.loads, modules)}

    def get(self, path: str) -> Reply:
        body: Any = {}
        match self.deployment.engine, path:
            case _, "/health":
                body = {"status": "ok"}
            case "ollama", "/api/version":
                body = {"version": "0.40.2"}
            case "ollama", "/api/tags":
                body = {"models": [{"name": f"{self.deployment.served_name}:latest"}] if self.imported else []}
            case "llamacpp", "/props":
                body = {"model_path": self.deployment.model_path}
            case "vllm", "/v1/models":
                base = {"id": self.deployment.served_name, "root": self.deployment.model_path, "parent": None}
                added = [{"id": n, "root": p, "parent": base["id"]} for n, p in self.adapters.items()]
                body = {"object": "list", "data": [base, *added]}
            case _:
                return _reply(404, {"error": {"message": f"no {path}"}})
        return _reply(200, body)

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        if path == "/v1/chat/completions":
            self.asked.append(body)
            return self._chat(str(body.get("model")))
        if self.deployment.engine == "vllm" and path == "/v1/load_lora_adapter":
            if body["lora_name"] in self.adapters and not body.get("load_inplace"):
                return _reply(400, {"error": {"message": f"The lora adapter {body['lora_name']} is loaded already"}})
            self.adapters[body["lora_name"]] = body["lora_path"]
            return _reply(200, None)
        if self.deployment.engine == "vllm" and path == "/v1/unload_lora_adapter":
            if self.adapters.pop(body["lora_name"], None) is None:
                return _reply(404, {"error": {"message": f"The lora adapter {body['lora_name']} cannot be found"}})
            return _reply(200, None)
        return _reply(404, {"error": {"message": f"no {path}"}})

    def _chat(self, name: str) -> Reply:
        known = {self.deployment.served_name, *self.adapters}
        # llama.cpp answers to any name.
        if self.deployment.engine != "llamacpp" and (name not in known or not self.imported):
            return _reply(404, {"error": {"message": f"The model `{name}` does not exist."}})
        return _reply(200, {"model": name, "choices": [{"message": {"content": "."}}]})


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
    ready_at: float = 0.0
    fate: Fate = field(default_factory=Fate)
    server: EngineServer | None = None
    problem: str = ""  # with one, nothing else of its record can be read
    # What the gateway keeps on disk, in its instance's directory.
    routes: RouteTable = field(default_factory=RouteTable)


class FakeTarget:
    """Instances by name; `fates` by instance name are taken at every start; `logs` outlive their instances."""

    def __init__(self, clock: FakeClock, faults: Faults, environments: Environments) -> None:
        self.processes: dict[str, Process] = {}
        self.files: dict[str, dict[str, str]] = {}
        self.logs: dict[str, str] = {}
        self.fates: dict[str, Fate] = {}
        self.next_port = FIRST_PORT
        self.next_pid = FIRST_PID
        self._clock = clock
        self._faults = faults
        self._environments = environments

    def observe(self) -> tuple[Instance, ...]:
        with self._faults.call("target.observe"):
            return tuple(self._instance(name) for name in sorted(self.processes))

    def ensure(self, name: str, launch: Launch, label: str) -> Instance:
        with self._faults.call(f"target.ensure {name}"):
            process = self._now(name)
            if process is not None and process.state is InstanceState.RUNNING:
                self._check_record(name, process)
                if process.launch != launch:
                    raise HostError(f"{name} runs already, with other settings.", "Stop it first, then start it again.")
                process.label, process.supervised = label, True
            else:
                self._check_environment(launch)
                port = self._choose_port(launch, process)
                routes = process.routes if process is not None else RouteTable()
                self.processes[name] = Process(launch, label, port, supervised=True, routes=routes)
                self.start(name)
            return self._instance(name)

    def relabel(self, name: str, launch: Launch, label: str) -> None:
        with self._faults.call(f"target.relabel {name}"):
            process = self._known(name)
            process.launch, process.label = launch, label

    def write_file(self, name: str, filename: str, text: str) -> None:
        with self._faults.call(f"target.write_file {name} {filename}"):
            self.files.setdefault(name, {})[filename] = text

    def execute(self, name: str, argv: tuple[str, ...], timeout_s: float, progress: Progress) -> str:
        with self._faults.call(f"target.execute {name} {argv[1]}"):
            server = self._known(name).server
            if server is None:
                raise HostError(f"{argv[0]} failed with code 1.", detail="could not connect")
            server.imported = True
            return "success"

    def stop(self, name: str, progress: Progress) -> None:
        with self._faults.call(f"target.stop {name}"):
            process = self.processes.get(name)
            if process is not None:
                progress(f"stopping {name}", 0, 0)
                self._end(process, InstanceState.STOPPED)
                process.supervised = False

    def remove(self, name: str) -> None:
        with self._faults.call(f"target.remove {name}"):
            process = self._now(name)
            lives = process is not None and (process.state is not InstanceState.STOPPED or process.supervised)
            if process is not None and lives and not process.problem:
                raise HostError(f"{name} still runs.", "Stop it before it is removed.")
            self.processes.pop(name, None)
            self.files.pop(name, None)

    def log_tail(self, name: str, lines: int) -> str:
        with self._faults.call(f"target.log_tail {name}"):
            return "\n".join(self.logs.get(name, "").splitlines()[-lines:])

    def start(self, name: str) -> None:
        """Have the process of a known instance live, as its keeper does after a crash."""
        process = self.processes[name]
        process.state, process.pid, process.starts = InstanceState.RUNNING, self.next_pid, process.starts + 1
        self.next_pid += 1
        process.ready_at = self._clock.now + BOOT_S
        process.fate = self.fates.get(name, Fate())
        self.logs[name] = "starting\n"
        if process.label.startswith("{"):
            process.server = EngineServer(Deployment.model_validate_json(process.label), process.launch)

    def crash(self, name: str, code: int = 1) -> None:
        """Its process ends and nobody asked for that; its keeper waits to restart it."""
        process = self.processes[name]
        self._end(process, InstanceState.BACKOFF if process.supervised else InstanceState.STOPPED)
        process.last_exit = Exit(code, None, f"at {self._clock.now}")

    def damage(self, name: str) -> None:
        """Its record can be read no more; its process goes on."""
        self.processes[name].problem = "spec.json: log is missing"

    def answering(self, port: int) -> Process | None:
        """The process that listens there, if it is ready."""
        for name in self.processes:
            process = self._now(name)
            if process is not None and process.port == port and process.state is InstanceState.RUNNING:
                return process if self._clock.now >= process.ready_at and not process.fate.hangs else None
        return None

    def _now(self, name: str) -> Process | None:
        """The instance as it is now: what dies while it gets ready is dead once that time has come."""
        process = self.processes.get(name)
        if process is None or process.state is not InstanceState.RUNNING:
            return process
        if process.fate.log and self._clock.now >= process.ready_at:
            self.logs[name] += process.fate.log
            self.crash(name, process.fate.code)
        return process

    def _instance(self, name: str) -> Instance:
        process = self._now(name)
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
        )

    def _known(self, name: str) -> Process:
        process = self._now(name)
        if process is None:
            raise HostError(f"There is no local process named {name}.")
        self._check_record(name, process)
        return process

    def _check_record(self, name: str, process: Process) -> None:
        if process.problem:
            raise HostError(f"The record of {name} is damaged, and it still runs: {process.problem}.")

    def _end(self, process: Process, state: InstanceState) -> None:
        process.state, process.pid, process.server = state, None, None

    def _check_environment(self, launch: Launch) -> None:
        ready = {seen.name for seen in self._environments.observe() if not seen.problem}
        if launch.environment is not None and launch.environment not in ready:
            raise HostError(f"Environment {launch.environment} is not ready: it is not installed.")

    def _choose_port(self, launch: Launch, before: Process | None) -> int:
        if launch.port is not None:
            if any(p.port == launch.port and p.state is InstanceState.RUNNING for p in self.processes.values()):
                raise HostError(f"Port {launch.port} is taken.", "End that program, or choose another port.")
            return launch.port
        if before is not None:
            return before.port
        self.next_port += 1
        return self.next_port - 1


def _reply(status: int, body: Any) -> Reply:
    return Reply(status, body, "" if body is None else json.dumps(body))

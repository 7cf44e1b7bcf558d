"""All fakes together as one World, made fresh or from an Observed."""

from __future__ import annotations

from fakes.faults import Faults
from fakes.gateway import FakeGateway, FakeHttp
from fakes.materials import SIZE, FakeBuilder, FakeEnvironments, FakeHub, FakeRecords, FakeStore
from fakes.target import EngineServer, FakeClock, FakeTarget, Process
from orchestrator.core.artifact import FileEntry, Manifest, Recipe
from orchestrator.core.events import Event
from orchestrator.core.host import Host
from orchestrator.core.launch import Instance, InstanceState, Launch
from orchestrator.core.observed import Observed
from orchestrator.core.steps import GATEWAY, Plan
from orchestrator.drivers.base import World
from orchestrator.observe import observe
from orchestrator.run import run

LOADING_S = 5.0


def gateway_launch(listen: str) -> Launch:
    """How the fake gateway is started."""
    argv = ("{python}", "-m", "orchestrator.gateway", "--listen", listen)
    return Launch(argv, stop_grace_s=20.0, port=int(listen.rpartition(":")[2]))


def never() -> bool:
    """Nobody interrupts."""
    return False


class FakeWorld:
    """The fakes by name, and the World made of them. Can be copied with copy.deepcopy."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.clock = FakeClock()
        self.faults = Faults()
        self.environments = FakeEnvironments(self.faults)
        self.target = FakeTarget(self.clock, self.faults, self.environments)
        self.gateway = FakeGateway(self.target, self.clock, self.faults)
        self.http = FakeHttp(self.target, self.faults)
        self.store = FakeStore(self.faults)
        self.hub = FakeHub(self.faults)
        self.builder = FakeBuilder(self.faults)
        self.records = FakeRecords(self.faults)
        self.events: list[Event] = []

    @property
    def world(self) -> World:
        return World(
            host=self._host,
            hub=self.hub,
            store=self.store,
            builder=self.builder,
            environments=self.environments,
            targets={"local": self.target},
            gateway=self.gateway,
            gateway_launch=gateway_launch,
            http=self.http,
            records=self.records,
            clock=self.clock,
        )

    def _host(self) -> Host:
        return self.host

    def observe(self) -> Observed:
        """The world now, without disturbing the count of calls."""
        recording, self.faults.recording = self.faults.recording, False
        try:
            return observe(self.world)
        finally:
            self.faults.recording = recording

    def run(self, plan: Plan, interrupted=never) -> list[Event]:  # type: ignore[no-untyped-def]
        """Run a plan while the faults watch; its events, also in `events` when it raises."""
        self.events = []
        self.faults.recording = True
        try:
            run(plan, self.world, self.events.append, interrupted)
        finally:
            self.faults.recording = False
        return self.events

    def chat(self, name: str) -> int:
        """The status that a client gets who asks for a name at the gateway; 0 when nothing answers."""
        process = self.target.processes.get(GATEWAY)
        if process is None:
            return 0
        reply = self.http.post(f"http://{process.label}/v1/chat/completions", {"model": name}, 1.0)
        return reply.status if reply is not None else 0

    @classmethod
    def of(cls, observed: Observed) -> FakeWorld:
        """A world that looks like this. What runs and does not answer is still loading."""
        made = cls(observed.host)
        made.environments.installed = dict(observed.environments)
        for key, size in observed.finished.items():
            file = FileEntry(path="made", size=size, sha256="0" * 64)
            recipe = next(recipe for recipe in Recipe if key.startswith(recipe.value))
            made.store.entries[key] = Manifest(
                key=key, recipe=recipe, source="given", builder={}, files=(file,), created="2026-01-01T00:00:00+00:00"
            )
        for profile, desired in observed.desired.items():
            made.records.record(profile, desired)
        for engine in observed.engines:
            process = _process(engine.instance)
            if engine.running:
                process.server = EngineServer(engine.deployment, engine.instance.launch)
                process.ready_at = 0.0 if engine.answers else LOADING_S
                process.server.imported |= engine.answers
                if engine.loaded is not None:
                    process.server.adapters = dict(engine.loaded)
            made.target.processes[engine.instance.name] = process
        if observed.gateway.instance is not None:
            process = made.target.processes[GATEWAY] = _process(observed.gateway.instance)
            if observed.gateway.status is not None:
                process.routes = observed.gateway.status.routes
        ports = [process.port for process in made.target.processes.values()]
        pids = [process.pid or 0 for process in made.target.processes.values()]
        made.target.next_port = max([made.target.next_port - 1, *(port for port in ports if port >= 20000)]) + 1
        made.target.next_pid = max([made.target.next_pid - 1, *pids]) + 1
        return made


def _process(instance: Instance) -> Process:
    return Process(
        launch=instance.launch,
        label=instance.label,
        port=instance.port or 0,
        state=instance.state,
        supervised=instance.supervised,
        pid=instance.pid if instance.state is InstanceState.RUNNING else None,
        starts=instance.starts,
        last_exit=instance.last_exit,
    )


__all__ = ["SIZE", "FakeWorld"]

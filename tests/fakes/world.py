"""All fakes together as one World, made fresh or from an Observed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fakes.asks import gateway_launch
from fakes.engine import EngineServer, tagged
from fakes.faults import Faults
from fakes.gateway import FakeGateway, FakeHttp, serving_gateway
from fakes.storage import SIZE, FakeBuilder, FakeEnvironments, FakeHub, FakeImages, FakeKeys, FakeRecords, FakeStore
from fakes.storage import made as manifest_of
from fakes.target import FakeClock, FakeTarget, Process
from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Deployment
from orchestrator.core.events import Event
from orchestrator.core.gateway_status import Listener, is_gateway, listeners_of
from orchestrator.core.host import Host
from orchestrator.core.launch import DOCKER, Instance, InstanceState, Launch
from orchestrator.core.observed import EngineObserved, Observed, OtherGateway
from orchestrator.core.part import Unfit
from orchestrator.core.pins import Accelerator
from orchestrator.core.plan import Plan
from orchestrator.drivers.base import World
from orchestrator.engines import ENGINES
from orchestrator.observe import observe
from orchestrator.run import run

LOADING_S = 5.0


LINGERS_S = 3.0


@dataclass(frozen=True)
class Drivers:
    """A World (drivers/base.py) of these."""

    read_host: Callable[[], Host]
    hub: FakeHub
    store: FakeStore
    builder: FakeBuilder
    environments: FakeEnvironments
    targets: Mapping[str, FakeTarget]
    images: FakeImages
    gateway: FakeGateway
    gateway_launch: Callable[[str, str, tuple[Listener, ...], tuple[str, ...], tuple[str, ...], bool], Launch]
    http: FakeHttp
    keys: FakeKeys
    records: FakeRecords
    clock: FakeClock


def never() -> bool:
    """Nobody interrupts."""
    return False


class FakeWorld:
    """The fakes by name, and the World made of them. Can be copied with copy.deepcopy. What lingers of a GPU's memory
    is given back after `lingers_s` seconds, what an engine has when it ends."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.lingers_s = LINGERS_S
        self.clock = FakeClock()
        self.faults = Faults()
        self.environments = FakeEnvironments(self.faults)
        self.images = FakeImages(self.faults)
        self.keys = FakeKeys(self.faults)
        self.target = FakeTarget(self.clock, self.faults, self.environments, self.images, self.keys)
        self.docker = FakeTarget(self.clock, self.faults, self.environments, self.images, self.keys, DOCKER)
        self.gateway = FakeGateway(self.targets, self.clock, self.faults, self.keys)
        self.http = FakeHttp(self.targets, self.faults)
        self.store = FakeStore(self.faults)
        self.hub = FakeHub(self.faults)
        self.builder = FakeBuilder(self.faults)
        self.records = FakeRecords(self.faults)
        self.events: list[Event] = []
        # What of the host's memory is taken in what is said of it.
        self.taken: Counter[str] = Counter()

    @property
    def targets(self) -> tuple[FakeTarget, ...]:
        return (self.target, self.docker)

    @property
    def world(self) -> World:
        return Drivers(
            read_host=self._host,
            hub=self.hub,
            store=self.store,
            builder=self.builder,
            environments=self.environments,
            targets={target.name: target for target in self.targets},
            images=self.images,
            gateway=self.gateway,
            gateway_launch=gateway_launch,
            http=self.http,
            keys=self.keys,
            records=self.records,
            clock=self.clock,
        )

    def _host(self) -> Host:
        with self.faults.call("host"):
            host, takes = self.host, self._memory_of_engines()
            if self.clock.now >= self.lingers_s:
                gpus = (replace(gpu, memory_free=gpu.memory_free + gpu.lingering) for gpu in host.gpus)
                host = replace(host, gpus=tuple(gpus))
            gpus = (
                replace(gpu, memory_free=gpu.memory_free + self.taken[gpu.uuid] - takes[gpu.uuid]) for gpu in host.gpus
            )
            available = host.memory_available + self.taken[""] - takes[""]
            return replace(host, gpus=tuple(gpus), memory_available=available)

    def _memory_of_engines(self) -> Counter[str]:
        """What those that run were started to take, by GPU, "" for the host's memory."""
        takes: Counter[str] = Counter()
        for target in self.targets:
            for name, process in target.processes.items():
                if is_gateway(name) or process.state is not InstanceState.RUNNING or process.problem:
                    continue
                try:
                    deployment = Deployment.from_label(process.label)
                except Unfit:
                    continue
                on_cpu = deployment.accelerator is Accelerator.CPU
                gpus = deployment.gpu.split(",") if deployment.gpu else [gpu.uuid for gpu in self.host.gpus]
                takes.update(dict.fromkeys([""] if on_cpu else gpus, deployment.memory))
        return takes

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

    def chat(self, name: str, key: str = "") -> int:
        """The status that a client gets who asks for a name at the gateway; 0 when nothing answers."""
        process = serving_gateway(self.targets)
        if process is None:
            return 0
        (listener,) = listeners_of(process.label)
        reply = self.http.post(f"http://{listener.address}/v1/chat/completions", {"model": name}, 1.0, key=key)
        return reply.status if reply is not None else 0

    @classmethod
    def of(cls, observed: Observed) -> FakeWorld:
        """A world that looks like this. What runs and does not answer is still loading."""
        made = cls(observed.host)
        made.environments.installed = dict(observed.environments)
        made.images.here = {facts.id: facts for facts in observed.images.values()}
        made.docker.unreachable = observed.unreachable.get(DOCKER)
        for key, size in observed.finished.items():
            recipe = next(recipe for recipe in Recipe if key.startswith(recipe.value))
            made.store.entries[key] = manifest_of(key, recipe, "given", {}, size=size)
        made.records.took = dict(observed.starts)
        for profile, desired in observed.desired.items():
            made.records.record(profile, desired)
        for engine in observed.engines:
            made._put(engine)
        if observed.gateway.status is not None:
            loads = observed.gateway.status.traffic.backends
            made.gateway.in_flight = {name: load.in_flight for name, load in loads.items()}
        if observed.gateway.instance is not None:
            made._put_gateway(OtherGateway(observed.gateway.instance, observed.gateway.status))
        for other in observed.gateway.others:
            made._put_gateway(other)
        made.taken = made._memory_of_engines()
        for target in made.targets:
            ports = [process.port for process in target.processes.values()]
            pids = [process.pid or 0 for process in target.processes.values()]
            target.next_port = max([target.next_port - 1, *(port for port in ports if port >= 20000)]) + 1
            target.next_pid = max([target.next_pid - 1, *pids]) + 1
        return made

    def _target(self, instance: Instance) -> FakeTarget:
        return next(target for target in self.targets if target.name == instance.target)

    def _put_gateway(self, seen: OtherGateway) -> None:
        process = self._target(seen.instance).processes[seen.instance.name] = _process(seen.instance)
        if seen.status is not None:
            process.routes, process.phase = seen.status.routes, seen.status.phase
            process.version, process.protocol = seen.status.version, seen.status.protocol
            process.paused_until = dict(seen.status.paused)

    def _put(self, engine: EngineObserved) -> None:
        target, name = self._target(engine.instance), engine.instance.name
        process = target.processes[name] = _process(engine.instance)
        target.files[name] = dict(engine.deployment.written)
        if engine.running:
            process.server = EngineServer(engine.deployment, target.files[name], process.kept)
            process.server.sleeps = engine.sleeps
            if engine.rests and not engine.sleeps:
                process.server.unloaded, process.children = True, None
            process.ready_at = 0.0 if engine.answers or engine.hangs else LOADING_S
        if engine.loaded is None or process.server is None:
            return
        process.server.adapters = dict(engine.loaded)
        deployment, sheet = engine.deployment, ENGINES[engine.deployment.engine]
        if deployment.own_store:
            here = [a for a in deployment.adapters if (a.name, a.path) in engine.loaded]
            for adapter in (None, *here):
                process.kept.models[tagged(sheet.upstream(deployment, adapter))] = ()
            for spare in engine.spare:
                process.kept.models[tagged(spare)] = ()
        if engine.hangs:
            process.server.hangs = tagged(sheet.upstream(deployment, None))


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
        host=instance.host,
        drift=instance.drift,
        secret=instance.secret,
        children=instance.children,
    )


__all__ = ["SIZE", "FakeWorld"]

"""What serves, and what is not as it should be: `orch up --plan`, told differently, as a value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.app.deploy import Options, plan_to
from orchestrator.app.gateway import upgrade
from orchestrator.app.keys import open_until
from orchestrator.app.runs import who_is_at_work
from orchestrator.core.deployment import Deployment, Desired
from orchestrator.core.gateway_status import BackendLoad, HeldLoad, Traffic, is_gateway
from orchestrator.core.host import Gpu
from orchestrator.core.launch import InstanceState, Usage
from orchestrator.core.observed import EngineObserved, Observed
from orchestrator.core.plan import Upgrade
from orchestrator.core.proof import Proofs
from orchestrator.core.routes import Backend
from orchestrator.core.steps import (
    AwaitReady,
    EnsureEngine,
    ImportArtifact,
    RecordDesired,
    RemoveEngine,
    SetRoute,
    Step,
    StopEngine,
    TidyStore,
    VerifyRoute,
    WriteFile,
)
from orchestrator.engines import ENGINES
from orchestrator.errors import OrchError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

# The `$id` of schemas/status.json, which says what is in the document.
SCHEMA = "urn:orch:schema:status:1"
# For an engine whose target cannot be asked: whether something answers where its route leads.
REACH_S = 3.0

# What the start of an engine consists of.
OF_A_START = (WriteFile, EnsureEngine, ImportArtifact, AwaitReady, SetRoute, VerifyRoute)


@dataclass(frozen=True)
class EngineStatus:
    """One instance of an engine. What is not known is None, as is what there is not: the pid of what does not run, the
    image of a process. `state` is that of an Instance, or "unsupervised" where nothing restarts it, or "unknown" where
    its target cannot be asked and only its route tells of it; "standby": it served before, and is kept for a rollback.

    `answers`: it serves its model and is ours, or for an unknown one something of that engine answers at its address.
    `since` (UTC, ISO 8601) and `uptime_s` are of its process. `memory` and `gpu_memory` are bytes that it holds now;
    `requests` are all that the gateway has counted under its name, tries included, and `in_flight` those of them that
    have no whole answer yet. `proofs` is what came of its probes before a client met it."""

    instance: str
    state: str
    answers: bool
    address: str | None = None
    profile: str | None = None
    engine: str | None = None
    target: str | None = None
    generation: int | None = None
    recipe: str | None = None
    image: str | None = None
    environment: str | None = None
    gpus: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    proofs: str | None = None
    pid: int | None = None
    port: int | None = None
    since: str | None = None
    uptime_s: int | None = None
    restarts: int | None = None
    last_exit: str | None = None
    memory: int | None = None
    gpu_memory: int | None = None
    requests: int | None = None
    in_flight: int | None = None


@dataclass(frozen=True)
class Leaving:
    """A gateway that was replaced, and how many requests it still answers."""

    instance: str
    in_flight: int


@dataclass(frozen=True)
class GatewayStatus:
    """The gateway that answers. `pid` is the host's (None: only the target knows, and cannot be asked), `keys`: clients
    have to show one; they will once `open_until` is over (None: nothing of that kind). `origins` are
    those that are allowed besides its own, `limits` those that are not the defaults; `requests` and `errors` count
    answers to clients."""

    url: str
    version: str
    pid: int | None
    keys: bool
    open_until: str | None
    origins: tuple[str, ...]
    limits: tuple[str, ...]
    since: str
    uptime_s: int
    requests: int
    errors: int
    in_flight: int
    leaving: tuple[Leaving, ...]
    holds: tuple[HoldStatus, ...] = ()


@dataclass(frozen=True)
class HoldStatus:
    """Requests to a profile that wait for a change of what serves it: how many, for how many seconds the oldest has,
    and after how many they would go on by themselves."""

    profile: str
    requests: int
    longest_s: float
    expires_s: float


@dataclass(frozen=True)
class NameStatus:
    """A public name, the instance that it leads to, and what is in flight under it (None: its gateway, of an earlier
    version, does not tell); `waiting` requests are not there yet, as others have their turn."""

    public_name: str
    instance: str
    in_flight: int | None
    waiting: int


@dataclass(frozen=True)
class Status:
    """`drift` has a sentence for each thing that is not as it should be, `deployed` are the profiles that are to be
    served, `stopped` those that are recorded and taken down, `unseen` the targets that could not be asked what runs
    there, `out_of_memory` a sentence for each engine that the kernel ended for want of it. `at_work` says which other
    orch changes things now, `gpu_problem` which GPUs were left out, `upgrades` what could be served by something
    newer, the gateway too, and is not out of sync for that; each is empty where there is nothing to tell. `gateway` is
    None where none answers."""

    engines: tuple[EngineStatus, ...]
    gateway: GatewayStatus | None
    names: tuple[NameStatus, ...]
    drift: tuple[str, ...]
    deployed: tuple[str, ...]
    stopped: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    out_of_memory: tuple[str, ...] = ()
    at_work: str = ""
    gpu_problem: str = ""
    upgrades: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing is deployed and nothing runs."""
        return not (self.deployed or self.engines or self.gateway or self.drift)

    @property
    def in_sync(self) -> bool:
        """All is as it should be, and nobody changes it now."""
        return not self.drift and not self.at_work

    def to_json(self) -> dict[str, Any]:
        """The one JSON document of `orch status --json`."""
        return {"schema": SCHEMA, "in_sync": self.in_sync, **asdict(self)}


def status(orch: Orchestrator) -> Status:
    """The world compared with what is recorded. Takes no lock: looking never hinders doing."""
    observed = orch.observe()
    with ThreadPoolExecutor(max_workers=8) as pool:
        # Asked while it is planned what is not as it should be.
        engines = pool.map(lambda engine: _engine(orch, engine, observed), observed.engines)
        unknown = pool.map(lambda backend: _unknown(orch, backend, observed), _unseen_backends(observed))
        unreachable = [f"{name}: {error.message} {error.hint}" for name, error in observed.unreachable.items()]
        looked_at = [_profile(orch, observed.desired[name], observed) for name in observed.deployed]
        drift = [line for lines, _ in looked_at for line in lines]
        drift += _left_over(observed)
        drift += [f"{one.name}: {one.problem}; orch down --all" for one in observed.damaged]
        drift += [*observed.unreadable, *(() if observed.deployed else unreachable)]
        return Status(
            engines=(*engines, *unknown),
            gateway=_gateway(orch, observed),
            names=tuple(_names(observed)),
            drift=tuple(drift),
            deployed=observed.deployed,
            stopped=tuple(sorted(set(observed.desired) - set(observed.deployed))),
            unseen=tuple(observed.unreachable),
            out_of_memory=tuple(_out_of_memory(observed)),
            at_work=who_is_at_work(orch),
            gpu_problem=observed.host.gpu_problem,
            upgrades=(*filter(None, (upgrade(observed),)), *(line for _, lines in looked_at for line in lines)),
        )


def _engine(orch: Orchestrator, engine: EngineObserved, observed: Observed) -> EngineStatus:
    instance, deployment = engine.instance, engine.deployment
    container = instance.launch.container
    try:
        usage = orch.targets[instance.target].usage(instance)
    except OrchError:
        # It has ended meanwhile, or its target has.
        usage = Usage()
    load = _load(instance.name, observed)
    since = _whole_second(instance.since) if engine.running and instance.since else None
    return EngineStatus(
        instance=instance.name,
        state=_state(engine, observed),
        answers=engine.answers,
        address=instance.url if instance.port is not None else None,
        profile=deployment.profile,
        engine=deployment.engine,
        target=deployment.target,
        generation=deployment.generation,
        recipe=deployment.recipe.value,
        image=_image_name(container.image, observed) if container is not None else None,
        environment=instance.launch.environment,
        gpus=tuple(filter(None, deployment.gpu.split(","))),
        adapters=tuple(adapter.name for adapter in deployment.adapters),
        proofs=_proofs(orch, deployment),
        pid=instance.pid,
        port=instance.port,
        since=since,
        uptime_s=_age(since) if since is not None else None,
        restarts=max(0, instance.starts - 1),
        last_exit=str(instance.last_exit) if instance.last_exit is not None else None,
        memory=usage.memory,
        gpu_memory=_gpu_memory(usage, observed.host.gpus),
        requests=load.counts.requests if load is not None else None,
        in_flight=load.in_flight if load is not None else None,
    )


def _proofs(orch: Orchestrator, deployment: Deployment) -> str | None:
    """What came of the probes of this instance, in a line."""
    try:
        proofs = Proofs.from_json(orch.records.noted("proofs", deployment.profile))
    except ValueError:
        return None
    return proofs.summary if proofs.instance == deployment.instance else None


def _state(engine: EngineObserved, observed: Observed) -> str:
    instance, desired = engine.instance, observed.desired.get(engine.deployment.profile)
    idle = engine.rests or instance.state is InstanceState.STOPPED
    serves = observed.serving(engine.deployment.profile) == instance.name
    if idle and not serves and desired is not None and desired.stands_by(engine.deployment):
        return "standby"
    return instance.state.value if instance.supervised or not engine.running else "unsupervised"


def _whole_second(moment: str) -> str:
    """A moment in UTC as everybody writes it: Docker tells nanoseconds, and the gateway an offset."""
    return f"{moment[:19]}Z"


def _age(since: str) -> int:
    """Seconds since then."""
    return max(0, int((datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()))


def _gpu_memory(usage: Usage, gpus: tuple[Gpu, ...]) -> int | None:
    """Bytes of GPUs that its processes hold; None where NVML names none of them, or not how much."""
    held = [user.memory for gpu in gpus for user in gpu.users if user.pid in usage.pids]
    return sum(held) if held and all(held) else None


def _load(instance: str, observed: Observed) -> BackendLoad | None:
    return observed.gateway.status.load_of(instance) if observed.gateway.status is not None else None


def _unseen_backends(observed: Observed) -> list[Backend]:
    """Where routes lead to that could not be observed, because its target cannot be asked."""
    if observed.gateway.status is None:
        return []
    seen = {engine.instance.name for engine in observed.engines}
    backends = {route.backend.instance: route.backend for route in observed.gateway.status.routes}
    # Routes of an earlier version of orch do not say on which target they lead to something.
    places = {*observed.unreachable, ""} if observed.unreachable else set()
    return [one for name, one in sorted(backends.items()) if name not in seen and one.place in places]


def _unknown(orch: Orchestrator, backend: Backend, observed: Observed) -> EngineStatus:
    """An engine as the gateway's table and the record have it, asked at the address that its route has."""
    deployment = _recorded(backend.instance, observed)
    load = _load(backend.instance, observed)
    path = ENGINES[deployment.engine].identity_path() if deployment is not None else "/v1/models"
    reply = orch.http.get(backend.url + path, REACH_S, orch.secrets.read(backend.instance))
    answers = reply is not None and reply.status == 200
    if reply is not None and answers and deployment is not None:
        answers = ENGINES[deployment.engine].recognises(deployment, reply.json)
    return EngineStatus(
        instance=backend.instance,
        state="unknown",
        answers=answers,
        address=backend.url,
        profile=deployment.profile if deployment is not None else None,
        engine=deployment.engine if deployment is not None else None,
        target=backend.place or None,
        recipe=deployment.recipe.value if deployment is not None else None,
        requests=load.counts.requests if load is not None else None,
        in_flight=load.in_flight if load is not None else None,
    )


def _recorded(instance: str, observed: Observed) -> Deployment | None:
    """What the record has of the profile and the engine that an instance is of, by its name."""
    for desired in observed.desired.values():
        for served in (desired.served, desired.before):
            made = served.resolution.deployment if served is not None and served.resolution is not None else None
            if made is not None and instance.startswith(f"{made.profile}-{made.engine}-g"):
                return made
    return None


def _gateway(orch: Orchestrator, observed: Observed) -> GatewayStatus | None:
    told, instance = observed.gateway.status, observed.gateway.instance
    if told is None:
        return None
    leaving = [
        Leaving(other.instance.name, other.status.traffic.in_flight)
        for other in observed.gateway.others
        if other.leaves and other.status is not None
    ]
    since = _whole_second(told.started_at)
    # By its own count a gateway in a container is the first process there.
    own = told.pid if not observed.unreachable else None
    return GatewayStatus(
        url=f"http://{told.listen}/v1",
        version=told.version,
        pid=instance.pid if instance is not None else own,
        keys=told.keys,
        open_until=_open_until(orch) if told.keys_mark and not told.keys else None,
        origins=told.origins,
        limits=told.limits,
        since=since,
        uptime_s=_age(since),
        requests=told.traffic.totals.requests,
        errors=told.traffic.totals.errors,
        in_flight=told.traffic.in_flight,
        leaving=tuple(leaving),
        holds=tuple(_holds(told.paused, told.traffic)),
    )


def _holds(paused: Mapping[str, float], traffic: Traffic) -> Iterator[HoldStatus]:
    for profile, left in paused.items():
        held = traffic.holds.get(profile, HeldLoad())
        yield HoldStatus(profile, held.requests, held.oldest_s, left)


def _open_until(orch: Orchestrator) -> str | None:
    """None also where the keys cannot be read: that is told as what it is, in the plan."""
    try:
        return open_until(orch) or None
    except OrchError:
        return None


def _names(observed: Observed) -> Iterator[NameStatus]:
    if observed.gateway.status is None:
        return
    waiting = observed.gateway.status.traffic.waiting
    for route in observed.gateway.status.routes:
        load = observed.gateway.status.load_of(route.backend.instance)
        untold = load.in_flight and not load.in_flight_by_route
        in_flight = None if untold else load.in_flight_by_route.get(route.name, 0)
        yield NameStatus(route.name, route.backend.instance, in_flight, waiting.get(route.name, 0))


def _image_name(reference: str, observed: Observed) -> str:
    """What an image is called, with the beginning of its digest; what names it exactly where nothing tells more."""
    return _image_names(observed).get(reference, reference)


def _image_names(observed: Observed) -> dict[str, str]:
    """What images are called, by what names them exactly."""
    found = {}
    for desired in observed.desired.values():
        for served in (desired.before, desired.served):
            if served is not None and served.resolution is not None and served.resolution.image is not None:
                image = served.resolution.image
                found[image.reference] = f"{image.name} ({image.digest.removeprefix('sha256:')[:12]})"
    return found


def _out_of_memory(observed: Observed) -> Iterator[str]:
    for engine in observed.engines:
        ended = engine.instance.last_exit
        if engine.running and ended is not None and ended.memory_limit is not None:
            yield f"{engine.instance.name} {ended} at {ended.at}, and was started again."


def _profile(orch: Orchestrator, desired: Desired, observed: Observed) -> tuple[list[str], list[str]]:
    """What `up` would do to heal a profile, and what keeps it from being healed (nothing: it is in sync); and what it
    could be served by that is newer."""
    profile = desired.spec.profile.name
    troubled = []
    for engine in observed.engines_of(profile):
        if engine.instance.state is InstanceState.BACKOFF:
            troubled.append(f"{engine.instance.name} {engine.instance.last_exit} and waits to be restarted")
        elif engine.running and not engine.instance.supervised:
            told = "has no keeper: nothing restarts it after a crash; orch up gives it one, and it goes on serving"
            troubled.append(f"{engine.instance.name} {told}")
        elif engine.instance.drift:
            troubled.append(f"{engine.instance.name} {engine.instance.drift}")
    try:
        plan = plan_to(orch, "up", desired, observed, Options(), learn=False)
    except OrchError as error:
        return [*troubled, f"{profile}: {error.message} {error.hint}".strip()], []
    steps = [action.step for action in plan.actions if not _tidies(action.step, desired)]
    starts = next((step for step in steps if isinstance(step, EnsureEngine)), None)
    if starts is not None and not any(one.running and not one.hangs for one in observed.engines_of(profile)):
        # One sentence, not all that a start consists of.
        dead = _dead(profile, observed)
        troubled.append(f"{profile}: {dead}; orch up would start {starts.deployment.instance} and route to it")
        steps = [step for step in steps if not isinstance(step, (*OF_A_START, StopEngine))]
    adopted = {one.instance.name for one in observed.engines_of(profile) if one.running and not one.instance.supervised}
    steps = [one for one in steps if not (isinstance(one, EnsureEngine) and one.deployment.instance in adopted)]
    troubled += [f"{profile}: orch up would {step.what}" for step in steps]
    upgrades = [f"{profile}: {one.what} ({one.why})" for one in plan.items if isinstance(one, Upgrade)]
    return troubled, upgrades


def _dead(profile: str, observed: Observed) -> str:
    """What has become of the engine that its names lead to."""
    serving = observed.serving(profile)
    if serving is None:
        return "none of its engines is running"
    there = next((engine for engine in observed.engines_of(profile) if engine.instance.name == serving), None)
    if there is not None and there.hangs:
        return f"the server of {serving} answers, but the model that it has loaded hangs"
    return f"{serving} is not running" if there is not None else f"{serving} is gone"


def _tidies(step: Step, present: Desired) -> bool:
    """It clears away a gateway that was replaced and has left, or what is spare in an engine's store, or writes down
    or tells what an earlier version of orch did not: nothing is wrong as long as nobody does."""
    if isinstance(step, TidyStore) or (isinstance(step, SetRoute) and step.only_tells):
        return True
    if isinstance(step, RecordDesired) and step.desired is not None:
        return present.resolution is None and step.desired.model_copy({"resolution": None}) == present
    return isinstance(step, StopEngine | RemoveEngine) and is_gateway(step.instance)


def _left_over(observed: Observed) -> list[str]:
    """Engines and routes of profiles that nobody wants: a killed `up` or `down` leaves them."""
    deployed = set(observed.deployed)
    owners = {engine.deployment.profile for engine in observed.engines}
    if observed.gateway.status is not None:
        owners |= {route.owner for route in observed.gateway.status.routes}
    found = [f"{name}: left over; orch up or orch down {name}" for name in sorted(owners - deployed)]
    if observed.gateway.instance is not None and not observed.gateway.well and not deployed:
        found.append("the gateway does not answer or has no keeper; orch down --all")
    return found

"""World to Observed: parallel reads, no writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from orchestrator.core.deployment import Deployment
from orchestrator.core.gateway_status import GATEWAY, GatewayStatus, Phase, generation_of, is_gateway
from orchestrator.core.images import ImageFacts
from orchestrator.core.launch import DOCKER, Instance, InstanceState
from orchestrator.core.observed import EngineObserved, GatewayObserved, Observed, OtherGateway
from orchestrator.core.part import Unfit
from orchestrator.drivers.base import Gateway, Store, World
from orchestrator.engines import ENGINES
from orchestrator.engines.base import EngineCall, EngineSheet
from orchestrator.errors import HostError

PROBE_TIMEOUT_S = 3.0
# For what has nothing to compute, and may have to wait for a batch that is being computed.
PULSE_TIMEOUT_S = 5.0
# What computes takes that much of a CPU in as long, also when it waits for a GPU.
IDLE_TICKS = 10


def observe(world: World) -> Observed:
    """One snapshot. What cannot be asked (an engine that hangs) is observed as not answering, never as absent."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        host = pool.submit(world.read_host)
        environments = pool.submit(world.environments.observe)
        desired = pool.submit(world.records.desired)
        unreadable = pool.submit(world.records.unreadable)
        instances, unreachable = _instances(world)
        images = pool.submit(_images, world, unreachable)
        gateway = pool.submit(_gateway, world.gateway, [one for one in instances if is_gateway(one.name)])
        labelled = [_labelled(instance) for instance in instances if not is_gateway(instance.name)]
        readable = [pair for pair in labelled if not isinstance(pair, Instance)]
        engines = pool.map(lambda pair: _engine(pair[0], pair[1], world), readable)
        return Observed(
            host=host.result(),
            engines=tuple(engines),
            gateway=gateway.result(),
            finished=Finished(world.store),
            environments={environment.name: environment for environment in environments.result()},
            desired=desired.result(),
            damaged=tuple(instance for instance in labelled if isinstance(instance, Instance)),
            unreadable=(*unreadable.result(), *images.result()[1]),
            images=images.result()[0],
            unreachable=unreachable,
            starts=world.records.starts(),
        )


class Finished(Mapping[str, int]):
    """The keys in a store, with their size in bytes. Each is looked at when it is asked for, and once: a plan asks for
    a few of what may be hundreds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, int | None] = {}

    def __getitem__(self, key: str) -> int:
        if key not in self._seen:
            manifest = self._store.get(key)
            self._seen[key] = manifest.size if manifest is not None else None
        size = self._seen[key]
        if size is None:
            raise KeyError(key)
        return size

    def __iter__(self) -> Iterator[str]:
        return iter(manifest.key for manifest in self._store.all())

    def __len__(self) -> int:
        return len(self._store.all())


def _instances(world: World) -> tuple[list[Instance], dict[str, HostError]]:
    """All that runs, and the targets that could not be asked."""
    found: list[Instance] = []
    unreachable: dict[str, HostError] = {}
    for name, target in world.targets.items():
        try:
            found += target.observe()
        except HostError as error:
            unreachable[name] = error
    return found, unreachable


def _images(world: World, unreachable: Mapping[str, HostError]) -> tuple[Mapping[str, ImageFacts], tuple[str, ...]]:
    """What there is, or a sentence on why it cannot be told: that stops no verb."""
    try:
        return (world.images.observe() if DOCKER not in unreachable else {}), ()
    except HostError as error:
        return {}, (f"{error.message} {error.hint}".strip(),)


def _gateway(gateway: Gateway, instances: list[Instance]) -> GatewayObserved:
    """The one that serves; where none does, the newest that could."""
    if not instances:
        # Nothing is known of it, but something may answer all the same.
        return GatewayObserved(None, _status(gateway, GATEWAY))
    asked = [OtherGateway(instance, _status(gateway, instance.name)) for instance in instances]

    def rank(one: OtherGateway) -> tuple[bool, bool, bool, int]:
        phase = one.status.phase if one.status is not None else None
        runs = one.instance.state is not InstanceState.STOPPED
        return phase is Phase.SERVING, phase is None, runs, generation_of(one.instance.name)

    first, *others = sorted(asked, key=rank, reverse=True)
    if first.status is not None and first.status.phase is not Phase.SERVING:
        return GatewayObserved(None, None, tuple(asked))
    return GatewayObserved(first.instance, first.status, tuple(others))


def _status(gateway: Gateway, instance: str) -> GatewayStatus | None:
    """None also when it is stuck or cannot be understood: `down --all` must be able to end it."""
    try:
        return gateway.status_of(instance)
    except HostError:
        return None


def _labelled(instance: Instance) -> tuple[Instance, Deployment] | Instance:
    """An instance with its Deployment; by itself, with its problem, when its record does not tell it."""
    if instance.problem:
        return instance
    try:
        deployment = Deployment.from_label(instance.label)
    except Unfit as error:
        # Another version of orch wrote it, or nobody did.
        return replace(instance, problem=f"its label cannot be read: {error.problems[0]['msg']}")
    if deployment.engine not in ENGINES:
        return replace(instance, problem=f"this version of orch does not know the engine {deployment.engine}")
    return instance, deployment


def _engine(instance: Instance, deployment: Deployment, world: World) -> EngineObserved:
    sheet = ENGINES[deployment.engine]
    if instance.state is not InstanceState.RUNNING or instance.port is None:
        return EngineObserved(instance, deployment, answers=False)
    reply = world.http.get(instance.url + sheet.identity_path(), PROBE_TIMEOUT_S, instance.secret)
    if reply is None or reply.status != 200 or not sheet.recognises(deployment, reply.json):
        return EngineObserved(instance, deployment, answers=False)
    hangs = _hangs(instance, sheet, world)
    loaded, spare = sheet.loaded(deployment, reply.json), sheet.spare(deployment, reply.json)
    sleeps = deployment.asleep is not None and _sleeps(instance, sheet, world)
    return EngineObserved(instance, deployment, not hangs, loaded, hangs, spare, sleeps)


def _sleeps(instance: Instance, sheet: EngineSheet, world: World) -> bool:
    reply = world.http.get(instance.url + sheet.sleep_path(), PROBE_TIMEOUT_S, instance.secret)
    return reply is not None and reply.status == 200 and sheet.asleep(reply.json)


def _hangs(instance: Instance, sheet: EngineSheet, world: World) -> bool:
    """Whether what is loaded neither answers nor computes. Where its process is gone nothing is asked: that would load
    it anew. Where it computes, the question waits for others; where something else is being loaded, for that."""

    def question() -> EngineCall | None:
        reply = world.http.get(instance.url + sheet.pulse_path(), PROBE_TIMEOUT_S, instance.secret)
        return sheet.pulse(reply.json) if reply is not None and reply.status == 200 else None

    before = instance.children
    asked = question() if sheet.pulse_path() and before is not None and before.count else None
    if asked is None:
        return False
    url = instance.url + asked.path
    if world.http.post(url, asked.body or {}, PULSE_TIMEOUT_S, key=instance.secret) is not None:
        return False
    after = next((one.children for one in world.targets[instance.target].observe() if one.name == instance.name), None)
    if before is None or after is None or after.ticks - before.ticks > IDLE_TICKS:
        return False
    return question() == asked

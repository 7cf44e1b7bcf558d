"""World to Observed: parallel reads, no writes."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pydantic import ValidationError

from orchestrator.core.deployment import Deployment
from orchestrator.core.images import ImageFacts
from orchestrator.core.launch import DOCKER, Instance, InstanceState
from orchestrator.core.observed import EngineObserved, GatewayObserved, Observed
from orchestrator.core.routes import GatewayStatus
from orchestrator.core.steps import GATEWAY
from orchestrator.drivers.base import EngineHttp, Gateway, World
from orchestrator.engines import ENGINES
from orchestrator.errors import HostError

PROBE_TIMEOUT_S = 3.0


def observe(world: World) -> Observed:
    """One snapshot. What cannot be asked (an engine that hangs) is observed as not answering, never as absent."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        host = pool.submit(world.host)
        status = pool.submit(_gateway_status, world.gateway)
        manifests = pool.submit(world.store.all)
        environments = pool.submit(world.environments.observe)
        desired = pool.submit(world.records.desired)
        unreadable = pool.submit(world.records.unreadable)
        instances, unreachable = _instances(world)
        images = pool.submit(_images, world, unreachable)
        labelled = [_labelled(instance) for instance in instances if instance.name != GATEWAY]
        readable = [pair for pair in labelled if not isinstance(pair, Instance)]
        engines = pool.map(lambda pair: _engine(pair[0], pair[1], world.http), readable)
        gateway = next((instance for instance in instances if instance.name == GATEWAY), None)
        return Observed(
            host=host.result(),
            engines=tuple(engines),
            gateway=GatewayObserved(gateway, status.result()),
            finished={manifest.key: manifest.size for manifest in manifests.result()},
            environments={environment.name: environment for environment in environments.result()},
            desired=desired.result(),
            damaged=tuple(instance for instance in labelled if isinstance(instance, Instance)),
            unreadable=(*unreadable.result(), *images.result()[1]),
            images=images.result()[0],
            unreachable=unreachable,
        )


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


def _gateway_status(gateway: Gateway) -> GatewayStatus | None:
    """None also when it is stuck or speaks another version: `down --all` must be able to end it."""
    try:
        return gateway.status()
    except HostError:
        return None


def _labelled(instance: Instance) -> tuple[Instance, Deployment] | Instance:
    """An instance with its Deployment; by itself, with its problem, when its record does not tell it."""
    if instance.problem:
        return instance
    try:
        deployment = Deployment.model_validate_json(instance.label)
    except ValidationError as error:
        # Another version of orch wrote it, or nobody did.
        return replace(instance, problem=f"its label cannot be read: {error.errors()[0]['msg']}")
    if deployment.engine not in ENGINES:
        return replace(instance, problem=f"this version of orch does not know the engine {deployment.engine}")
    return instance, deployment


def _engine(instance: Instance, deployment: Deployment, http: EngineHttp) -> EngineObserved:
    sheet = ENGINES[deployment.engine]
    if instance.state is not InstanceState.RUNNING or instance.port is None:
        return EngineObserved(instance, deployment, answers=False)
    reply = http.get(instance.url + sheet.identity_path(), PROBE_TIMEOUT_S)
    answers = reply is not None and reply.status == 200 and sheet.recognises(deployment, reply.json)
    loaded = sheet.loaded(deployment, reply.json) if reply is not None and answers else None
    return EngineObserved(instance, deployment, answers, loaded)

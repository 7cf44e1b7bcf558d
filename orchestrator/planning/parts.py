"""The parts that plans are put together from: each is right already, or says what makes it so. Pure.

Each takes what is wanted and what is observed, and gives items: Actions with what takes them back, Skips with why.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.core.deployment import Deployment, Desired
from orchestrator.core.gateway import GatewaySpec
from orchestrator.core.gateway_status import GATEWAY, generation_of, successor_of
from orchestrator.core.gateway_steps import (
    AwaitGateway,
    ClearGateway,
    EnsureGateway,
    KeepGateway,
    ReplaceGateway,
    RestartGateway,
)
from orchestrator.core.host import Host
from orchestrator.core.launch import Instance, InstanceState
from orchestrator.core.memory import GIB, MemoryFit
from orchestrator.core.observed import EngineObserved, GatewayObserved, Observed
from orchestrator.core.plan import Action, Remark, Skip
from orchestrator.core.resolved import Resolved
from orchestrator.core.routes import FIRST_WITH_CARDS, PROTOCOL, Backend, Route
from orchestrator.core.steps import (
    AskBefore,
    AwaitMemory,
    AwaitReady,
    Drain,
    EnsureEngine,
    ImportArtifact,
    LoadAdapter,
    ProveEngine,
    RecordDesired,
    ReleaseRequests,
    RemoveEngine,
    RemoveRoute,
    SetRoute,
    Step,
    StopEngine,
    TidyStore,
    UnloadAdapter,
    UnloadModel,
    VerifyRoute,
    WakeEngine,
    WriteFile,
)
from orchestrator.planning.prerequisites import prerequisite_items

# Before it, a gateway cannot give its sockets to another.
FIRST_WITH_HANDOVER = 2
# Node.js gives up on an answer of which there is no head after 300 s; until then the old engine has to be back.
LONGEST_HOLD_S = 240.0
# Of the host's memory, beside what sleeps in it: ASSUMPTION.
SLEEPERS_SPARE = 2 * GIB
# Somebody waits for an undo to end.
UNDO_DRAIN_S = 60.0


@dataclass(frozen=True)
class Limits:
    """How long to wait, in seconds: for an engine to answer, for requests in flight to end, and at most for a request
    that is held; and which probes a new engine need not pass."""

    ready_s: float
    drain_s: float
    longest_hold_s: float = LONGEST_HOLD_S
    skipped_probes: tuple[str, ...] = ()


def matching_generation(
    wanted: Deployment, mine: tuple[EngineObserved, ...], serving: str | None
) -> EngineObserved | None:
    """The generation that is, or can become without a restart, what is wanted; best the one that serves."""
    able = [engine for engine in mine if _can_become(engine, wanted)]
    return max(able, key=lambda e: (e.deployment.instance == serving, e.running, e.deployment.generation), default=None)


def _can_become(engine: EngineObserved, wanted: Deployment) -> bool:
    has = engine.deployment
    if has.fingerprint != wanted.fingerprint:
        return False
    if has.adapters == wanted.adapters and {adapter.name for adapter in wanted.adapters} <= _live(engine):
        return True
    return has.hot_adapters and engine.running and _loads(engine, wanted) <= wanted.adapter_slots


def _live(engine: EngineObserved) -> set[str]:
    """The adapters that it has now; as it was started, where it cannot be asked."""
    if engine.loaded is None:
        return {adapter.name for adapter in engine.deployment.adapters}
    return {name for name, _ in engine.loaded}


def _loads(engine: EngineObserved, wanted: Deployment) -> int:
    """Distinct adapters given to the process once it serves what is wanted. One that was unloaded and comes back
    counts again; so does one that was loaded when a kill kept it from being recorded."""
    live, has = _live(engine), engine.deployment
    unrecorded = live - {adapter.name for adapter in has.adapters}
    return has.adapter_loads + len(unrecorded) + len({adapter.name for adapter in wanted.adapters} - live)


def chosen_generation(wanted: Deployment, mine: tuple[EngineObserved, ...], match: EngineObserved | None) -> Deployment:
    """What is wanted as the generation that serves it: the one that matches, or the next."""
    if match is None:
        newest = max((engine.deployment.generation for engine in mine), default=0)
        return wanted.model_copy(update={"generation": newest + 1, "adapter_loads": len(wanted.adapters)})
    # Where it is, the model lies already; one that has to be started anew goes where resolve would have it.
    has = match.deployment
    kept: dict[str, Any] = {"generation": has.generation, "adapter_loads": _loads(match, wanted)}
    if has.share is not None:
        kept |= {"share": has.share, "share_args": has.share_args, "memory": has.memory}
    on_gpu = {"gpu": has.gpu, "gpu_way": has.gpu_way, "gpu_nodes": has.gpu_nodes}
    return wanted.model_copy(update=kept | (on_gpu if match.running else {}))


def gateway_items(spec: GatewaySpec, observed: Observed, protocol: int, limits: Limits) -> Iterator[Action | Skip]:
    """A gateway that is well, and speaks at least this protocol; one that this plan starts is taken back with it."""
    gateway, instance = observed.gateway, observed.gateway.instance
    # One that is there stays where it is, on whatever target: clients are connected to it.
    target = instance.target if instance is not None else spec.target
    if gateway.status is not None and instance is not None:
        too_old = gateway.status.protocol < protocol
        if spec.renew or too_old:
            yield from prerequisite_items(spec.prerequisites, observed)
            if gone := [origin for origin in gateway.status.origins if origin not in spec.origins]:
                yield Remark("note", f"pages of {', '.join(gone)} may no longer use the gateway without an API key")
            yield _replacement(instance, spec, gateway, limits)
            return
    newest = max((other.name for other in gateway.all), key=generation_of, default=None)
    name = instance.name if instance is not None else successor_of(newest) if newest is not None else GATEWAY
    step = EnsureGateway(target, spec.listeners, name, spec.origins, spec.limits)
    if gateway.well and instance is not None:
        yield Skip(step.what, f"it runs (pid {instance.pid})")
        return
    if target == spec.target:
        yield from prerequisite_items(spec.prerequisites, observed)
    yield Action(step, () if instance is not None else (StopEngine(target, name), RemoveEngine(target, name)))


def gateway_ready_items(planned: Iterable[Action | Skip]) -> Iterator[Action]:
    """What waits for a gateway that is started by what is planned; one that replaces another is waited for then."""
    for item in planned:
        if isinstance(item, Action) and isinstance(item.step, EnsureGateway):
            yield Action(AwaitGateway(item.step.target, item.step.listeners, item.step.instance))


def _replacement(present: Instance, spec: GatewaySpec, gateway: GatewayObserved, limits: Limits) -> Action:
    newest = max((other.name for other in gateway.all), key=generation_of)
    names = (present.target, present.name, successor_of(newest), spec.listeners)
    back = KeepGateway(*names)
    if gateway.status is not None and gateway.status.protocol >= FIRST_WITH_HANDOVER:
        return Action(ReplaceGateway(*names, origins=spec.origins, limits=spec.limits), (back,))
    step = RestartGateway(*names, timeout_s=limits.drain_s, origins=spec.origins, limits=spec.limits)
    return Action(step, (back,))


def replaced_gateways(planned: Iterable[Action | Skip], observed: Observed) -> Iterator[Action | Skip]:
    """What is left of gateways beside the one that serves: those that have left, and those that never served. `planned`
    is what is to be done about the latter."""
    for item in planned:
        if isinstance(item, Action) and isinstance(item.step, ReplaceGateway):
            yield Action(ClearGateway(item.step.target, item.step.old))
    for other in observed.gateway.others:
        target, name = other.instance.target, other.instance.name
        if other.leaves and other.status is not None:
            yield Remark(
                f"remove {name}", f"it answers {other.status.traffic.in_flight} requests, and leaves by itself"
            )
            continue
        if other.instance.state is not InstanceState.STOPPED:
            yield Action(StopEngine(target, name))
        yield Action(RemoveEngine(target, name))


def engine_files(chosen: Deployment, match: EngineObserved | None) -> Iterator[Action]:
    """What a generation that is to be started reads."""
    if match is None or not match.running:
        yield from (Action(WriteFile(chosen.target, chosen.instance, name, text)) for name, text in chosen.written)


def engine_start_items(
    chosen: Deployment,
    match: EngineObserved | None,
    memory_fit: MemoryFit | None,
    limits: Limits,
    serving: EngineObserved | None = None,
) -> Iterator[Action | Skip]:
    """The generation running; `serving` is what serves now."""
    # A living engine whose keeper is gone is adopted as it is; adapters follow.
    ensure = EnsureEngine(match.deployment if match is not None and match.running else chosen)
    if match is not None and match.running and match.instance.supervised and not match.instance.drift:
        yield Skip(ensure.what, f"it runs (pid {match.instance.pid})")
        return
    starts = match is None or not match.running
    if starts and memory_fit is not None and not memory_fit.fits and memory_fit.fits_later:
        yield from (Action(AwaitMemory(pool.uuid, memory_fit.needed)) for pool in memory_fit.short)
    # Drained first: between the switch and the commit it has clients of its own.
    ended = (
        Drain(chosen.instance, min(limits.drain_s, UNDO_DRAIN_S)),
        StopEngine(chosen.target, chosen.instance),
    )
    if match is None:
        yield Action(ensure, (*ended, RemoveEngine(chosen.target, chosen.instance)))
    else:
        # One that stood by stands by again.
        stood_by = starts and serving is not None and serving.deployment.instance != chosen.instance
        yield Action(ensure, ended if stood_by else ())


def engine_imports(resolved: Resolved, chosen: Deployment, match: EngineObserved | None) -> Iterator[Action]:
    """What the generation serves in the store of its own, where it has one."""
    if chosen.own_store and not (match is not None and match.answers):
        # What was started before has it already, unless somebody took it away.
        sizes = (resolved.import_size, resolved.import_peak) if match is None else ()
        yield Action(ImportArtifact(chosen, *sizes))


def engine_ready_item(
    chosen: Deployment,
    match: EngineObserved | None,
    serving: EngineObserved | None,
    limits: Limits,
    *,
    asleep: bool = False,
) -> Action | Skip:
    """The generation ready. One that is `asleep` loads its model when it is asked, or is woken."""
    if match is not None and match.sleeps:
        return Action(WakeEngine(chosen, limits.ready_s), (UnloadModel(chosen),) if asleep else ())
    begins = match is None or not match.running
    ready = AwaitReady(chosen, limits.ready_s, _proved(chosen, serving), timed=begins)
    if asleep:
        return Action(ready, (UnloadModel(chosen),))
    if match is not None and match.answers:
        return Skip(ready.what, f"it answers as {chosen.served_name}")
    return Action(ready)


def proof_items(
    verb: str,
    chosen: Deployment,
    proved: bool,
    serving: EngineObserved | None,
    told: Iterable[Route],
    limits: Limits,
) -> tuple[tuple[Action, ...], tuple[Action, ...]]:
    """What is asked of the engine that serves, and of the one that is to take its place before a client meets it. What
    served before, and goes back (`proved`), has done its proof; so has the same program with other adapters. `told` is
    what clients are told of the profile's models now."""
    same = serving is not None and serving.deployment.fingerprint == chosen.fingerprint
    if serving is None or same or proved or verb == "rollback":
        return (), ()
    # Another model may well have other tokens, and another chat template has.
    same_model = serving.deployment.weights_source == chosen.weights_source and _same_template(chosen, told)
    before = serving.deployment.instance if same_model else ""
    prove = Action(ProveEngine(chosen, before, limits.skipped_probes))
    return ((Action(AskBefore(serving.deployment)),) if same_model and serving.answers else ()), (prove,)


def _same_template(chosen: Deployment, told: Iterable[Route]) -> bool:
    """Whether chats are put together as now, as far as that is known."""
    now = next((route.card for route in told if route.name == chosen.served_name), None)
    return now is None or chosen.card is None or now.template == chosen.card.template


def _proved(chosen: Deployment, serving: EngineObserved | None) -> tuple[str, ...]:
    """The adapters that have been asked already: of the same bytes, in what serves from the same program and model."""
    if serving is None or not serving.answers or serving.deployment.fingerprint != chosen.fingerprint:
        return ()
    return tuple(adapter.name for adapter in chosen.adapters if adapter in serving.deployment.adapters)


def adapters_to_load(chosen: Deployment, match: EngineObserved) -> Iterator[Action | Skip]:
    """What a running engine lacks; one that is being started brings its adapters along."""
    has = match.deployment
    if not (has.hot_adapters and match.running):
        return
    loaded = dict(match.loaded) if match.loaded is not None else {a.name: a.path for a in has.adapters}
    for adapter in chosen.adapters:
        step = LoadAdapter(chosen, adapter)
        before = has.adapter(adapter.name)
        # Loaded but not in the process's record, after a kill between the two: a restart would lose it.
        if before is not None and loaded.get(adapter.name) == before.path == adapter.path:
            yield Skip(step.what, "loaded")
            continue
        back: Step = UnloadAdapter(has, adapter.name, chosen) if before is None else LoadAdapter(has, before)
        yield Action(step, (back,))


def adapters_to_unload(chosen: Deployment, match: EngineObserved) -> Iterator[Action | Skip]:
    """What a running engine has too much."""
    has = match.deployment
    if not (has.hot_adapters and match.running):
        return
    # Also what only the process's record still names: a restart would load it.
    names = [*(name for name, _ in match.loaded or ()), *(adapter.name for adapter in has.adapters)]
    for name in dict.fromkeys(names):
        if chosen.adapter(name) is None:
            yield Action(UnloadAdapter(chosen, name, has))


def spare_in_store(chosen: Deployment, match: EngineObserved) -> Iterator[Action]:
    """What an engine keeps of adapters that it had before: versions that were replaced, and what a kill left there."""
    has = match.deployment
    if not has.own_store:
        return
    wanted = {adapter.name: adapter for adapter in chosen.adapters}
    replaced = [f"{one.name} as it was" for one in has.adapters if wanted.get(one.name, one) != one]
    if replaced or match.spare:
        yield Action(TidyStore(chosen, (*replaced, *match.spare)))


def record_item(desired: Desired, observed: Observed, protocol: int) -> Action | Skip:
    """What is wanted, written down. What clients are told of it can wait for a gateway, of this protocol, that can tell
    them."""
    profile = desired.spec.profile.name
    step = RecordDesired(profile, desired)
    present = observed.desired.get(profile)
    if present == desired or (protocol < FIRST_WITH_CARDS and present == desired.without_card):
        return Skip(step.what, "recorded")
    return Action(step, (RecordDesired(profile, present),))


def switch_items(
    chosen: Deployment, routes: tuple[Route, ...], match: EngineObserved | None, observed: Observed, protocol: int
) -> Iterator[Action | Skip]:
    """All names of the profile on the generation that was chosen, as a gateway of this protocol knows them."""
    step = SetRoute(chosen.target, chosen.profile, routes)
    present = observed.routes_of(chosen.profile)
    if match is not None and match.running and match.instance.port is not None:
        at = Backend(chosen.instance, match.instance.url, chosen.target)
        live = sorted((route.led_to(at) for route in routes), key=lambda route: route.name)
        if _alike(live, present, protocol):
            yield Skip(step.what, "already so")
            return
        step = replace(step, only_tells=_alike(live, present, FIRST_WITH_CARDS - 1))
    back = SetRoute(chosen.target, chosen.profile, present) if present else RemoveRoute(chosen.profile)
    yield Action(step, (back,))


def _alike(wanted: Iterable[Route], present: Iterable[Route], protocol: int) -> bool:
    """Whether the routes are the same, as far as a gateway of this protocol can tell them apart."""
    known = [[route.known_to(protocol).as_planned for route in routes] for routes in (wanted, present)]
    return known[0] == known[1]


def names_to_verify(
    chosen: Deployment,
    routes: tuple[Route, ...],
    match: EngineObserved | None,
    loading: Collection[str],
    observed: Observed,
) -> tuple[str, ...]:
    """The names to ask: those whose upstream or patch is new and not shared with one asked already; of nothing new the
    served name. `loading` are the adapters that are loaded on the way.

    What the gateway has led to this very engine before has been asked then. Where adapters are given at start they have
    been asked before the switch, when nobody else did: llama.cpp computes one adapter at a time, and under load a
    question to each would wait for its turn.
    """
    if not chosen.hot_adapters:
        return (chosen.served_name,)
    goes_on = match is not None and match.running and match.answers
    before = {route.name: route for route in observed.routes_of(chosen.profile)} if goes_on else {}
    protocol = observed.gateway.status.protocol if observed.gateway.status is not None else PROTOCOL
    # What is told of a model changes none of its answers.
    protocol = min(protocol, FIRST_WITH_CARDS - 1)
    asked: dict[str, str] = {}
    for route in routes:
        led = before.get(route.name)
        same = led is not None and _alike([route.led_to(led.backend)], [led], protocol)
        moved = led is not None and led.backend.instance != route.backend.instance
        if not same or moved or route.name in loading:
            alike = replace(route, name="-", upstream=route.upstream or route.name, card=None)
            asked.setdefault(alike.key, route.name)
    return tuple(asked.values()) or (chosen.served_name,)


def verify_item(chosen: Deployment, names: tuple[str, ...], limits: Limits) -> Action:
    """The names asked. Out of a store of its own an engine loads a new adapter when it is first asked for it, base and
    all: then it has as long as it has to start."""
    step = VerifyRoute(names)
    return Action(replace(step, timeout_s=max(step.timeout_s, limits.ready_s)) if chosen.own_store else step)


def release_items(profile: str) -> Iterator[Action]:
    """Nobody waits for a change that is done."""
    yield Action(ReleaseRequests(profile))


def cannot_sleep(engine: EngineObserved, host: Host) -> str:
    """Why an engine that could is not to sleep as a standby; empty where it is, or where it is no question."""
    asleep = engine.deployment.asleep
    if asleep is None or engine.rests or host.memory.available >= asleep.host + SLEEPERS_SPARE:
        return ""
    free = f"{host.memory.available / GIB:.1f} GiB are free"
    return f"asleep it would hold its weights in {asleep.host / GIB:.1f} GiB of the host's memory, and {free}"


def standby_remarks(standby: EngineObserved | None, host: Host) -> Iterator[Skip]:
    """How what served stands by, and what it holds then; nothing where it does already."""
    if standby is None or standby.rests or not standby.running:
        return
    what, asleep = f"keep {standby.instance.name}", standby.deployment.asleep
    if why := cannot_sleep(standby, host):
        yield Remark(what, f"{why}: it is ended, and not removed, and holds no memory")
    elif asleep is not None:
        yield Remark(
            what,
            f"it sleeps: its weights stay in {asleep.host / GIB:.1f} GiB of the host's memory, and it keeps about "
            f"{asleep.gpu / GIB:.1f} GiB of the GPU. Nobody has verified this on a GPU yet",
        )
    elif standby.deployment.own_store:
        yield Remark(what, "its server runs on, without a model in memory")
    else:
        yield Remark(what, "it is ended, and not removed: it holds no memory, and its files stay where they are")


def standing_by(engine: EngineObserved, drain_s: float, may_rest: bool = True) -> Iterator[Action | Skip]:
    """An engine that is kept where `rollback` finds it: a server that can go on without its model so, where it
    `may_rest`, any other ended, and not removed."""
    deployment, name = engine.deployment, engine.instance.name
    if engine.instance.state is InstanceState.STOPPED:
        yield Skip(f"keep {name}", "it is stopped, and holds no memory")
    elif engine.rests:
        yield Skip(f"keep {name}", "it sleeps" if engine.sleeps else "its server runs without a model")
    else:
        # vLLM dies of requests that it still has when it goes to sleep.
        yield Action(Drain(name, drain_s))
        rests = deployment.can_rest and may_rest
        yield Action(UnloadModel(deployment) if rests else StopEngine(deployment.target, name))


def retirement(engine: EngineObserved, drain_s: float | None) -> Iterator[Action | Skip]:
    """An engine drained (None: not asked about), stopped and removed."""
    target, name = engine.deployment.target, engine.instance.name
    if engine.instance.state is not InstanceState.STOPPED and drain_s is not None:
        yield Action(Drain(name, drain_s))
    # Also when it is stopped: a process that it left behind still holds memory.
    yield Action(StopEngine(target, name))
    yield Action(RemoveEngine(target, name))

"""Deciding: a wanted Deployment and an Observed world make a Plan. Pure, and the only place that decides.

`plan_deploy` serves up, migrate, rollback and lora alike: bring the wanted generation up beside what serves, switch,
drain, stop the rest. What is already so becomes a Skip with its reason; `status` is this plan, not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from orchestrator.core.deployment import Deployment, Desired
from orchestrator.core.launch import LOCAL, Instance, InstanceState
from orchestrator.core.observed import EngineObserved, Observed
from orchestrator.core.refusals import (
    refuse_damaged,
    refuse_foreign_names,
    refuse_no_room,
    refuse_unreachable,
    unknown_room,
)
from orchestrator.core.resolved import Resolved, Supply
from orchestrator.core.routes import Route
from orchestrator.core.steps import (
    GATEWAY,
    Action,
    AwaitMemory,
    AwaitReady,
    Drain,
    EnsureEngine,
    EnsureGateway,
    ImportArtifact,
    LoadAdapter,
    Plan,
    RecordDesired,
    RemoveEngine,
    RemoveRoute,
    SetRoute,
    Skip,
    Step,
    StopEngine,
    UnloadAdapter,
    VerifyRoute,
    WriteFile,
)
from orchestrator.core.supply import supply_items
from orchestrator.core.vram import Budget

# Somebody waits for an undo to end.
UNDO_DRAIN_S = 60.0


@dataclass(frozen=True)
class Limits:
    """How long to wait, in seconds: for an engine to answer, and for requests in flight to end."""

    ready_s: float = 900.0
    drain_s: float = 300.0


@dataclass(frozen=True)
class Door:
    """The gateway: the address where it listens, where it is to run if it does not yet, and what that takes."""

    listen: str
    target: str = LOCAL
    supply: tuple[Supply, ...] = ()


def plan_deploy(
    verb: str,
    resolved: Resolved,
    desired: Desired,
    observed: Observed,
    door: Door,
    limits: Limits,
    fresh: bool = False,
) -> Plan:
    """Make the profile be served as resolved, and only so; `fresh`: by a new generation, whatever runs.

    Refuses (PlanRefused) what cannot be done.
    """
    wanted = resolved.deployment
    refuse_unreachable(observed)
    refuse_damaged(wanted.profile, observed)
    refuse_foreign_names(resolved, observed)
    mine = observed.engines_of(wanted.profile)
    match = None if fresh else _match(wanted, mine, observed.serving(wanted.profile))
    chosen = _chosen(wanted, mine, match)
    if match is None:
        refuse_no_room(resolved, observed)
    before: list[Action | Skip] = [
        *resolved.passed_over,
        *supply_items(resolved.supply, observed),
        *(unknown_room(resolved, observed) if match is None else ()),
        *_gateway(door, observed),
        *_engine(chosen, match, resolved.budget, limits),
    ]
    if match is not None:
        before += _load_adapters(chosen, match)
    before.append(_record(desired, observed))
    routes = tuple(replace(route, backend=chosen.instance) for route in resolved.routes)
    switch = _switch(chosen, routes, match, observed)
    before += switch
    if any(isinstance(item, Action) for item in before):
        before.append(Action(VerifyRoute(_names_to_verify(chosen, routes))))
    else:
        before.append(Skip(f"ask {wanted.served_name} through the gateway", "nothing changed"))
    after: list[Action | Skip] = []
    if match is not None:
        after += _unload_adapters(chosen, match)
    for engine in mine:
        if engine.deployment.instance != chosen.instance:
            after += _retire(engine, limits.drain_s)
    return Plan(verb, (*before, *after), len(before), resolved.budget if match is None else None)


def plan_down(profile: str, observed: Observed, limits: Limits, forget: bool = False) -> Plan:
    """Stop serving a profile: routes first, then its engines. Artifacts stay; so do wish and adapters, unless `forget`.

    Forward only.
    """
    refuse_unreachable(observed)
    items = [*_silent_gateway(profile, observed), *_down(profile, observed, limits, forget=forget)]
    if not items:
        items.append(Skip(f"take {profile} down", "nothing of it runs"))
    return Plan("down", tuple(items), commit=0)


def plan_down_all(observed: Observed, limits: Limits, forget: bool = False) -> Plan:
    """Stop everything, the gateway last; one that does not answer loses its routes with its directory."""
    refuse_unreachable(observed)
    profiles = sorted(
        {engine.deployment.profile for engine in observed.engines}
        | set(observed.desired)
        | {route.owner for route in (observed.gateway.status.routes if observed.gateway.status else ())}
    )
    drains = observed.gateway.status is not None
    items = [item for profile in profiles for item in _down(profile, observed, limits, drains, forget)]
    ended = {item.step.instance for item in items if isinstance(item, Action) and isinstance(item.step, StopEngine)}
    items += [action for one in observed.damaged if one.name not in ended for action in _end_damaged(one)]
    gateway = observed.gateway.instance
    if gateway is not None:
        items += [Action(StopEngine(gateway.target, GATEWAY)), Action(RemoveEngine(gateway.target, GATEWAY))]
    else:
        items.append(Skip("stop the gateway", "it does not run"))
    return Plan("down", tuple(items), commit=0)


def _silent_gateway(profile: str, observed: Observed) -> Iterator[Action | Skip]:
    """A gateway that does not answer still has its table on disk: wake it, or the routes would come back with it."""
    instance = observed.gateway.instance
    if instance is not None and observed.gateway.status is None:
        yield Action(EnsureGateway(instance.target, instance.label))
        yield Action(RemoveRoute(profile))


def _down(
    profile: str, observed: Observed, limits: Limits, drains: bool = True, forget: bool = False
) -> Iterator[Action | Skip]:
    if observed.routes_of(profile):
        yield Action(RemoveRoute(profile))
    desired = observed.desired.get(profile)
    if desired is not None and (forget or not desired.stopped):
        stopped = desired.model_copy(update={"stopped": True})
        yield Action(RecordDesired(profile, None if forget else stopped))
    for engine in observed.engines_of(profile):
        yield from _retire(engine, limits.drain_s if drains else None)
    for instance in observed.damaged_of(profile):
        yield from _end_damaged(instance)


def _end_damaged(instance: Instance) -> Iterator[Action]:
    yield Action(StopEngine(instance.target, instance.name))
    yield Action(RemoveEngine(instance.target, instance.name))


def _match(wanted: Deployment, mine: tuple[EngineObserved, ...], serving: str | None) -> EngineObserved | None:
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


def _chosen(wanted: Deployment, mine: tuple[EngineObserved, ...], match: EngineObserved | None) -> Deployment:
    if match is None:
        newest = max((engine.deployment.generation for engine in mine), default=0)
        return wanted.model_copy(update={"generation": newest + 1, "adapter_loads": len(wanted.adapters)})
    # Where it is, the model lies already; one that has to be started anew goes where resolve would have it.
    has = match.deployment
    kept = {"generation": has.generation, "adapter_loads": _loads(match, wanted)}
    on_gpu = {"gpu": has.gpu, "gpu_way": has.gpu_way, "gpu_nodes": has.gpu_nodes}
    return wanted.model_copy(update=kept | (on_gpu if match.running else {}))


def _gateway(door: Door, observed: Observed) -> Iterator[Action | Skip]:
    gateway = observed.gateway
    # One that is there stays where it is, on whatever target: clients are connected to it.
    target = gateway.instance.target if gateway.instance is not None else door.target
    step = EnsureGateway(target, door.listen)
    if gateway.well and gateway.instance is not None:
        yield Skip(step.what, f"it runs (pid {gateway.instance.pid})")
        return
    if target == door.target:
        yield from supply_items(door.supply, observed)
    undo = () if gateway.instance is not None else (StopEngine(target, GATEWAY), RemoveEngine(target, GATEWAY))
    yield Action(step, undo)


def _engine(
    chosen: Deployment, match: EngineObserved | None, budget: Budget | None, limits: Limits
) -> Iterator[Action | Skip]:
    # A living engine whose keeper is gone is adopted as it is; adapters follow.
    ensure = EnsureEngine(match.deployment if match is not None and match.running else chosen)
    ready = AwaitReady(chosen, limits.ready_s)
    if match is not None and match.running and match.instance.supervised and not match.instance.drift:
        yield Skip(ensure.what, f"it runs (pid {match.instance.pid})")
    else:
        new, starts = match is None, match is None or not match.running
        for name, text in chosen.written if starts else ():
            yield Action(WriteFile(chosen.target, chosen.instance, name, text))
        if starts and budget is not None and not budget.fits and budget.fits_later:
            yield from (Action(AwaitMemory(place.uuid, budget.needed)) for place in budget.short)
        # Drained first: between the switch and the commit it has clients of its own.
        undo = (
            Drain(chosen.instance, min(limits.drain_s, UNDO_DRAIN_S)),
            StopEngine(chosen.target, chosen.instance),
            RemoveEngine(chosen.target, chosen.instance),
        )
        yield Action(ensure, undo if new else ())
    if match is not None and match.answers:
        yield Skip(ready.what, f"it answers as {chosen.served_name}")
        return
    if chosen.own_store:
        yield Action(ImportArtifact(chosen))
    yield Action(ready)


def _load_adapters(chosen: Deployment, match: EngineObserved) -> Iterator[Action | Skip]:
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


def _unload_adapters(chosen: Deployment, match: EngineObserved) -> Iterator[Action | Skip]:
    has = match.deployment
    if not (has.hot_adapters and match.running):
        return
    # Also what only the process's record still names: a restart would load it.
    names = [*(name for name, _ in match.loaded or ()), *(adapter.name for adapter in has.adapters)]
    for name in dict.fromkeys(names):
        if chosen.adapter(name) is None:
            yield Action(UnloadAdapter(chosen, name, has))


def _record(desired: Desired, observed: Observed) -> Action | Skip:
    profile = desired.wish.profile.name
    step = RecordDesired(profile, desired)
    present = observed.desired.get(profile)
    if present == desired:
        return Skip(step.what, "recorded")
    return Action(step, (RecordDesired(profile, present),))


def _switch(
    chosen: Deployment, routes: tuple[Route, ...], match: EngineObserved | None, observed: Observed
) -> Iterator[Action | Skip]:
    step = SetRoute(chosen.target, chosen.profile, routes)
    present = observed.routes_of(chosen.profile)
    if match is not None and match.running and match.instance.port is not None:
        live = tuple(sorted((replace(r, url=match.instance.url) for r in routes), key=lambda route: route.name))
        if live == present:
            yield Skip(step.what, "so it is")
            return
    back = SetRoute(chosen.target, chosen.profile, present) if present else RemoveRoute(chosen.profile)
    yield Action(step, (back,))


def _names_to_verify(chosen: Deployment, routes: tuple[Route, ...]) -> tuple[str, ...]:
    """The served name, and each other name whose upstream or patch is not shared with one asked already.

    Where adapters are given at start they have been asked before the switch, when nobody else did: llama.cpp computes
    one adapter at a time, and under a steady load for one name a question to another may wait for minutes.
    """
    if not chosen.hot_adapters:
        return (chosen.served_name,)
    asked: dict[str, str] = {}
    for route in routes:
        asked.setdefault(replace(route, name="-", upstream=route.upstream or route.name).key, route.name)
    return tuple(asked.values())


def _retire(engine: EngineObserved, drain_s: float | None) -> Iterator[Action | Skip]:
    target, name = engine.deployment.target, engine.instance.name
    if engine.instance.state is not InstanceState.STOPPED and drain_s is not None:
        yield Action(Drain(name, drain_s))
    # Also when it is stopped: a process that it left behind still holds memory.
    yield Action(StopEngine(target, name))
    yield Action(RemoveEngine(target, name))

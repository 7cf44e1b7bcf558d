"""Taking down: what serves a profile, or everything. Pure; forward only."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.core.gateway_steps import AwaitGateway, EnsureGateway
from orchestrator.core.launch import Instance
from orchestrator.core.observed import Observed
from orchestrator.core.plan import Action, Plan, Skip
from orchestrator.core.steps import RecordDesired, RemoveEngine, RemoveRoute, StopEngine
from orchestrator.planning.parts import release_items, retirement
from orchestrator.planning.preconditions import refuse_unreachable


def plan_down(profile: str, observed: Observed, drain_s: float, forget: bool = False) -> Plan:
    """Stop serving a profile: routes first, then its engines. Artifacts stay; so do spec and adapters, unless `forget`.

    Forward only.
    """
    refuse_unreachable(observed)
    items = [*_silent_gateway(profile, observed), *_down(profile, observed, drain_s, forget=forget)]
    if not items:
        items.append(Skip(f"take {profile} down", "nothing of it is running"))
    return Plan("down", tuple(items), commit=0)


def plan_down_all(observed: Observed, drain_s: float, forget: bool = False) -> Plan:
    """Stop everything, the gateway last; one that does not answer loses its routes with its directory."""
    refuse_unreachable(observed)
    profiles = sorted(
        {engine.deployment.profile for engine in observed.engines}
        | set(observed.desired)
        | {route.owner for route in (observed.gateway.status.routes if observed.gateway.status else ())}
    )
    drains = observed.gateway.status is not None
    items = [item for profile in profiles for item in _down(profile, observed, drain_s, drains, forget)]
    ended = {item.step.instance for item in items if isinstance(item, Action) and isinstance(item.step, StopEngine)}
    items += [action for one in observed.damaged if one.name not in ended for action in _end_damaged(one)]
    for gateway in observed.gateway.all:
        items += [Action(StopEngine(gateway.target, gateway.name)), Action(RemoveEngine(gateway.target, gateway.name))]
    if not observed.gateway.all:
        items.append(Skip("stop the gateway", "it is not running"))
    return Plan("down", tuple(items), commit=0)


def _silent_gateway(profile: str, observed: Observed) -> Iterator[Action | Skip]:
    """A gateway that does not answer still has its table on disk: wake it, or the routes would come back with it."""
    instance = observed.gateway.instance
    if instance is not None and observed.gateway.status is None:
        names = (instance.target, observed.gateway.listeners, instance.name)
        yield Action(EnsureGateway(*names))
        yield Action(AwaitGateway(*names))
        yield Action(RemoveRoute(profile))


def _down(
    profile: str, observed: Observed, drain_s: float, drains: bool = True, forget: bool = False
) -> Iterator[Action | Skip]:
    if observed.routes_of(profile):
        yield Action(RemoveRoute(profile))
    if observed.holds(profile):
        yield from release_items(profile)
    desired = observed.desired.get(profile)
    if desired is not None and (forget or not desired.stopped):
        stopped = desired.model_copy(update={"stopped": True})
        yield Action(RecordDesired(profile, None if forget else stopped))
    for engine in observed.engines_of(profile):
        yield from retirement(engine, drain_s if drains else None)
    for instance in observed.damaged_of(profile):
        yield from _end_damaged(instance)


def _end_damaged(instance: Instance) -> Iterator[Action]:
    yield Action(StopEngine(instance.target, instance.name))
    yield Action(RemoveEngine(instance.target, instance.name))

"""What a user notices of the world: who is there, what is routed, what answers."""

from __future__ import annotations

from typing import Any

from fakes.world import FakeWorld
from orchestrator.core.observed import Observed
from orchestrator.core.plan import Plan


def what_serves(observed: Observed) -> dict[str, Any]:
    """Who is there, what is routed where, and what is wanted; not what the store says of artifacts."""
    status = observed.gateway.status
    return {
        "engines": [engine.instance.name for engine in observed.engines],
        "gateway": observed.gateway.instance is not None,
        "routes": tuple(route.as_planned for route in status.routes) if status is not None else None,
        "desired": dict(observed.desired),
    }


def adapters(observed: Observed) -> dict[str, Any]:
    """What each engine that answers has loaded, and what a restart would load."""
    return {
        engine.instance.name: (engine.loaded, engine.deployment.adapters)
        for engine in observed.engines
        if engine.answers
    }


def answered(world: FakeWorld) -> list[str]:
    """The public names that answer."""
    status = world.observe().gateway.status
    names = status.routes.names if status is not None else ()
    return [name for name in names if world.chat(name) == 200]


def lost(world: FakeWorld, before: list[str]) -> list[str]:
    """Those of `before`, which have answered, that do not any more."""
    return [name for name in before if world.chat(name) != 200]


def left_to_do(plan: Plan) -> list[str]:
    """What a plan would do, in words."""
    return [action.step.what for action in plan.actions]

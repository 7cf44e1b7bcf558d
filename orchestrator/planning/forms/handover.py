"""The old generation ends before the new one is started, because there is no room for both: new requests wait at the
gateway, those in flight are answered first. Pure.

Until the commit point the old one can be started again: its instance stays, stopped. What is undone is undone in
reverse, so it is back before the requests that wait are let go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orchestrator.core.deployment import Deployment
from orchestrator.core.form import LongestHold
from orchestrator.core.launch import InstanceState
from orchestrator.core.observed import EngineObserved
from orchestrator.core.plan import Action, Skip
from orchestrator.core.steps import (
    AwaitMemory,
    AwaitReady,
    Drain,
    EnsureEngine,
    HoldRequests,
    ReadAhead,
    ReleaseRequests,
    RemoveEngine,
    Step,
    StopEngine,
    UnloadModel,
    WakeEngine,
)
from orchestrator.planning.forms.base import Arranged, Change, Items
from orchestrator.planning.parts import Limits, release_items, standing_by


def handover(change: Change, serving: EngineObserved | None, runs: bool, limits: Limits) -> Arranged:
    """The engines among the others that run give their memory to the chosen one; the `serving` one, if it is among
    them, comes back where that fails. The chosen one `runs` where somebody who was killed had begun it."""
    owner = change.chosen.profile
    # A server with a store of its own takes memory for a model when it is asked, and an import may take minutes.
    early = change.chosen.own_store
    begun = serving if serving in change.others and (not serving.running or serving.rests) else None
    held = (
        *(item for engine in change.others for item in _ended(engine, change, engine is serving, limits)),
        *(() if runs else _memory_awaited(change)),
        *(() if early else (*change.start, *change.imports)),
        *change.ready,
        *change.loads,
        *change.record,
        *change.switch,
        *change.verify,
    )
    within = LongestHold(owner, limits.longest_hold_s, change.chosen.instance)
    hold = Action(HoldRequests(owner, limits.longest_hold_s), _until_it_serves(begun, change, runs, limits))
    before = (
        # Whoever is held already is not let go on to an engine that somebody has ended.
        *((hold,) if begun is not None else ()),
        *change.prepare,
        *change.gateway,
        *change.gateway_ready,
        *change.files,
        *((*change.start, *change.imports) if early else _read_ahead(change.chosen)),
        *((hold,) if begun is None else ()),
        *(replace(item, within=within) if isinstance(item, Action) else item for item in held),
    )
    removed = (
        Action(RemoveEngine(one.deployment.target, one.instance.name))
        for one in change.others
        if one is not change.standby
    )
    return Arranged(before, (*release_items(owner), *change.tidy, *removed, *change.last))


def _until_it_serves(begun: EngineObserved | None, change: Change, runs: bool, limits: Limits) -> tuple[Step, ...]:
    """What takes a hold back; where somebody had `begun` by ending an engine, that is started again first."""
    release = ReleaseRequests(change.chosen.profile)
    if begun is None:
        return (release,)
    ended = (StopEngine(change.chosen.target, change.chosen.instance),) if runs else ()
    ready = _awake(begun.deployment, limits) if begun.rests else AwaitReady(begun.deployment, limits.ready_s)
    return (*ended, EnsureEngine(begun.deployment), ready, release)


def _awake(rests: Deployment, limits: Limits) -> Step:
    """Who has a store of its own loads what it is asked for."""
    return AwaitReady(rests, limits.ready_s) if rests.own_store else WakeEngine(rests, limits.ready_s)


def _read_ahead(chosen: Deployment) -> Items:
    return (Action(ReadAhead(chosen.artifact_key, chosen.model_path)),)


def _ended(engine: EngineObserved, change: Change, serves: bool, limits: Limits) -> Iterator[Action | Skip]:
    """What is in flight on it answered, and its memory free."""
    deployment, name = engine.deployment, engine.instance.name
    stop, stands_by = StopEngine(deployment.target, name), engine is change.standby
    ended = engine.instance.state is InstanceState.STOPPED
    if stands_by and (engine.rests or ended):
        yield from standing_by(engine, limits.drain_s, change.may_rest)
        return
    if ended:
        yield Action(stop)
        return
    # What hangs ends nothing that is in flight on it.
    yield Action(Drain(name, 0.0) if engine.hangs else Drain(name, limits.drain_s, cut=False))
    if stands_by and deployment.can_rest and change.may_rest:
        yield Action(UnloadModel(deployment), (_awake(deployment, limits),))
        return
    # One that did not answer before has nobody waiting for it.
    back = (EnsureEngine(deployment), *((AwaitReady(deployment, limits.ready_s),) if engine.answers else ()))
    yield Action(stop, back if serves else ())


def _memory_awaited(change: Change) -> Items:
    """A driver gives memory back some seconds after the process that held it has ended."""
    fit = change.fit
    if fit is None:
        return ()
    planned = {
        item.step.gpu for item in change.start if isinstance(item, Action) and isinstance(item.step, AwaitMemory)
    }
    pools = [pool for pool in fit.short if not pool.declared and pool.uuid not in planned]
    wakes = any(isinstance(item, Action) and isinstance(item.step, WakeEngine) for item in change.ready)
    has = change.chosen.asleep.gpu if wakes and change.chosen.asleep is not None else 0
    return tuple(Action(AwaitMemory(pool.uuid, fit.needed - has)) for pool in pools)

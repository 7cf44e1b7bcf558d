"""Garbage collection of the store: what is there, who needs it, and the removal of what nobody needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from orchestrator.app.lock import read_lock
from orchestrator.app.resolution import needed_for_desired
from orchestrator.core.artifact import Manifest
from orchestrator.core.deployment import Desired
from orchestrator.core.observed import Observed
from orchestrator.errors import Interrupted, OrchError, PlanRefused
from orchestrator.planning.gc_roots import (
    GcPolicy,
    Needs,
    Stored,
    Verdict,
    doubts,
    needed_by_engines,
    needed_by_lock,
    needed_for,
    refuse_unknown,
    sort_out,
)
from orchestrator.planning.preconditions import refuse_unreachable

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

__all__ = ["Verdict", "collect", "refuse_used", "verdicts"]


def verdicts(orch: Orchestrator, age: timedelta, weights: bool, unfinished: bool) -> tuple[Verdict, ...]:
    """What of the store stays and what goes, each with its reason; see GcPolicy for what is given up."""
    policy = GcPolicy(age, weights, unfinished)
    observed = orch.observe()
    refuse_unreachable(observed)
    refuse_unknown(observed, orch.records.unreadable())
    needs = dict(needed_by_engines(observed))
    unsure: dict[str, str] = {}
    for name, desired in sorted(observed.desired.items()):
        for role, wanted in _roles(name, desired):
            try:
                prerequisites, adapters = needed_for_desired(orch, wanted, observed)
            except Interrupted:
                raise
            except OrchError as error:
                unsure |= doubts(f"{name} may need it: {error.message}", wanted.spec.profile)
            else:
                needs = {**needed_for(role, prerequisites, adapters, observed.finished, policy), **needs}
            if wanted.resolution is not None:
                needs.setdefault(wanted.resolution.deployment.artifact_key, role)
    needs = {**_needed_by_locks(orch, observed, policy), **needs}
    return sort_out(_stored(orch), needs, unsure, datetime.now(UTC), policy)


def collect(orch: Orchestrator, removable: list[Verdict]) -> tuple[Stored, ...]:
    """Remove what goes; what was removed. What is being worked on right now stays."""
    removed = tuple(
        one.stored
        for one in removable
        if orch.store.remove(one.stored.key, orch.progress, wait=False, entry=not one.stored.unfinished)
    )
    orch.store.sweep()
    orch.lock_files.forget_gone()
    return removed


def refuse_used(orch: Orchestrator, keys: list[str]) -> None:
    """PlanRefused where an engine uses one of these entries."""
    observed = orch.observe()
    refuse_unreachable(observed)
    used = needed_by_engines(observed)
    for key in keys:
        if key in used:
            raise PlanRefused(f"{key} cannot be removed: {used[key]}.", hint="orch down first.")


def _roles(name: str, desired: Desired) -> tuple[tuple[str, Desired], ...]:
    """What is recorded of a profile: what it is to be served with, and what rollback would go back to."""
    now = (f"{name} is {'stopped, and comes back' if desired.stopped else 'served'} with it", desired)
    if desired.before is None:
        return (now,)
    return (now, (f"rollback of {name} goes back to it", desired.gone_back()))


def _needed_by_locks(orch: Orchestrator, observed: Observed, policy: GcPolicy) -> Needs:
    """SourceError if one of the known lock files is none any more: nobody knows what it was to keep."""
    needs: dict[str, str] = {}
    for path in orch.lock_files.known():
        needs = {**needed_by_lock(f"{path} names it", read_lock(orch, path), observed.finished, policy), **needs}
    return needs


def _stored(orch: Orchestrator) -> list[Stored]:
    """All that the own store has, broken entries included."""
    found = []
    for key in orch.store.own.names():
        manifest = orch.store.own.manifest(key)
        if isinstance(manifest, Manifest):
            found.append(Stored(key, manifest.size, datetime.fromisoformat(manifest.created), manifest.source))
        else:
            size, touched = orch.store.extent(orch.store.own.path(key))
            found.append(Stored(key, size, datetime.fromtimestamp(touched, UTC)))
    for key, (size, touched) in orch.store.unfinished().items():
        found.append(Stored(key, size, datetime.fromtimestamp(touched, UTC), unfinished=True))
    return found

"""What must hold before anything is planned, and the refusals that say why it does not. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orchestrator.core.launch import DOCKER
from orchestrator.core.memory import GIB, MIB, Change
from orchestrator.core.observed import Observed
from orchestrator.core.pins import Accelerator
from orchestrator.core.plan import Remark, Skip
from orchestrator.core.progress_view import amount
from orchestrator.core.resolved import Resolved
from orchestrator.errors import HostError, PlanRefused
from orchestrator.planning.memory import profile_key, suggest
from orchestrator.planning.prerequisites import entries

# orch's own processes are in the same control group as the engine: gateway and keepers (62 MB were measured), and the
# command itself, by some MB more or less each time. What is suggested has to fit beside them the next time, too.
OWN_BYTES = 80 * MIB


def refuse_unreachable(observed: Observed) -> None:
    """What runs there is not known, so nothing can be decided."""
    for target, error in observed.unreachable.items():
        gone = " If it is gone for good, delete containers/ in orch's data directory." if target == DOCKER else ""
        raise HostError(error.message, hint=f"{error.hint}{gone}".strip(), detail=error.detail)


def refuse_damaged(profile: str, observed: Observed) -> None:
    """What of the profile runs can only be ended."""
    for instance in observed.damaged_of(profile):
        raise PlanRefused(
            f"The record of {instance.name} cannot be used: {instance.problem}.",
            hint=f"Stop it, then serve again: orch down {profile}, orch up",
        )


def refuse_foreign_names(resolved: Resolved, observed: Observed) -> None:
    """A public name is one profile's, and one thing's."""
    status = observed.gateway.status
    owner = resolved.deployment.profile
    for route in resolved.routes:
        present = status.routes.find(route.name) if status is not None else None
        if present is not None and present.owner != owner:
            raise PlanRefused(
                f"The public name {route.name} belongs to profile {present.owner} already.",
                hint=f"Take another name, or free this one: orch down {present.owner}",
            )
    names = [route.name for route in resolved.routes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PlanRefused(
            f"{', '.join(twice)} is the name of both the model and an adapter.", hint="Give the adapter another name."
        )


def unknown_room(resolved: Resolved, observed: Observed) -> Iterator[Skip]:
    """Why nothing can be said of the memory, where nothing can."""
    if resolved.memory_fit is not None:
        return
    coming = (step for step in entries(resolved.prerequisites) if step.download is not None)
    if any(step.key not in observed.finished for step in coming):
        why = "nothing is known about the weights until they are here"
    elif resolved.deployment.accelerator is Accelerator.ROCM:
        why = "how much memory an AMD GPU has is not known"
    else:
        why = "config.json does not give their shape"
    yield Remark("see whether the weights fit into memory", why)


def refuse_no_room(resolved: Resolved, instead: str = "") -> None:
    """A new engine needs room beside everything that runs; `instead` is another way than settings, as a sentence."""
    memory_fit, wanted = resolved.memory_fit, resolved.deployment
    if memory_fit is None or memory_fit.fits or memory_fit.fits_later:
        return
    steady = replace(memory_fit.pool, free=memory_fit.pool.free - (OWN_BYTES if memory_fit.pool.limit_file else 0))
    ways = [_way(way, wanted.engine) for way in suggest(memory_fit.request, steady)]
    none = "No settings of the profile make it fit: free some memory, or serve a smaller artifact."
    hint = f"In the profile, set {'; or '.join(ways)}." if ways else none
    if memory_fit.pool.limit_file:
        hint += f" Or raise the limit, which is set in {memory_fit.pool.limit_file}."
    if instead:
        hint = f"{instead} {hint}" if ways else instead
    if memory_fit.pool.users and memory_fit.left < memory_fit.request.ahead:
        hint += f" GPU memory is held by {', '.join(str(user) for user in memory_fit.pool.users)}."
    detail = "\n".join(f"{part:<14} {size / GIB:6.2f} GiB  {note}".rstrip() for part, size, note in memory_fit.rows())
    raise PlanRefused(memory_fit.lacking, hint=hint, detail=detail)


def refuse_small_disk(resolved: Resolved, observed: Observed) -> None:
    """An engine's own store holds what it imports several times for a moment; the artifact may come there as well."""
    free, size, peak = observed.host.disk_free, resolved.import_size, resolved.import_peak
    to_build = size if resolved.deployment.artifact_key not in observed.finished else 0
    if free is None or free >= peak + to_build:
        return
    built = f", and {amount(to_build)} for the artifact" if to_build else ""
    raise PlanRefused(
        f"To import {resolved.deployment.artifact_key}, {resolved.deployment.engine} needs {amount(peak)} of disk for "
        f"a moment{built}; {amount(free)} are free where orch keeps its data.",
        hint=f"Free some space there, or have it on a larger disk: ORCH_HOME=DIR. Of it {amount(size)} stay in use.",
    )


def _way(way: Change, engine: str) -> str:
    return " and ".join(f"{profile_key(field, engine)} = {value}" for field, value in way.items())

"""What is wanted, on this host: as it is recorded, or resolved anew; and what it takes to have it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.app.intent import Serve, desired_for
from orchestrator.app.meaning import learnt
from orchestrator.app.profiles import weights_facts
from orchestrator.core.deployment import Adapter, Deployment, Desired, Resolution
from orchestrator.core.launch import DOCKER
from orchestrator.core.observed import Observed
from orchestrator.core.pins import Accelerator
from orchestrator.core.plan import Remark, Skip, Upgrade
from orchestrator.core.prerequisites import Prerequisite
from orchestrator.core.resolved import Resolved
from orchestrator.core.weights import WeightsFacts
from orchestrator.drivers.files import host_errors, write_atomic
from orchestrator.engines import engine_sheet
from orchestrator.engines.context import ResolveContext
from orchestrator.engines.prerequisites import fitted, is_rebuilt, key_of, needed, packed_for
from orchestrator.engines.recorded import card_of_recorded, resolve_recorded, what_is_gone
from orchestrator.engines.resolve import computes_on, resolve
from orchestrator.errors import HostError, OrchError, PlanRefused

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


_ASKS_FOR_GPU = "CUDA_VISIBLE_DEVICES=0 (or another) asks for a GPU"
_SHOULD_WORK = {
    Accelerator.CUDA: "nvidia-smi should work first",
    Accelerator.ROCM: "/dev/kfd and /dev/dri should be there first",
}


class Take(Enum):
    """What to take where something is recorded: only that, or a refusal (`rollback`); that, as long as what was asked
    for is still the same (looking, and changing something else); or also what is pinned by now (`up`)."""

    RECORDED = auto()
    STEADY = auto()
    NEWEST = auto()


def resolve_desired(
    orch: Orchestrator,
    desired: Desired,
    observed: Observed,
    to_run: bool = True,
    take: Take = Take.STEADY,
    learn: bool = True,
) -> tuple[Resolved, Desired]:
    """What is wanted, on this host; with it the same as it is to be recorded: its adapters fitted to these weights, and
    its resolution. To `learn` what the model says of itself its files are read, and a hub is asked if it is `to_run`.
    """
    context = orch.resolve_context(observed, desired.spec.profile)
    weights = weights_facts(orch, desired.spec.profile)
    adapters = tuple(fitted(a.name, a.digest, a.rank, a.origin, weights, context) for a in desired.adapters)
    desired = desired.model_copy({"adapters": adapters})
    spec, recorded = desired.spec, desired.resolution
    context, rebuilt = _kept(recorded, weights, context)

    def anew() -> Resolved:
        found = resolve(spec, adapters, weights, observed.host, context, to_run)
        return replace(found, passed_over=(*found.passed_over, *rebuilt))

    def again(resolution: Resolution, *notes: Skip) -> tuple[Resolved, Desired]:
        """As it is recorded; what clients are told of it is learnt where an earlier version has not recorded that."""
        found = resolve_recorded(spec, resolution, adapters, weights, observed.host, context, to_run)
        if not learn or resolution.deployment.card is not None:
            return replace(found, passed_over=notes), desired
        # What serves is not refused for what it could say of itself.
        with suppress(OrchError):
            known = learnt(orch, weights, found, ask_hub=False)
            if (card := card_of_recorded(spec, resolution, known, context)) is not None:
                told = resolution.deployment.model_copy({"card": card})
                resolution = resolution.model_copy({"deployment": told})
                found = resolve_recorded(spec, resolution, adapters, weights, observed.host, context, to_run)
        return replace(found, passed_over=notes), desired.model_copy({"resolution": resolution})

    def settled(resolved: Resolved) -> tuple[Resolved, Desired]:
        """What is taken is resolved with what the model says of itself, wherever that has to be asked for."""
        known = learnt(orch, weights, resolved, ask_hub=to_run) if learn else weights
        if known.meaning is not None:
            resolved = resolve(spec, adapters, known, observed.host, context, to_run)
            resolved = replace(resolved, passed_over=(*resolved.passed_over, *rebuilt))
        return resolved, desired.resolved_anew(resolved.resolution)

    if recorded is None:
        return settled(anew())
    asked = take is Take.RECORDED or observed.host.gpus_asked
    if (note := None if asked else _computes_elsewhere(desired, recorded, observed)) is not None:
        return again(recorded, note)
    gone = what_is_gone(spec, recorded, weights, observed.host, context)
    if take is Take.RECORDED:
        if gone:
            raise PlanRefused(
                f"{spec.profile.name} cannot go back to {spec.engine}: {gone}.",
                hint=f"orch migrate --to {spec.engine} serves with what there is now.",
            )
        return again(recorded)
    try:
        resolved = anew()
    except OrchError as error:
        if gone:
            raise
        return again(recorded, Remark("look for an upgrade", error.message))
    if not gone:
        if resolved.resolution.identity == recorded.identity:
            return again(recorded, *resolved.passed_over)
        if why := _why_not(desired, recorded, resolved.resolution, observed, context, take):
            note = Upgrade(f"upgrade to {_named(resolved.resolution)}", why)
            return again(recorded, *resolved.passed_over, note)
    return settled(resolved)


def _computes_elsewhere(desired: Desired, recorded: Resolution, observed: Observed) -> Skip | None:
    """Where this machine would compute on something else by now, and nobody has asked for that: what serves stays. A
    GPU may have come since, or is not seen from where this command runs. HostError where what was computed on a GPU has
    to be started, and there is none: the CPU is never taken in silence."""
    was, name = recorded.deployment, desired.spec.profile.name
    now = computes_on(engine_sheet(was.engine), was.target, observed.host)
    if now is was.accelerator:
        return None
    if was.accelerator is Accelerator.CPU:
        return Remark(f"compute on {now.value}", f"{name} computes on the CPU, as it did; {_ASKS_FOR_GPU}")
    if any(one.running and one.deployment.fingerprint == was.fingerprint for one in observed.engines_of(name)):
        return Remark("see its GPU", f"{name} serves on {was.accelerator.value}, and no such GPU is seen from here")
    raise HostError(
        f"{name} computed on {was.accelerator.value}, and no such GPU is found now.",
        hint=f"{_SHOULD_WORK[was.accelerator]}; CUDA_VISIBLE_DEVICES= (empty) asks for the CPU instead.",
    )


def _kept(
    recorded: Resolution | None, weights: WeightsFacts, context: ResolveContext
) -> tuple[ResolveContext, tuple[Skip, ...]]:
    """What an earlier version of orch has built serves on until somebody builds it anew, whatever else is taken; with
    that, what there is to say of it."""
    if recorded is None or recorded.deployment.artifact_key not in context.finished:
        return context, ()
    recipe, key = recorded.deployment.recipe, recorded.deployment.artifact_key
    if not is_rebuilt(recipe, key, weights, context):
        return context, ()
    why = f"it is available; orch build --recipe {recipe.value} makes it, and the next orch up takes it"
    note = Upgrade(f"upgrade to {key_of(recipe, weights, context)}", why)
    return replace(context, kept={recipe: key}), (note,)


def _why_not(
    desired: Desired,
    recorded: Resolution,
    now: Resolution,
    observed: Observed,
    context: ResolveContext,
    take: Take,
) -> str:
    """Why what is recorded stays, though it would be resolved to something else by now; empty: it does not."""
    before = desired.before.resolution if desired.before is not None else None
    if desired.held and before is not None and before.identity == now.identity:
        return "it was rolled back; orch rollback goes forward again"
    was, would = recorded.deployment, now.deployment
    ready = was.recipe in context.ready or packed_for(was.recipe, context) is not None
    of_its_own = ready and was.artifact_key != would.artifact_key
    asked = (was.recipe, was.accelerator, was.weights_source) != (would.recipe, would.accelerator, would.weights_source)
    if asked or of_its_own:
        return ""
    if take is not Take.NEWEST:
        return "it is available; orch up takes it"
    mine = observed.engines_of(was.profile)
    if not any(one.answers and one.deployment.fingerprint == was.fingerprint for one in mine):
        return "what is not serving comes back as it was first; the next orch up takes it"
    return ""


def _named(resolution: Resolution) -> str:
    return resolution.program_name or resolution.deployment.artifact_key


def rendered(orch: Orchestrator, intent: Serve) -> Deployment:
    """What `up` would start, on this host or without what it lacks."""
    observed = orch.observe()
    desired = desired_for(orch, intent, observed)
    return resolve_desired(orch, desired, observed_for(orch, desired, observed), to_run=False)[0].deployment


def write_files(deployment: Deployment, directory: Path) -> tuple[Path, ...]:
    """A deployment's files, for this user only as those of orch's own engines are; where they are now. HostError where
    one of that name says something else: it may be the user's own."""
    with host_errors(f"write into {directory}"):
        for name, text in deployment.written:
            present = directory / name
            if present.exists() and present.read_bytes() != text.encode():
                raise HostError(f"{present} already exists, and differs.", hint="Choose another directory.")
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in deployment.written:
            write_atomic(directory / name, text.encode(), mode=0o600)
    return tuple(directory / name for name, _ in deployment.written)


def needed_for_desired(
    orch: Orchestrator, desired: Desired, observed: Observed
) -> tuple[tuple[Prerequisite, ...], tuple[Adapter, ...]]:
    """What it takes to have all that may be served, on whatever host; with the adapters, fitted."""
    profile = desired.spec.profile
    weights, context = weights_facts(orch, profile), orch.resolve_context(observed, profile)
    adapters = tuple(fitted(a.name, a.digest, a.rank, a.origin, weights, context) for a in desired.adapters)
    return needed(desired.spec, weights, adapters, context), adapters


def observed_for(orch: Orchestrator, desired: Desired, observed: Observed) -> Observed:
    """The snapshot, made again with the Docker daemon in it where only now it is known that one is needed."""
    if desired.spec.target != DOCKER or orch.attends_docker:
        return observed
    orch.attend_docker()
    return orch.observe()

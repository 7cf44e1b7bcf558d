"""What a profile is made of, written down and compared: the lock of a profile here and now, and what a lock demands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import __version__
from orchestrator.app.intent import with_listed_adapters
from orchestrator.app.profiles import load_profile, pinned, weights_facts
from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Adapter
from orchestrator.core.lock_file import (
    FORMAT,
    Difference,
    Kind,
    Lock,
    LockedEntry,
    LockedProfile,
    differences,
    lock_text,
    locked_engine,
    parse_lock,
    pinned_by,
    profile_digest,
    stated,
)
from orchestrator.core.observed import Observed
from orchestrator.core.plan import Plan
from orchestrator.core.prerequisites import BuildArtifact, FetchArtifact, Prerequisite
from orchestrator.core.profile import Profile
from orchestrator.core.text import decoded
from orchestrator.drivers.files import write_atomic
from orchestrator.engines.prerequisites import needed_by_any_engine
from orchestrator.engines.settings import said_settings
from orchestrator.errors import HostError, PlanRefused
from orchestrator.planning.prerequisites import entries, missing_entries, plan_prerequisites

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


def write_lock(orch: Orchestrator, lock: Lock, file: Path) -> None:
    """Write a lock file, and know of it from now on: what it names stays in the store."""
    write_atomic(file, lock_text(lock).encode())
    orch.lock_files.remember(file)


def read_lock(orch: Orchestrator, file: Path) -> Lock:
    """The lock in a file, which is remembered: what it names stays in the store. HostError where there is none."""
    try:
        text = decoded(file.read_bytes())
    except (OSError, ValueError) as error:
        raise HostError(f"{file} cannot be read.", hint="orch lock writes it.", detail=str(error)) from error
    found = parse_lock(text, str(file))
    if file.absolute() not in orch.lock_files.known():
        orch.lock_files.remember(file)
    return found


def locked_profile(
    orch: Orchestrator, locked: Lock, profile: str | None, observed: Observed, ready_made: bool | None = None
) -> Profile:
    """The profile that was locked (`profile`: where it is), at the commit that is locked."""
    loaded = pinned_by(locked, load_profile(profile or locked.profile.name, observed).preferring(ready_made))
    return pinned(orch, loaded, observed)


def lock_of(orch: Orchestrator, profile: Profile, observed: Observed, ask_hub: bool = False) -> Lock:
    """What the lock of a profile (at a commit) would be here and now; files that are not here, if the hub may be asked,
    by its word."""
    weights = weights_facts(orch, profile)
    found = {weights.key: LockedEntry(recipe=Recipe.WEIGHTS, source=weights.source)}
    # The environment that a builder needs is known by its entry's own `builder`.
    found |= {step.key: _locked_entry(orch, step) for step in entries(prerequisites_of(orch, profile, observed))}
    if ask_hub and weights.fetch is not None and not found[weights.key].files:
        snapshot = orch.hub.snapshot(weights.fetch, 30.0, progress=orch.progress)
        found[weights.key] = found[weights.key].model_copy(update={"files": stated(snapshot.files)})
    return Lock(
        format=FORMAT,
        orch=__version__,
        weights=weights.key,
        profile=LockedProfile(name=profile.name, digest=profile_digest(profile, said_settings(profile))),
        entries=found,
        engines={name: locked_engine(pin) for name, pin in orch.pins.items() if pin.docker or pin.local},
    )


def prerequisites_of(orch: Orchestrator, profile: Profile, observed: Observed) -> tuple[Prerequisite, ...]:
    """What it takes to have all that the profile's engines may serve, with its adapters."""
    weights, adapters = weights_facts(orch, profile), _adapters(orch, profile, observed)
    found = needed_by_any_engine(profile, weights, adapters, orch.resolve_context(observed, profile))
    # A view means something on this machine only, and is made when it is served.
    return tuple(step for step in found if step.recipe is None or step.recipe.portable)


def plan_missing(orch: Orchestrator, profile: Profile, observed: Observed) -> Plan:
    """The plan to have all of it here; a ready-made artifact also where others are made from it."""
    wanted = prerequisites_of(orch, profile, observed)
    ready = tuple(step.key for step in wanted if isinstance(step, FetchArtifact))
    return plan_prerequisites("lock check", wanted, observed, ready)


def check_locked(orch: Orchestrator, locked: Lock, profile: Profile, observed: Observed) -> None:
    """PlanRefused if what would be built for the profile is not what is locked, or not by the same versions."""
    _refuse(orch, locked, profile, observed, ("profile", "source", "key", "versions"))


def check_served(orch: Orchestrator, locked: Lock, profile: Profile, observed: Observed, plan: Plan) -> None:
    """PlanRefused if what a plan would serve is not what is locked, bit for bit, or not by the locked engines.

    It has to be in the store by then: what is made on the way is known too late.
    """
    _refuse(orch, locked, profile, observed, ("profile", "source", "key", "files", "engine"))
    missing = [step.what for step in missing_entries(plan)]
    if missing:
        raise PlanRefused(
            f"Some of what {profile.name} is served with is not in the store yet.",
            hint="orch build --locked makes it as locked; orch lock check brings adapters.",
            detail="\n".join(missing),
        )


def built_differently(orch: Orchestrator, locked: Lock, profile: Profile, observed: Observed) -> tuple[Difference, ...]:
    """Files that were built here with other bytes than are locked."""
    found = differences(locked, lock_of(orch, profile, observed))
    return tuple(one for one in found if one.kind == "files")


def _refuse(orch: Orchestrator, locked: Lock, profile: Profile, observed: Observed, decisive: tuple[Kind, ...]) -> None:
    found = [one for one in differences(locked, lock_of(orch, profile, observed)) if one.kind in decisive]
    if found:
        raise PlanRefused(
            f"{profile.name} differs from its lock.",
            hint="orch lock check shows more; orch lock writes a new lock.",
            detail="\n".join(
                f"{one.what}: {one.locked or 'nothing'} is locked, {one.here or 'nothing'} is here" for one in found
            ),
        )


def _locked_entry(orch: Orchestrator, step: Prerequisite) -> LockedEntry:
    if step.recipe is None:
        raise TypeError(f"{step.what} ends in no entry of the store")
    manifest = orch.store.get(step.key)
    if manifest is not None:
        files = stated(manifest.files)
        return LockedEntry(recipe=step.recipe, source=step.source, builder=manifest.builder, files=files)
    # What is built depends on its builders' versions; what is brought does not.
    builder = orch.builder.versions(step.recipe, step.by) if isinstance(step, BuildArtifact) else {}
    return LockedEntry(recipe=step.recipe, source=step.source, builder=builder)


def _adapters(orch: Orchestrator, profile: Profile, observed: Observed) -> tuple[Adapter, ...]:
    """Those that the profile lists, and where it is deployed those that were added since."""
    present = observed.desired.get(profile.name)
    return with_listed_adapters(orch, profile, present.adapters if present is not None else (), observed)

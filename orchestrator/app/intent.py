"""From what was asked to what is wanted: one function for all verbs, and what it takes to have it on this host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.app.profiles import (
    default_profile,
    deployed,
    is_path,
    load_profile,
    pinned,
    profile_in,
    weights_facts,
)
from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Adapter, DeploymentSpec, Desired
from orchestrator.core.launch import DOCKER, LOCAL
from orchestrator.core.observed import Observed
from orchestrator.core.part import Unfit, read
from orchestrator.core.profile import Profile, PublicName
from orchestrator.engines import ENGINES, engine_sheet
from orchestrator.engines.prerequisites import fitted
from orchestrator.engines.resolve import pinned_image
from orchestrator.errors import PlanRefused, UsageError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator
    from orchestrator.core.lock_file import Lock


@dataclass(frozen=True)
class Serve:
    """Serve a profile (itself, its name or its path; None: the one that is meant) with an engine. What is not said
    stays as it is recorded, or is chosen for this machine; a lock names the commits. `ready_made` (None: as the profile
    says) prefers the artifacts of others, or those built here."""

    engine: str | None = None
    profile: Profile | str | None = None
    target: str | None = None
    recipe: Recipe | None = None
    lock: Lock | None = None
    ready_made: bool | None = None


@dataclass(frozen=True)
class MoveTo:
    """Move a deployed profile, as it is recorded or with what its file says now, to another engine, target or
    artifact; see Serve for `ready_made`."""

    engine: str
    profile: str | None = None
    target: str | None = None
    recipe: Recipe | None = None
    ready_made: bool | None = None


@dataclass(frozen=True)
class GoBack:
    """Go back to what served a deployed profile before."""

    profile: str | None = None


@dataclass(frozen=True)
class AddAdapter:
    """Serve the adapter in a PEFT directory too, in place of one of that name if there is one."""

    name: str
    directory: Path
    profile: str | None = None


@dataclass(frozen=True)
class RemoveAdapter:
    """Serve an adapter no longer."""

    name: str
    profile: str | None = None


Intent = Serve | MoveTo | GoBack | AddAdapter | RemoveAdapter


def desired_for(orch: Orchestrator, intent: Intent, observed: Observed) -> Desired:
    """What is to be recorded, and so served, once the intent is carried out. PlanRefused, UsageError or ProfileError
    where it cannot be meant."""
    match intent:
        case Serve():
            return _serve(orch, intent, observed)
        case MoveTo(engine, profile, target, recipe, ready_made):
            loaded = profile_in(profile) if profile is not None and is_path(profile) else None
            present = deployed(loaded.name if loaded is not None else profile, observed)
            update: dict[str, object] = {
                "engine": engine,
                "target": chosen_target(orch, engine, target, present),
                "recipe": recipe,
            }
            if loaded is None:
                kept = present.spec.profile
                if ready_made is not None:
                    update["profile"] = pinned(orch, kept.preferring(ready_made), observed)
                return present.changed_to(present.spec.model_copy(update))
            loaded = pinned(orch, loaded.preferring(ready_made), observed)
            spec = present.spec.model_copy({**update, "profile": loaded})
            return with_profile_adapters(orch, present.changed_to(spec), present.spec.profile, observed)
        case GoBack(profile):
            present = deployed(profile, observed)
            if present.before is None:
                name = present.spec.profile.name
                raise PlanRefused(f"{name} was not served by anything else before.", hint="orch migrate --to ENGINE")
            return present.gone_back()
        case AddAdapter(name, directory, profile):
            check_adapter_name(name)
            present = deployed(profile, observed)
            added = _read_adapter(orch, name, directory, present.spec.profile, present.adapters, observed)
            return present.model_copy({"adapters": _with_adapter(present.adapters, added)})
        case RemoveAdapter(name, profile):
            present = deployed(profile, observed)
            known = [adapter.name for adapter in present.adapters]
            # What a killed command has left behind is taken away by the same command again.
            if name not in known and name not in _adapters_left(present.spec.profile, observed):
                raise PlanRefused(f"There is no adapter {name}.", hint=f"There are: {', '.join(known) or 'none'}.")
            adapters = tuple(adapter for adapter in present.adapters if adapter.name != name)
            return present.model_copy(update={"adapters": adapters})


def _serve(orch: Orchestrator, intent: Serve, observed: Observed) -> Desired:
    if intent.engine is not None:
        engine_sheet(intent.engine)
    loaded = intent.profile
    if not isinstance(loaded, Profile):
        loaded = load_profile(loaded if loaded is not None else default_profile(observed), observed)
    loaded = loaded.preferring(intent.ready_made)
    present = observed.desired.get(loaded.name)
    if intent.engine is None and present is None:
        raise PlanRefused(
            f"{loaded.name} is not deployed, so an engine must be named.",
            hint=f"Name one: {', '.join(sorted(ENGINES))}. "
            f"For another profile than {loaded.name}: orch up ENGINE -p FILE.toml",
        )
    where = chosen_target(orch, intent.engine, intent.target, present)
    if intent.lock is not None:
        # Few have one.
        from orchestrator.core.lock_file import pinned_by

        loaded = pinned_by(intent.lock, loaded)
    loaded = pinned(orch, loaded, observed)
    if present is None:
        spec = DeploymentSpec(profile=loaded, engine=intent.engine or "", target=where, recipe=intent.recipe)
        return with_profile_adapters(orch, Desired(spec=spec), None, observed)
    update: dict[str, object] = {"profile": loaded, "target": where}
    if intent.engine is not None and intent.engine != present.spec.engine:
        update |= {"engine": intent.engine, "recipe": None}
    if intent.recipe is not None:
        update["recipe"] = intent.recipe
    desired = present.changed_to(present.spec.model_copy(update=update))
    if intent.profile is None:
        return desired
    return with_profile_adapters(orch, desired, present.spec.profile, observed)


def with_profile_adapters(orch: Orchestrator, desired: Desired, before: Profile | None, observed: Observed) -> Desired:
    """The same with the adapters that a profile which was just given brings along, without those that the profile
    `before` it listed and it does not."""
    profile = desired.spec.profile
    kept = {entry.name for entry in profile.adapters}
    dropped = {entry.name for entry in before.adapters} - kept if before is not None else set()
    adapters = tuple(adapter for adapter in desired.adapters if adapter.name not in dropped)
    return desired.model_copy({"adapters": with_listed_adapters(orch, profile, adapters, observed)})


def with_listed_adapters(
    orch: Orchestrator, profile: Profile, adapters: tuple[Adapter, ...], observed: Observed
) -> tuple[Adapter, ...]:
    """These adapters, and those that a profile lists."""
    for entry in profile.adapters:
        added = _read_adapter(orch, entry.name, Path(entry.path), profile, adapters, observed)
        adapters = _with_adapter(adapters, added)
    return adapters


def chosen_target(orch: Orchestrator, engine: str | None, asked: str | None, present: Desired | None) -> str:
    """Where an engine is to run: as asked, where it is, by ORCH_TARGET; else in Docker if a daemon answers and an image
    is pinned that this machine can use, else as a process."""
    target = asked or (present.spec.target if present is not None else None) or orch.settings.target
    if target is None:
        target = DOCKER if engine is not None and not _why_no_container(orch, engine) else LOCAL
    if target not in orch.targets:
        raise UsageError(f"There is no target {target}.", hint=f"Known: {', '.join(orch.targets)}")
    return target


def why_not_docker(orch: Orchestrator, asked: str | None, desired: Desired, observed: Observed) -> str:
    """Why an engine that orch runs in containers is to be a process, where nobody has said so; empty where somebody
    has. A profile stays where it is, but on an engine that is never in a container nobody has chosen that."""
    name, engine = desired.spec.profile.name, desired.spec.engine
    present = observed.desired.get(name)
    said = asked or orch.settings.target or (present is not None and engine_sheet(present.spec.engine).in_containers)
    if said or desired.spec.target != LOCAL or not engine_sheet(engine).in_containers:
        return ""
    stays = f"{name} is served by processes, and stays so; --target docker moves it" if present is not None else ""
    return _why_no_container(orch, engine) or stays


def _why_no_container(orch: Orchestrator, engine: str) -> str:
    if not pinned_image(engine, orch.host, orch.pins):
        return f"no image of {engine} is pinned for what this machine computes on"
    return orch.docker_facts.problem


def recipe_named(name: str | None) -> Recipe | None:
    """A recipe by what people type; UsageError with the known ones."""
    if name is None:
        return None
    try:
        return Recipe(name)
    except ValueError as error:
        known = ", ".join(recipe.value for recipe in Recipe if recipe.served)
        raise UsageError(f"orch does not know the recipe {name}.", hint=f"Known: {known}") from error


def check_adapter_name(name: str) -> None:
    """UsageError where it cannot be a public name."""
    try:
        read(PublicName, name)
    except Unfit as error:
        raise UsageError(f"{name!r} is not a valid public name.", hint="Letters, digits and . _ : / @ -") from error


def _adapters_left(profile: Profile, observed: Observed) -> set[str]:
    """The names that its engines have adapters under, or had when they were started, and its other routes."""
    names = {route.name for route in observed.routes_of(profile.name)} - {*profile.public_names}
    for engine in observed.engines_of(profile.name):
        names |= {adapter.name for adapter in engine.deployment.adapters}
        names |= {name for name, _ in engine.loaded or ()}
    return names


def _read_adapter(
    orch: Orchestrator,
    name: str,
    directory: Path,
    profile: Profile,
    present: tuple[Adapter, ...],
    observed: Observed,
) -> Adapter:
    """An adapter from a PEFT directory, checked against the weights as far as they are there."""
    weights = weights_facts(orch, profile)
    base = Path(weights.path) if weights.size else None
    facts = orch.builder.adapter(directory, base)
    digest = facts.source.removeprefix("dir:")
    known = next((a for a in present if a.name == name and a.digest == digest), None)
    origin = known.origin if known is not None else str(directory.resolve())
    return fitted(name, digest, facts.rank, origin, weights, orch.resolve_context(observed, profile))


def _with_adapter(present: tuple[Adapter, ...], adapter: Adapter) -> tuple[Adapter, ...]:
    """The same with one adapter more, or another version of it in its place."""
    if all(one.name != adapter.name for one in present):
        return (*present, adapter)
    return tuple(adapter if one.name == adapter.name else one for one in present)

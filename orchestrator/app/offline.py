"""A profile with all that it needs, carried to a machine without network: gathered into one file, taken in there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import __version__
from orchestrator.app.images import attend, put_pin
from orchestrator.app.intent import Serve, desired_for
from orchestrator.app.profiles import named_profile
from orchestrator.app.resolution import observed_for, resolve_desired
from orchestrator.core.artifact import Manifest, Recipe
from orchestrator.core.deployment import Adapter, Desired
from orchestrator.core.image_archive import ArchiveLock, SavedAdapter, SavedEngine, SavedImage
from orchestrator.core.launch import DOCKER
from orchestrator.core.observed import Observed
from orchestrator.core.part import Unfit
from orchestrator.core.pins import Accelerator, ImagePin
from orchestrator.core.prerequisites import Prerequisite, Storage
from orchestrator.core.profile import AdapterEntry, Profile
from orchestrator.core.toml_text import toml_text
from orchestrator.core.weights import WANTED
from orchestrator.drivers.docker import gateway_image
from orchestrator.drivers.docker.archive import hashed, opened_archive, write_archive
from orchestrator.drivers.files import write_atomic
from orchestrator.engines import engine_sheet
from orchestrator.engines.resolve import computes_on
from orchestrator.engines.settings import read_settings
from orchestrator.errors import PlanRefused, SourceError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that the file was made for, what it computed on there and computes on here, its image if it was pinned
    here for that, and the command that serves it."""

    engine: str
    saved_for: Accelerator
    computes_on: Accelerator
    pinned: ImagePin | None
    command: str


@dataclass(frozen=True)
class Loaded:
    """What was loaded and what was here already, by name; `gateway_base` is ORCH_GATEWAY_BASE, where it was set there
    and is not here. `gateway_unfit`: why the gateway's images in the file are of no use to this orch."""

    loaded: tuple[str, ...]
    here: tuple[str, ...]
    gateway_base: str
    gateway_unfit: str
    engines: tuple[LoadedEngine, ...]


def save(orch: Orchestrator, file: Path, profile: str | None, engines: list[str], target: str | None) -> ArchiveLock:
    """Write all that a profile needs on these engines (none: the one that serves) into one file; its lock.

    PlanRefused where something of it is not here yet, or cannot be carried.
    """
    found = _gather(orch, profile, engines, target)
    return write_archive(file, _lock(orch, found), found.sources, orch.images, orch.progress)


def load(orch: Orchestrator, file: Path) -> Loaded:
    """Take in a file of `save`. SourceError where a hash is wrong: then what is wrong is nowhere."""
    with opened_archive(file) as archive:
        _check_settings(file, archive.lock)
        if archive.lock.images:
            attend(orch)
        loaded, here = archive.load(orch.store, orch.images, orch.progress)
    written = _write_profile(orch, file, archive.lock)
    unfit = _gateway_unfit(orch, archive.lock)
    base = archive.lock.gateway_base if orch.settings.gateway_base is None and not unfit else ""
    engines = tuple(_take_in(orch, engine, written) for engine in archive.lock.engines)
    return Loaded(tuple(loaded), tuple(here), base, unfit, engines)


def _check_settings(file: Path, lock: ArchiveLock) -> None:
    try:
        read_settings(lock.profile.engines, "forbid")
    except Unfit as error:
        first = error.problems[0]
        raise SourceError(
            f"The profile in {file} has settings that this orch does not know: {'.'.join(map(str, first['loc']))}.",
            hint=f"Use the version of orch that made it: {lock.orch}.",
        ) from error


@dataclass
class _Found:
    """What is to be saved, as it is found; `sources` are the directories of the entries, by key."""

    profile: Profile
    engines: list[SavedEngine] = field(default_factory=list)
    images: dict[str, SavedImage] = field(default_factory=dict)
    entries: dict[str, Manifest] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)
    adapters: tuple[Adapter, ...] = ()
    weights: str = ""


def _gather(orch: Orchestrator, profile: str | None, engines: list[str], target: str | None) -> _Found:
    observed = orch.observe()
    loaded = named_profile(orch, profile, observed)
    present = observed.desired.get(loaded.name)
    names = engines or ([present.spec.engine] if present is not None else [])
    if not names:
        raise PlanRefused(f"{loaded.name} is not deployed, so say for which engine.", hint="--engine NAME")
    found = _Found(loaded)
    for name in dict.fromkeys(names):
        desired = desired_for(orch, Serve(name, profile, target), observed)
        _take_engine(orch, found, desired, observed, profile or loaded.name)
    if loaded.weights.path is not None:
        _take_directory(orch, found)
    if any(engine.target == DOCKER for engine in found.engines):
        _take_gateway(orch, found)
    return found


def _take_engine(orch: Orchestrator, found: _Found, desired: Desired, observed: Observed, profile: str) -> None:
    spec = desired.spec
    resolved, desired = resolve_desired(orch, desired, observed_for(orch, desired, observed), to_run=False)
    deployment = resolved.deployment
    for step in _to_carry(resolved.prerequisites, deployment.artifact_key):
        _take(orch, found, step, spec.engine, profile)
    saved = SavedEngine(
        engine=spec.engine, target=spec.target, accelerator=deployment.accelerator, image=resolved.image
    )
    found.engines.append(saved)
    found.adapters = desired.adapters


def _to_carry(wanted: tuple[Prerequisite, ...], served: str) -> tuple[Prerequisite, ...]:
    """What is served and what runs it; not weights that are here only to be built from."""
    return tuple(step for step in wanted if step.recipe is not Recipe.WEIGHTS or step.key == served)


def _take(orch: Orchestrator, found: _Found, step: Prerequisite, engine: str, profile: str) -> None:
    """What a step of `up` would provide: it has to be here by now."""
    match step.storage:
        case Storage.STORE:
            pulled = step.recipe is Recipe.WEIGHTS
            command = f"orch pull -p {profile}" if pulled else f"orch up {engine} -p {profile}"
            _take_entry(orch, found, step.key, command)
        case Storage.IMAGES:
            _take_image(orch, found, step.source, step.key, f"orch images pull {engine}")
        case Storage.ENVIRONMENTS:
            raise PlanRefused(
                f"{step.key} is installed for this machine alone and cannot be saved.",
                hint=f"Its image can: --target docker; or use another engine than {engine}.",
            )


def _take_entry(orch: Orchestrator, found: _Found, key: str, command: str) -> None:
    manifest = orch.store.get(key)
    if manifest is None:
        raise PlanRefused(f"{key} is not in the store yet.", hint=f"First: {command}")
    found.entries[key], found.sources[key] = manifest, orch.store.path(key)


def _take_image(orch: Orchestrator, found: _Found, name: str, reference: str, command: str) -> None:
    details = orch.images.details(reference)
    if details is None:
        raise PlanRefused(f"The image {name} is not here yet.", hint=f"First: {command}")
    facts = details.facts
    found.images[reference] = SavedImage(
        name=name, reference=reference, id=facts.id, layers=details.layers, requires=facts.requires, size=facts.size
    )


def _take_gateway(orch: Orchestrator, found: _Found) -> None:
    """Its image, and the base if it is here: where orch is not exactly the same, the image is made again."""
    reference, base = orch.gateway_image()
    _take_image(orch, found, reference, reference, "orch images pull")
    if isinstance(base, str):
        _take_image(orch, found, orch.settings.gateway_base or base, base, "orch images pull")
    elif orch.images.details(base.reference) is not None:
        _take_image(orch, found, base.name, base.reference, "orch images pull")


def _gateway_unfit(orch: Orchestrator, lock: ArchiveLock) -> str:
    """The gateway's image is made again for another Python, and its base is of no use for that then."""
    for image in lock.images:
        details = orch.images.details(image.reference) if image.name.startswith(f"{gateway_image.NAME}:") else None
        if details is not None and (why := gateway_image.unfit(details.facts.python)):
            return why
    return ""


def _take_directory(orch: Orchestrator, found: _Found) -> None:
    """The weights that the profile names by a directory: elsewhere they are an entry of the store."""
    facts = orch.catalog.of_directory(found.profile.weights, orch.progress)
    root = Path(facts.path)
    manifest = orch.store.get(facts.key)
    if manifest is None:
        names = [path.name for path in root.iterdir() if WANTED.fullmatch(path.name) and path.is_file()]
        manifest = Manifest(
            key=facts.key,
            recipe=Recipe.WEIGHTS,
            source=facts.source,
            builder={},
            files=hashed(root, names, orch.progress),
            created=_now(),
        )
    found.weights = facts.key
    found.entries[facts.key], found.sources[facts.key] = manifest, root


def _lock(orch: Orchestrator, found: _Found) -> ArchiveLock:
    return ArchiveLock(
        orch=__version__,
        created=_now(),
        profile=found.profile,
        engines=tuple(found.engines),
        weights=found.weights,
        adapters=tuple(SavedAdapter(name=adapter.name, key=adapter.key) for adapter in found.adapters),
        gateway_base=orch.settings.gateway_base or "",
        images=tuple(found.images.values()),
        entries=tuple(found.entries.values()),
    )


def _write_profile(orch: Orchestrator, file: Path, lock: ArchiveLock) -> Path:
    """The profile beside the file; what lay in directories of another machine lies in the store here."""
    profile = lock.profile
    if lock.weights:
        weights = profile.weights.model_copy(update={"path": str(orch.store.path(lock.weights))})
        profile = profile.model_copy(update={"weights": weights})
    adapters = tuple(AdapterEntry(name=a.name, path=str(orch.store.path(a.key))) for a in lock.adapters)
    profile = profile.model_copy(update={"adapters": adapters})
    text = f"# Made by orch images load from {file.name}.\n{toml_text(profile.model_dump())}"
    path = file.with_suffix(".profile.toml")
    write_atomic(path, text.encode())
    return path


def _take_in(orch: Orchestrator, saved: SavedEngine, profile: Path) -> LoadedEngine:
    """Pin its image where another one would be taken."""
    here = computes_on(engine_sheet(saved.engine), saved.target, orch.host)
    pinned = None
    if saved.image is not None:
        fit = (pin for pin in orch.pins[saved.engine].docker if saved.accelerator in pin.accelerators)
        first = next(fit, None)
        if first is None or first.reference != saved.image.reference:
            put_pin(orch, saved.engine, saved.image)
            pinned = saved.image
    command = f"orch up {saved.engine} -p {shlex.quote(str(profile))} --target {saved.target}"
    return LoadedEngine(saved.engine, saved.accelerator, here, pinned, command)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""A profile with all that it needs, carried to a machine without network: gathered into one file, taken in there."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import __version__
from orchestrator.app.deploy import Options, plan_to
from orchestrator.app.images import attend, put_pin
from orchestrator.app.intent import Serve, desired_for
from orchestrator.app.profiles import named_profile
from orchestrator.app.resolution import Take, observed_for, resolve_desired
from orchestrator.core.artifact import GGUF_FILE, FileEntry, Manifest, Recipe
from orchestrator.core.deployment import Adapter, Desired
from orchestrator.core.image_archive import (
    CALIBRATION,
    ArchiveLock,
    SavedAdapter,
    SavedEngine,
    SavedImage,
    ready_made,
)
from orchestrator.core.launch import DOCKER
from orchestrator.core.observed import Observed
from orchestrator.core.part import Unfit
from orchestrator.core.pins import Accelerator, ImagePin
from orchestrator.core.prerequisites import FetchArtifact, Prerequisite, Storage
from orchestrator.core.profile import AdapterEntry, Profile, profile_toml
from orchestrator.drivers.docker import gateway_image
from orchestrator.drivers.docker.archive import hashed, opened_archive, write_archive
from orchestrator.drivers.files import write_atomic
from orchestrator.drivers.weights import counted_names
from orchestrator.engines import engine_sheet
from orchestrator.engines.resolve import computes_on
from orchestrator.engines.settings import read_settings
from orchestrator.errors import OrchError, PlanRefused, SourceError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that the file was made for, what it computed on there and computes on here, its image if it was pinned
    here for that, and the command that serves it; what that would still have to bring over the network, and why it
    would be refused here (empty: it would not)."""

    engine: str
    saved_for: Accelerator
    computes_on: Accelerator
    pinned: ImagePin | None
    command: str
    missing: tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class Loaded:
    """What was loaded and what was here already, by name; `gateway_base` is ORCH_GATEWAY_BASE, where it was set there
    and is not here. `gateway_unfit`: why the gateway's images in the file are of no use to this orch. `left_out`: what
    the file does not carry, in sentences."""

    loaded: tuple[str, ...]
    here: tuple[str, ...]
    gateway_base: str
    gateway_unfit: str
    left_out: tuple[str, ...]
    engines: tuple[LoadedEngine, ...]

    @property
    def is_whole(self) -> bool:
        """Whether all its engines can be served here without a network."""
        return not any(engine.missing or engine.refused for engine in self.engines)


def save(orch: Orchestrator, file: Path, profile: str | None, engines: list[str], target: str | None) -> ArchiveLock:
    """Write all that a profile needs on these engines (none: the one that serves) into one file; its lock.

    PlanRefused where something of it is not here yet, or cannot be carried.
    """
    found = _gather(orch, profile, engines, target)
    return write_archive(file, _lock(orch, found), found.sources, orch.images, orch.progress)


def load(orch: Orchestrator, file: Path) -> Loaded:
    """Take in a file of `save`, and see what `up` would lack here. SourceError where a hash is wrong: then what is
    wrong is nowhere."""
    with opened_archive(file) as archive:
        _check_settings(file, archive.lock)
        if archive.lock.images:
            attend(orch)
        texts = archive.texts(orch.progress)
        loaded, here = archive.load(orch.store, orch.images, orch.progress)
    lock = archive.lock
    written = _write_profile(orch, file, lock, texts)
    unfit = _gateway_unfit(orch, lock)
    base = lock.gateway_base if orch.settings.gateway_base is None and not unfit else ""
    taken = [_take_in(orch, engine, written, base) for engine in lock.engines]
    engines = tuple(_seen(orch, saved, one, written, base) for saved, one in zip(lock.engines, taken, strict=True))
    return Loaded(tuple(loaded), tuple(here), base, unfit, lock.left_out, engines)


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
    """What is to be saved, as it is found; `sources` are the directories of the entries, by key, and the file of the
    texts; `left_out` says what is not."""

    profile: Profile
    engines: list[SavedEngine] = field(default_factory=list)
    images: dict[str, SavedImage] = field(default_factory=dict)
    entries: dict[str, Manifest] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)
    adapters: tuple[Adapter, ...] = ()
    weights: str = ""
    calibration: FileEntry | None = None
    left_out: list[str] = field(default_factory=list)


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
    if loaded.calibration.path is not None:
        _take_texts(orch, found, Path(loaded.calibration.path))
    if any(engine.target == DOCKER for engine in found.engines):
        _take_gateway(orch, found)
    _leave_out(found)
    return found


def _take_engine(orch: Orchestrator, found: _Found, desired: Desired, observed: Observed, profile: str) -> None:
    spec = desired.spec
    resolved, desired = resolve_desired(orch, desired, observed_for(orch, desired, observed), to_run=False)
    deployment = resolved.deployment
    for step in _to_carry(resolved.prerequisites, deployment.artifact_key):
        _take(orch, found, step, spec.engine, profile)
    saved = SavedEngine(
        engine=spec.engine,
        target=spec.target,
        accelerator=deployment.accelerator,
        image=resolved.image,
        recipe=spec.recipe,
    )
    found.engines.append(saved)
    found.adapters = desired.adapters


def _to_carry(wanted: tuple[Prerequisite, ...], served: str) -> tuple[Prerequisite, ...]:
    """What is served and what runs it; not what is here only to make that: weights, a builder's environment. What came
    from a directory of the user's is carried though: elsewhere the profile could not name it."""
    carried = [step for step in wanted if step.recipe is None or step.recipe.portable]
    spent = {key for step in carried for key in step.made_from if not _from_here(key, wanted)}
    return tuple(step for step in carried if step.key == served or step.key not in spent)


def _from_here(key: str, wanted: tuple[Prerequisite, ...]) -> bool:
    return any(isinstance(step, FetchArtifact) and step.key == key and step.hub is None for step in wanted)


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
    else:
        found.left_out.append(
            f"{base.name}, which is not here (orch images pull): another version of orch makes the gateway's image anew"
        )


def _gateway_unfit(orch: Orchestrator, lock: ArchiveLock) -> str:
    """The gateway's image is made again for another Python, and its base is of no use for that then."""
    for image in lock.images:
        details = orch.images.details(image.reference) if image.name.startswith(f"{gateway_image.NAME}:") else None
        if details is not None and (why := gateway_image.unfit(details.facts.python)):
            return why
    return ""


def _take_texts(orch: Orchestrator, found: _Found, path: Path) -> None:
    """The texts that the profile is calibrated with: what was made with them is found by their digest."""
    if not path.is_file():
        found.left_out.append(f"calibration.path, because there is no file {path}")
        return
    (entry,) = hashed(path.parent, [path.name], orch.progress)
    found.calibration, found.sources[CALIBRATION] = entry, path


def _leave_out(found: _Found) -> None:
    """Say what else of the profile is not carried."""
    carried = {manifest.recipe for manifest in found.entries.values()}
    source = found.profile.weights.hub
    if source is not None and Recipe.WEIGHTS not in carried:
        found.left_out.append(f"the weights of {source.repo}, because what is made of them is in it")
    for recipe, ready in found.profile.artifacts.items():
        if ready.path is not None and recipe not in carried:
            found.left_out.append(f"artifacts.{recipe.value} ({ready.path}), because none of its engines serves that")


def _take_directory(orch: Orchestrator, found: _Found) -> None:
    """The weights that the profile names by a directory: elsewhere they are an entry of the store."""
    facts = orch.catalog.of_directory(found.profile.weights, orch.progress)
    root = Path(facts.path)
    manifest = orch.store.get(facts.key)
    if manifest is None:
        names = list(counted_names(root))
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
        calibration=found.calibration,
        left_out=tuple(found.left_out),
        adapters=tuple(SavedAdapter(name=adapter.name, key=adapter.key) for adapter in found.adapters),
        gateway_base=orch.settings.gateway_base or "",
        images=tuple(found.images.values()),
        entries=tuple(found.entries.values()),
    )


def _write_profile(orch: Orchestrator, file: Path, lock: ArchiveLock, texts: bytes | None) -> Path:
    """The profile beside the file, and the texts that it is calibrated with; what else lay in directories of another
    machine lies in the store here, or is no longer named."""
    profile = lock.profile
    if lock.weights:
        weights = profile.weights.model_copy(update={"path": str(orch.store.path(lock.weights))})
        profile = profile.model_copy(update={"weights": weights})
    adapters = tuple(AdapterEntry(name=a.name, path=str(orch.store.path(a.key))) for a in lock.adapters)
    artifacts = {}
    for recipe, ready in profile.artifacts.items():
        if ready.path is None:
            artifacts[recipe] = ready
        elif key := ready_made(lock, recipe):
            place = orch.store.path(key) / GGUF_FILE if recipe.quant else orch.store.path(key)
            artifacts[recipe] = ready.model_copy(update={"path": str(place)})
    calibration = profile.calibration
    if calibration.path is not None:
        place = file.with_suffix(f".{CALIBRATION}").absolute()
        if texts is not None:
            write_atomic(place, texts)
        calibration = calibration.model_copy(update={"path": str(place) if texts is not None else None})
    profile = profile.model_copy(update={"adapters": adapters, "artifacts": artifacts, "calibration": calibration})
    lines = [f"Made by orch images load from {file.name}.", *(f"It left out {one}." for one in lock.left_out)]
    text = "".join(f"# {' '.join(line.split())}\n" for line in lines) + profile_toml(profile)
    path = file.with_suffix(".profile.toml")
    write_atomic(path, text.encode())
    return path


def _take_in(orch: Orchestrator, saved: SavedEngine, profile: Path, base: str) -> LoadedEngine:
    """Pin its image where another one would be taken; `base` is what ORCH_GATEWAY_BASE has to be set to."""
    here = computes_on(engine_sheet(saved.engine), saved.target, orch.host)
    pinned = None
    if saved.image is not None:
        fit = (pin for pin in orch.pins[saved.engine].docker if saved.accelerator in pin.accelerators)
        first = next(fit, None)
        if first is None or first.reference != saved.image.reference:
            put_pin(orch, saved.engine, saved.image)
            pinned = saved.image
    command = f"orch up {saved.engine} -p {shlex.quote(str(profile))} --target {saved.target}"
    if saved.recipe is not None:
        command += f" --recipe {saved.recipe.value}"
    if base:
        command = f"ORCH_GATEWAY_BASE={shlex.quote(base)} {command}"
    return LoadedEngine(saved.engine, saved.accelerator, here, pinned, command)


def _seen(orch: Orchestrator, saved: SavedEngine, taken: LoadedEngine, profile: Path, base: str) -> LoadedEngine:
    """The same with what its command would lack here, by its own plan: as another process would make it, without a
    network."""
    settings = replace(orch.settings, offline=True, gateway_base=orch.settings.gateway_base or base or None)
    there = type(orch)(settings, orch.progress, orch.note)
    try:
        observed = there.observe()
        desired = desired_for(there, Serve(saved.engine, str(profile), saved.target, saved.recipe), observed)
        plan = plan_to(there, "up", desired, observed, Options(), Take.NEWEST, learn=False)
    except OrchError as error:
        return replace(taken, refused=f"{error.message} {error.hint}".strip())
    steps = (action.step for action in plan.actions if isinstance(action.step, Prerequisite))
    return replace(taken, missing=tuple(step.what for step in steps if step.download is not None))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

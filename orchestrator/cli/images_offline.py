"""The verbs that carry a profile, with its images, to a machine without network: images save, images load."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.images import attend, images, put_pin
from orchestrator.cli.options import AsJson, ProfileName, Target, engine_names, session_of
from orchestrator.errors import PlanRefused

if TYPE_CHECKING:
    from orchestrator.cli.session import Session
    from orchestrator.core.artifact import Manifest
    from orchestrator.core.deployment import Adapter, Desired
    from orchestrator.core.image_archive import ArchiveLock, SavedEngine, SavedImage
    from orchestrator.core.observed import Observed
    from orchestrator.core.profile import Profile
    from orchestrator.core.resolved import Supply


@images.command("save")
def images_save(
    file: Annotated[Path, typer.Argument(help="The file to write; on a large disk.", dir_okay=False)],
    profile: ProfileName = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="May be given again. Default: the one that serves.", autocompletion=engine_names),
    ] = None,
    target: Target = None,
    as_json: AsJson = False,
) -> None:
    """One file with all that a profile needs elsewhere: images, artifacts, the profile, and a lock of it all."""
    with session_of(as_json) as session:
        from orchestrator.drivers.docker.archive import write_archive

        found = _gather(session, profile, engine or [], target)
        lock = write_archive(file, _lock(session, found), found.sources, session.images, session.progress)
        told = f"{file}: {lock.total / 1e6:.1f} MB, {len(lock.images)} images, {len(lock.entries)} store entries."
        session.screen.result(
            {
                "saved": str(file),
                "size": lock.total,
                "images": [image.name for image in lock.images],
                "entries": [manifest.key for manifest in lock.entries],
            },
            f"{told}\nOn the other machine: orch images load {file.name}",
        )


@images.command("load")
def images_load(
    file: Annotated[Path, typer.Argument(help="A file of orch images save.", exists=True, dir_okay=False)],
    as_json: AsJson = False,
) -> None:
    """Take in such a file: everything is checked, and what is here already is left alone."""
    with session_of(as_json) as session, session.exclusive("images load"):
        from orchestrator.drivers.docker.archive import opened_archive

        with opened_archive(file) as archive:
            if archive.lock.images:
                attend(session)
            loaded, here = archive.load(session.store, session.images, session.progress)
        written = _write_profile(session, file, archive.lock)
        for name in loaded:
            session.screen.result({"loaded": name}, f"Loaded {name}.")
        for name in here:
            session.screen.result({"here": name}, f"{name} is here already.")
        if archive.lock.gateway_base and session.settings.gateway_base is None:
            base = f"ORCH_GATEWAY_BASE={archive.lock.gateway_base}"
            session.screen.result({"set": base}, f"Set {base}, as where it was saved: the gateway's image is on it.")
        for engine in archive.lock.engines:
            _tell_engine(session, engine, written)


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


def _gather(session: Session, profile: str | None, engines: list[str], target: str | None) -> _Found:
    from orchestrator.cli.wishes import default_profile, load_profile, pinned
    from orchestrator.core.launch import DOCKER

    observed = session.observe()
    loaded = pinned(session, load_profile(profile or default_profile(observed), observed), observed)
    present = observed.desired.get(loaded.name)
    names = engines or ([present.wish.engine] if present is not None else [])
    if not names:
        raise PlanRefused(f"{loaded.name} is not deployed, so say for which engine.", hint="--engine NAME")
    found = _Found(loaded)
    for name in dict.fromkeys(names):
        desired = _desired(session, loaded, name, target, present, observed, fresh=profile is not None)
        _take_engine(session, found, desired, observed, profile or loaded.name)
    if loaded.weights.path is not None:
        _take_directory(session, found)
    if any(engine.target == DOCKER for engine in found.engines):
        _take_gateway(session, found)
    return found


def _desired(
    session: Session,
    profile: Profile,
    engine: str,
    target: str | None,
    present: Desired | None,
    observed: Observed,
    fresh: bool,
) -> Desired:
    """What `up ENGINE` would want of the profile; `fresh`: with the adapters that it lists."""
    from orchestrator.cli.wishes import chosen_target, with_profile_adapters
    from orchestrator.core.deployment import Desired, Wish
    from orchestrator.engines.resolve import engine_sheet

    engine_sheet(engine)
    same = present if present is not None and present.wish.engine == engine else None
    where = chosen_target(session, engine, target, same)
    wish = Wish(profile=profile, engine=engine, target=where, recipe=same.wish.recipe if same is not None else None)
    desired = Desired(wish=wish, adapters=present.adapters if present is not None else ())
    if present is not None and not fresh:
        return desired
    before = present.wish.profile if present is not None else None
    return with_profile_adapters(session, desired, before, observed)


def _take_engine(session: Session, found: _Found, desired: Desired, observed: Observed, profile: str) -> None:
    from orchestrator.cli.wishes import observed_for, resolve_desired
    from orchestrator.core.image_archive import SavedEngine
    from orchestrator.core.steps import PullImage

    wish = desired.wish
    resolved, desired = resolve_desired(session, desired, observed_for(session, desired, observed), to_run=False)
    image = next((step.image for step in resolved.supply if isinstance(step, PullImage)), None)
    for step in resolved.supply:
        _take_step(session, found, step, wish.engine, profile, resolved.deployment.artifact_key)
    accelerator = resolved.deployment.accelerator
    found.engines.append(SavedEngine(engine=wish.engine, target=wish.target, accelerator=accelerator, image=image))
    found.adapters = desired.adapters


def _take_step(session: Session, found: _Found, step: Supply, engine: str, profile: str, served: str) -> None:
    """What a step of `up` would provide: it has to be here by now."""
    from orchestrator.core.steps import (
        BuildArtifact,
        EnsureEnvironment,
        FetchArtifact,
        FetchWeights,
        ImportAdapter,
        PullImage,
    )

    match step:
        case FetchWeights(_, key) if key == served:
            _take_entry(session, found, key, f"orch pull -p {profile}")
        case BuildArtifact() | FetchArtifact() | ImportAdapter():
            _take_entry(session, found, step.key, f"orch up {engine} -p {profile}")
        case PullImage(pin):
            _take_image(session, found, pin.name, pin.reference, f"orch images pull {engine}")
        case EnsureEnvironment(spec):
            raise PlanRefused(
                f"{spec.name} is installed for this machine alone and cannot be saved.",
                hint=f"Its image can: --target docker; or use another engine than {engine}.",
            )
        case _:
            pass


def _take_entry(session: Session, found: _Found, key: str, command: str) -> None:
    manifest = session.store.get(key)
    if manifest is None:
        raise PlanRefused(f"{key} is not in the store yet.", hint=f"First: {command}")
    found.entries[key], found.sources[key] = manifest, session.store.path(key)


def _take_image(session: Session, found: _Found, name: str, reference: str, command: str) -> None:
    from orchestrator.core.image_archive import SavedImage

    details = session.images.details(reference)
    if details is None:
        raise PlanRefused(f"The image {name} is not here yet.", hint=f"First: {command}")
    facts = details.facts
    found.images[reference] = SavedImage(
        name=name, reference=reference, id=facts.id, layers=details.layers, requires=facts.requires, size=facts.size
    )


def _take_gateway(session: Session, found: _Found) -> None:
    """Its image, and the base if it is here: where orch is not exactly the same, the image is made again."""
    reference, base = session.gateway_image()
    _take_image(session, found, reference, reference, "orch images pull")
    if isinstance(base, str):
        _take_image(session, found, session.settings.gateway_base or base, base, "orch images pull")
    elif session.images.details(base.reference) is not None:
        _take_image(session, found, base.name, base.reference, "orch images pull")


def _take_directory(session: Session, found: _Found) -> None:
    """The weights that the profile names by a directory: elsewhere they are an entry of the store."""
    from datetime import UTC, datetime

    from orchestrator.core.artifact import Manifest, Recipe
    from orchestrator.core.weights import WANTED
    from orchestrator.drivers.docker.archive import hashed

    facts = session.catalog.of_directory(found.profile.weights, session.progress)
    root = Path(facts.path)
    manifest = session.store.get(facts.key)
    if manifest is None:
        names = [path.name for path in root.iterdir() if WANTED.fullmatch(path.name) and path.is_file()]
        created = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = Manifest(
            key=facts.key,
            recipe=Recipe.WEIGHTS,
            source=facts.source,
            builder={},
            files=hashed(root, names, session.progress),
            created=created,
        )
    found.weights = facts.key
    found.entries[facts.key], found.sources[facts.key] = manifest, root


def _lock(session: Session, found: _Found) -> ArchiveLock:
    from datetime import UTC, datetime

    from orchestrator import __version__
    from orchestrator.core.image_archive import ArchiveLock, SavedAdapter

    return ArchiveLock(
        orch=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        profile=found.profile,
        engines=tuple(found.engines),
        weights=found.weights,
        adapters=tuple(SavedAdapter(name=adapter.name, key=adapter.key) for adapter in found.adapters),
        gateway_base=session.settings.gateway_base or "",
        images=tuple(found.images.values()),
        entries=tuple(found.entries.values()),
    )


def _write_profile(session: Session, file: Path, lock: ArchiveLock) -> Path:
    """The profile beside the file; what lay in directories of another machine lies in the store here."""
    from orchestrator.core.profile import AdapterEntry
    from orchestrator.core.toml_text import toml_text
    from orchestrator.drivers.files import write_atomic

    profile = lock.profile
    if lock.weights:
        weights = profile.weights.model_copy(update={"path": str(session.store.path(lock.weights))})
        profile = profile.model_copy(update={"weights": weights})
    adapters = tuple(AdapterEntry(name=a.name, path=str(session.store.path(a.key))) for a in lock.adapters)
    profile = profile.model_copy(update={"adapters": adapters})
    text = f"# Made by orch images load from {file.name}.\n{toml_text(profile.model_dump(mode='json'))}"
    path = file.with_suffix(".profile.toml")
    write_atomic(path, text.encode())
    return path


def _tell_engine(session: Session, saved: SavedEngine, profile: Path) -> None:
    """Pin its image where another one would be taken, and tell the command that uses it."""
    from orchestrator.engines.resolve import computes_on, engine_sheet

    here = computes_on(engine_sheet(saved.engine), saved.target, session.host)
    if here is not saved.accelerator:
        text = f"{saved.engine} was saved for {saved.accelerator.value}; this machine computes on {here.value}."
        session.screen.result({"differs": saved.engine, "saved": saved.accelerator.value, "here": here.value}, text)
    if saved.image is not None:
        fit = (pin for pin in session.pins[saved.engine].docker if saved.accelerator in pin.accelerators)
        first = next(fit, None)
        if first is None or first.reference != saved.image.reference:
            put_pin(session, saved.engine, saved.image)
            text = f"{saved.image.name} is pinned for {saved.engine} now, as where it was saved."
            session.screen.result({"pinned": saved.image.reference, "engine": saved.engine}, text)
    command = f"orch up {saved.engine} -p {shlex.quote(str(profile))} --target {saved.target}"
    session.screen.result({"next": command}, f"Serve it: {command}")

"""Steps that only have something here: entries of the store, environments, images."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path
from typing import Protocol

from orchestrator.core.artifact import FileEntry, Recipe
from orchestrator.core.builders import UnknownToBuilder
from orchestrator.core.pins import Accelerator
from orchestrator.core.prerequisites import (
    BuildArtifact,
    BuildImage,
    BuildTogether,
    EnsureEnvironment,
    FetchArtifact,
    FetchWeights,
    ImportAdapter,
    Prerequisite,
    PullImage,
)
from orchestrator.core.progress import Progress
from orchestrator.core.steps import ReadAhead
from orchestrator.core.weights import HubSnapshot
from orchestrator.drivers.base import World
from orchestrator.engines.driver_support import driver_cannot
from orchestrator.errors import HostError, SourceError
from orchestrator.perform.dispatch import perform

HUB_TIMEOUT_S = 30.0


class Expect(Protocol):
    """Is told before the first byte how many come (`about`: an estimate); HostError where there is no room for them."""

    def __call__(self, size: int, about: bool = False) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where an entry's files are made. `only` names the files that are wanted (none: all), where a source has them one
    by one; others are made whole."""

    work: Path
    expect: Expect
    only: Collection[str] = field(default_factory=frozenset)


@singledispatch
def entry_files(step: Prerequisite, place: Place, world: World, progress: Progress) -> tuple[FileEntry, ...] | None:
    """Make the files of a store entry; what is known of them, None where they have to be read for that.

    SourceError where they are not what they should be, HostError where hub or machine fail.
    """
    raise TypeError(f"{type(step).__name__} ends in no entry of the store")


@perform.register(FetchWeights)
@perform.register(FetchArtifact)
@perform.register(BuildArtifact)
@perform.register(ImportAdapter)
def make_entry(
    step: FetchWeights | FetchArtifact | BuildArtifact | ImportAdapter, world: World, progress: Progress
) -> None:
    """An entry is finished in one rename, and made by one process at a time. What came of a download is gone on with;
    all else begins anew."""
    with world.store.building(step.key, progress, fresh=step.download is None) as building:
        if building.manifest is not None:
            return
        try:
            files = entry_files(step, Place(building.work, building.expect), world, progress)
        except SourceError as error:
            if isinstance(step, FetchArtifact) or isinstance(error, UnknownToBuilder):
                # However often it comes, it is not what it should be, or nothing that can be built from.
                building.discard()
            raise
        building.finish(step.recipe, step.source, made_by(step, world), files, progress)


@perform.register
def make_together(step: BuildTogether, world: World, progress: Progress) -> None:
    """Several artifacts in one read of their weights."""
    with ExitStack() as stack:
        # In the order of their keys: two processes that build the same ones would else wait for each other.
        turns = {
            build: stack.enter_context(world.store.building(build.key, progress, fresh=True))
            for build in sorted(step.builds, key=lambda build: build.key)
        }
        left = {build: turn for build, turn in turns.items() if turn.manifest is None}
        source = Path(step.builds[0].source_path)
        with world.store.reading(source, progress):
            for build, turn in left.items():
                turn.expect(world.builder.expected_bytes(build.recipe, source), about=True)
            try:
                works = {build.recipe: turn.work for build, turn in left.items()}
                if left:
                    world.builder.build_together(works, source, progress, step.builds[0].template)
            except UnknownToBuilder:
                for turn in left.values():
                    turn.discard()
                raise
        for build, turn in left.items():
            turn.finish(build.recipe, build.source, made_by(build, world), None, progress)


@perform.register
def ensure_environment(step: EnsureEnvironment, world: World, progress: Progress) -> None:
    """Installed and checked."""
    world.environments.ensure(step.spec, progress)


@perform.register
def pull_image(step: PullImage, world: World, progress: Progress) -> None:
    """By its digest; its own word on which driver it needs is known only now."""
    image = step.image
    facts = world.images.pull(image, progress)
    if Accelerator.CUDA in image.accelerators and (reason := driver_cannot(image, facts, world.read_host())):
        hint = "An image that is built with an older CUDA: orch images ls; or a newer NVIDIA driver."
        raise HostError(f"{image.name} cannot run here: {reason}.", hint=hint)


@perform.register
def build_image(step: BuildImage, world: World, progress: Progress) -> None:
    """The gateway's."""
    world.images.build(step.reference, step.base, progress)


def made_by(step: Prerequisite, world: World) -> dict[str, str]:
    """What an entry's manifest says of who made it: versions, or the repository that it came ready-made from."""
    match step:
        case BuildArtifact(recipe, calibration=calibration):
            versions = world.builder.versions(recipe, step.by)
            return versions | ({"environment": calibration.environment.name} if calibration is not None else {})
        case FetchArtifact(hub=hub) if hub is not None:
            return {"repo": str(hub)}
        case _:
            return {}


@entry_files.register
def _weights(step: FetchWeights, place: Place, world: World, progress: Progress) -> tuple[FileEntry, ...]:
    return _fetch(step, place, world, progress)


@entry_files.register
def _ready_made(step: FetchArtifact, place: Place, world: World, progress: Progress) -> tuple[FileEntry, ...]:
    builder = world.builder
    if step.hub is None:
        copied = builder.copy_in(Path(step.path), place.work, place.expect, progress)
        return builder.settle(step.recipe, place.work, copied)
    if step.file:
        # Its name in the store is another one than at the hub.
        place = Place(place.work, place.expect)
    files = _fetch(step, place, world, progress)
    return files if place.only else builder.settle(step.recipe, place.work, files)


@entry_files.register
def _built(step: BuildArtifact, place: Place, world: World, progress: Progress) -> None:
    base = Path(step.base_path) if step.base_path is not None else None
    source = Path(step.source_path)
    with world.store.reading(base or source, progress):
        place.expect(world.builder.expected_bytes(step.recipe, source), about=True)
        world.builder.build(step.recipe, source, place.work, progress, base, step.calibration, step.template, step.by)


@entry_files.register
def _imported(step: ImportAdapter, place: Place, world: World, progress: Progress) -> None:
    origin = Path(step.source_path)
    place.expect(world.builder.expected_bytes(Recipe.ADAPTER, origin))
    world.builder.build(Recipe.ADAPTER, origin, place.work, progress, Path(step.base_path) if step.base_path else None)


def _fetch(step: FetchWeights | FetchArtifact, place: Place, world: World, progress: Progress) -> tuple[FileEntry, ...]:
    download = step.download
    if download is None or download.hub is None:
        raise TypeError(f"{step.what} asks no hub")
    snapshot = world.hub.snapshot(download.hub, HUB_TIMEOUT_S, list(download.files) or None, progress)
    if place.only:
        wanted = tuple(file for file in snapshot.files if file.path in place.only)
        snapshot = HubSnapshot(snapshot.source, wanted)
    place.expect(snapshot.size)
    return world.hub.fetch(snapshot, place.work, progress)


def room_for_all(size: int, about: bool = False) -> None:
    """The Expect of files that take the place of others: they are no larger than those were."""


@perform.register
def read_ahead(step: ReadAhead, world: World, progress: Progress) -> None:
    # What more is read pushes out what was read first.
    world.store.read_ahead(Path(step.path), world.read_host().memory.available, progress)

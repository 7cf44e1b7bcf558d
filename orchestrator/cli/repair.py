"""What `orch artifacts verify --repair` does: of each damaged entry what is broken is pulled or built again.

How an entry is made is known from its manifest; where that is lost, from a recorded profile, a lock file, or another
entry with the same source: its key is a hash, and does not tell.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import HostError, Interrupted, OrchError, SourceError

if TYPE_CHECKING:
    from orchestrator.artifacts.shelf import Damage
    from orchestrator.cli.session import Session
    from orchestrator.core.artifact import FileEntry, Manifest, Recipe
    from orchestrator.core.resolved import Supply
    from orchestrator.core.weights import HubSource


# Keys begin with their recipe.
SOURCES = ("weights-", "adapter-")


def repair(session: Session, damages: list[Damage]) -> tuple[list[dict[str, str]], list[Damage]]:
    """Repairs what can be. What was done (key, path, how), and what is left, each with the reason."""
    workshop = Workshop(session)
    done: list[dict[str, str]] = []
    left: list[Damage] = []
    by_key = {key: list(group) for key, group in groupby(damages, key=lambda damage: damage.key)}
    # What others are built from comes first: it is read for them.
    for key, found in sorted(by_key.items(), key=lambda one: not one[0].startswith(SOURCES)):
        try:
            done += [{"key": key, "path": path, "how": how} for path, how in workshop.repair(key, found).items()]
        except Interrupted:
            raise
        except OrchError as error:
            why = f"not repaired: {error.message} {error.hint}".strip()
            left += [dataclasses.replace(damage, reason=f"{damage.reason}; {why}") for damage in found]
    return done, left


class Workshop:
    """Knows how entries are made, and makes them again."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._store = session.store

    def repair(self, key: str, damages: list[Damage]) -> dict[str, str]:
        """How each file was put right, by path. Raises what stands in the way; then the entry is no worse."""
        from orchestrator.artifacts.mend import drop_extra
        from orchestrator.core.artifact import Manifest

        manifest = self._store.own.manifest(key)
        if manifest is None:
            raise HostError(f"It lies in the shared store {self._store.shelf(key).root}.", hint="Repair it there.")
        if not isinstance(manifest, Manifest):
            return self._make_whole(key)
        extra = [damage.path for damage in damages if damage.kind == "extra"]
        broken = {damage.path for damage in damages} - {*extra}
        done = dict.fromkeys(extra, "removed")
        if broken:
            done |= dict.fromkeys(broken, self._mend(manifest, broken))
        drop_extra(self._store, key, extra)
        return done

    def _mend(self, manifest: Manifest, broken: set[str]) -> str:
        """The broken files again, with the hashes that the manifest has; in words, how."""
        from orchestrator.artifacts.mend import mending, put_in_place
        from orchestrator.core.steps import FetchArtifact, FetchWeights

        step = self._way(manifest.key)
        pulled = isinstance(step, FetchWeights) or (isinstance(step, FetchArtifact) and step.hub is not None)
        # What has been pulled before is gone on with; a build begins anew.
        with mending(self._store, manifest.key, self._session.progress, fresh=not pulled) as work:
            files = [file for file in self._again(step, broken, work) if file.path in broken]
            if len(files) < len(broken):
                raise SourceError("Made again, it has fewer files than its manifest says.")
            put_in_place(self._store, manifest, work, files)
        return "pulled again" if pulled else "built again"

    def _again(self, step: Supply, broken: set[str], work: Path) -> tuple[FileEntry, ...]:
        """A step's files, in `work`; of a hub's repository the broken ones alone."""
        from orchestrator.core.artifact import Recipe
        from orchestrator.core.steps import BuildArtifact, FetchArtifact, FetchWeights, ImportAdapter

        builder = self._session.builder
        match step:
            case FetchWeights(source) | FetchArtifact(hub=source, file="") if source is not None:
                return self._fetch(source, None, broken, work)
            case FetchArtifact(recipe, hub=source, file=file) if source is not None:
                return builder.settle(recipe, work, self._fetch(source, file, {file}, work))
            case FetchArtifact(recipe, path=path):
                # What is put right is no larger than it was: nobody has to be asked for room.
                copied = builder.copy_in(Path(path), work, lambda size: None, self._session.progress)
                return builder.settle(recipe, work, copied)
            case ImportAdapter(source_path=origin):
                return self._build(Recipe.ADAPTER, origin, None, work)
            case BuildArtifact(recipe, source_path=origin, base_path=base):
                return self._build(recipe, origin, base, work)
            case _:
                raise AssertionError(step)

    def _build(self, recipe: Recipe, origin: str, base: str | None, work: Path) -> tuple[FileEntry, ...]:
        from orchestrator.artifacts.shelf import hash_all

        self._check_sound(origin, base)
        progress = self._session.progress
        self._session.builder.build(recipe, Path(origin), work, progress, Path(base) if base is not None else None)
        return hash_all(work, progress)

    def _check_sound(self, *places: str | None) -> None:
        """What an entry is made of is here, and where it is of the store as its manifest says, to the last byte."""
        for place in filter(None, places):
            if not Path(place).is_dir():
                raise SourceError(f"{place}, which it is made of, is not here.", hint="orch pull brings weights back.")
            key = Path(place).name
            if Path(place) == self._store.path(key) and self._store.verify(key, self._session.progress):
                raise SourceError(f"{key}, which it is made of, is damaged.", hint="It has to be repaired first.")

    def _fetch(self, source: HubSource, file: str | None, broken: set[str], work: Path) -> tuple[FileEntry, ...]:
        hub = self._session.world.hub
        snapshot = hub.snapshot(source, 30.0, [file] if file is not None else None)
        wanted = tuple(one for one in snapshot.files if one.path in broken)
        return hub.fetch(dataclasses.replace(snapshot, files=wanted), work, self._session.progress)

    def _make_whole(self, key: str) -> dict[str, str]:
        """An entry without a manifest is made like one that never was, of what is sound of it as far as a hub tells."""
        from orchestrator.artifacts.mend import keep_for_rebuild
        from orchestrator.artifacts.shelf import MANIFEST
        from orchestrator.core.steps import Action, BuildArtifact, FetchWeights, Plan

        step = self._way(key)
        if isinstance(step, FetchWeights):
            keep_for_rebuild(self._store, key, self._session.progress)
        if isinstance(step, BuildArtifact):
            self._check_sound(step.source_path, step.base_path)
        self._session.run(Plan("artifacts verify", (Action(step),), commit=1))
        self._compare_with_locks(key)
        return {MANIFEST: "checked against the hub" if isinstance(step, FetchWeights) else "made anew"}

    def _compare_with_locks(self, key: str) -> None:
        from orchestrator.cli.lock import read_lock
        from orchestrator.core.lock_file import stated

        manifest = self._store.get(key)
        here = stated(manifest.files) if manifest is not None else {}
        for path in self._session.lock_files.known():
            entry = read_lock(self._session, path).entries.get(key)
            if entry is not None and entry.files and entry.files != here:
                raise SourceError(
                    f"Made anew, it has other bytes than {path} says.", hint="orch lock check tells more."
                )

    def _way(self, key: str) -> Supply:
        step = self._ways.get(key)
        if step is None:
            raise SourceError(
                "Nobody here knows how it was made: no manifest, no recorded profile, no lock file tells.",
                hint=f"orch artifacts rm {key}; what needs it makes it anew, or orch images load brings it again.",
            )
        return step

    @cached_property
    def _ways(self) -> dict[str, Supply]:
        """How entries are made, by key: by what the store itself tells, and rather by what is recorded or locked."""
        from orchestrator.core.artifact import Manifest, Recipe, artifact_key
        from orchestrator.core.resolved import way_of

        told = [self._store.own.manifest(key) for key in self._store.own.names()]
        manifests = [one for one in (*self._store.all(), *told) if isinstance(one, Manifest)]
        sources = {one.source for one in manifests}
        known = {artifact_key(recipe, source): (recipe, source, False) for source in sources for recipe in Recipe}
        known |= {one.key: (one.recipe, one.source, "repo" in one.builder) for one in manifests}
        for path in self._session.lock_files.known():
            from orchestrator.cli.lock import read_lock

            entries = read_lock(self._session, path).entries
            known |= {key: (one.recipe, one.source, "repo" in one.builder) for key, one in entries.items()}
        found: dict[str, Supply] = {}
        for key, (recipe, source, ready) in known.items():
            weights = self._store.path(artifact_key(Recipe.WEIGHTS, source))
            step = way_of(key, recipe, source, str(weights), ready)
            if step is not None:
                found[key] = step
        return found | self._recorded()

    def _recorded(self) -> dict[str, Supply]:
        """What the recorded profiles may be served with; one whose weights are gone tells nothing."""
        from orchestrator.cli.wishes import supply_of_wish
        from orchestrator.core.steps import BuildArtifact, FetchArtifact, FetchWeights, ImportAdapter

        observed = self._session.observe()
        found: dict[str, Supply] = {}
        for desired in observed.desired.values():
            for wish in filter(None, (desired.previous, desired.wish)):
                try:
                    supply, _ = supply_of_wish(self._session, desired.model_copy(update={"wish": wish}), observed)
                except Interrupted:
                    raise
                except OrchError:
                    continue
                for step in supply:
                    if isinstance(step, BuildArtifact | FetchArtifact | FetchWeights | ImportAdapter):
                        found[step.key] = step
        return found

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

from orchestrator.app.lock import read_lock
from orchestrator.app.resolution import needed_for_desired
from orchestrator.app.runs import Watcher, run_plan
from orchestrator.artifacts.repair_files import drop_extra, keep_for_rebuild, put_in_place, repairing
from orchestrator.artifacts.store_directory import MANIFEST, Damage, hash_all
from orchestrator.core.artifact import FileEntry, Manifest, Recipe, artifact_key
from orchestrator.core.builders import by_llama_cpp, weights_of
from orchestrator.core.lock_file import stated
from orchestrator.core.plan import Action, Plan
from orchestrator.core.prerequisites import Prerequisite, way_of
from orchestrator.errors import HostError, Interrupted, OrchError, SourceError
from orchestrator.perform.prepare import Place, entry_files, room_for_all
from orchestrator.planning.prerequisites import entries

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

# Keys begin with their recipe.
SOURCES = ("weights-", "adapter-")


def repair(orch: Orchestrator, damages: list[Damage], watcher: Watcher) -> tuple[list[dict[str, str]], list[Damage]]:
    """Repairs what can be. What was done (key, path, how), and what is left, each with the reason."""
    repairer = Repairer(orch, watcher)
    done: list[dict[str, str]] = []
    left: list[Damage] = []
    by_key = {key: list(group) for key, group in groupby(damages, key=lambda damage: damage.key)}
    # What others are built from comes first: it is read for them.
    for key, found in sorted(by_key.items(), key=lambda one: not one[0].startswith(SOURCES)):
        try:
            done += [{"key": key, "path": path, "how": how} for path, how in repairer.repair(key, found).items()]
        except Interrupted:
            raise
        except OrchError as error:
            why = f"not repaired: {error.message} {error.hint}".strip()
            left += [dataclasses.replace(damage, reason=f"{damage.reason}; {why}") for damage in found]
    return done, left


class Repairer:
    """Knows how entries are made, and makes them again."""

    def __init__(self, orch: Orchestrator, watcher: Watcher) -> None:
        self._orch = orch
        self._watcher = watcher
        self._store = orch.store

    def repair(self, key: str, damages: list[Damage]) -> dict[str, str]:
        """How each file was put right, by path. Raises what stands in the way; then the entry is no worse."""
        manifest = self._store.own.manifest(key)
        if manifest is None:
            raise HostError(f"It is in the shared store {self._store.directory_of(key).root}.", hint="Repair it there.")
        if not isinstance(manifest, Manifest):
            return self._make_whole(key)
        extra = [damage.path for damage in damages if damage.kind == "extra"]
        broken = {damage.path for damage in damages} - {*extra}
        done = dict.fromkeys(extra, "removed")
        if broken:
            done |= dict.fromkeys(broken, self._repair_files(manifest, broken))
        drop_extra(self._store, key, extra)
        return done

    def _repair_files(self, manifest: Manifest, broken: set[str]) -> str:
        """The broken files again, with the hashes that the manifest has; in words, how."""
        step = self._way(manifest.key)
        pulled = step.download is not None
        # What has been pulled before is gone on with; a build begins anew.
        with repairing(self._store, manifest.key, self._orch.progress, fresh=not pulled) as work:
            files = [file for file in self._again(step, broken, work) if file.path in broken]
            if len(files) < len(broken):
                raise SourceError("Built again, it has fewer files than its manifest says.")
            put_in_place(self._store, manifest, work, files)
        return "pulled again" if pulled else "built again"

    def _again(self, step: Prerequisite, broken: set[str], work: Path) -> tuple[FileEntry, ...]:
        """A step's files, in `work`; of a hub's repository the broken ones alone."""
        if step.is_built or step.recipe is Recipe.ADAPTER:
            self._check_sound(step)
        place = Place(work, room_for_all, frozenset(broken))
        files = entry_files(step, place, self._orch, self._orch.progress)
        return files if files is not None else hash_all(work, self._orch.progress)

    def _check_sound(self, step: Prerequisite) -> None:
        """What an entry is made of is here, and where it is of the store as its manifest says, to the last byte."""
        for place in map(Path, step.reads):
            if not place.is_dir():
                raise SourceError(f"{place}, which it is made from, is not here.", hint="orch pull restores weights.")
            key = place.name
            if place == self._store.path(key) and self._store.verify(key, self._orch.progress):
                raise SourceError(f"{key}, which it is made from, is damaged.", hint="It has to be repaired first.")

    def _make_whole(self, key: str) -> dict[str, str]:
        """An entry without a manifest is made like one that never was, of what is sound of it as far as a hub tells."""
        step = self._way(key)
        from_hub = step.recipe is Recipe.WEIGHTS
        if from_hub:
            keep_for_rebuild(self._store, key, self._orch.progress)
        if step.is_built:
            self._check_sound(step)
        run_plan(self._orch, Plan("artifacts verify", (Action(step),), commit=1), self._watcher)
        self._compare_with_locks(key)
        return {MANIFEST: "checked against the hub" if from_hub else "made again"}

    def _compare_with_locks(self, key: str) -> None:
        manifest = self._store.get(key)
        here = stated(manifest.files) if manifest is not None else {}
        for path in self._orch.lock_files.known():
            entry = read_lock(self._orch, path).entries.get(key)
            if entry is not None and entry.files and entry.files != here:
                raise SourceError(
                    f"Built again, its bytes differ from what {path} says.", hint="orch lock check shows more."
                )

    def _way(self, key: str) -> Prerequisite:
        step = self._ways.get(key)
        if step is None:
            raise SourceError(
                "How it was made is not known: no manifest, recorded profile or lock file says.",
                hint=f"orch artifacts rm {key}; what needs it makes it again, or orch images load brings it back.",
            )
        return step

    @cached_property
    def _ways(self) -> dict[str, Prerequisite]:
        """How entries are made, by key: by what the store itself tells, and rather by what is recorded or locked."""
        own = [self._store.own.manifest(key) for key in self._store.own.names()]
        manifests = [one for one in (*self._store.all(), *own) if isinstance(one, Manifest)]
        sources = {made for one in manifests for made in (one.source, by_llama_cpp(weights_of(one.source)))}
        known = {artifact_key(recipe, source): (recipe, source, False) for source in sources for recipe in Recipe}
        known |= {one.key: (one.recipe, one.source, "repo" in one.builder) for one in manifests}
        for path in self._orch.lock_files.known():
            locked = read_lock(self._orch, path).entries
            known |= {key: (one.recipe, one.source, "repo" in one.builder) for key, one in locked.items()}
        found: dict[str, Prerequisite] = {}
        for key, (recipe, source, ready) in known.items():
            place = self._store.path(self._made_from(recipe, weights_of(source)))
            step = way_of(key, recipe, source, str(place), ready)
            if step is not None:
                found[key] = step
        return found | self._recorded()

    def _made_from(self, recipe: Recipe, source: str) -> str:
        """The key of the weights, or where only a ready-made checkpoint with the same ones is here, of that."""
        weights = artifact_key(Recipe.WEIGHTS, source)
        packed = (artifact_key(one, source, brought=True) for one in (Recipe.NVFP4A16, Recipe.NVFP4))
        keys = (weights, *packed) if recipe is Recipe.GGUF_NVFP4 else (weights,)
        return next((key for key in keys if self._store.get(key) is not None), weights)

    def _recorded(self) -> dict[str, Prerequisite]:
        """What the recorded profiles may be served with; one whose weights are gone tells nothing."""
        observed = self._orch.observe()
        found: dict[str, Prerequisite] = {}
        for desired in observed.desired.values():
            for one in (*((desired.gone_back(),) if desired.before is not None else ()), desired):
                try:
                    wanted, _ = needed_for_desired(self._orch, one, observed)
                except Interrupted:
                    raise
                except OrchError:
                    continue
                found |= {step.key: step for step in entries(wanted)}
        return found

"""`orch.lock`: which weights, artifacts and engines a profile had where it was written, so that it can be had again.

Pure. A TOML text without times or places, sorted, a line per file: it changes only where something has changed. The
profile's own digest leaves out what differs between machines, which is where its weights and adapters lie.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from orchestrator.core.artifact import FileEntry, Recipe
from orchestrator.core.part import Must, Part, Unfit
from orchestrator.core.pins import Accelerator, EnginePin
from orchestrator.core.profile import EngineTables, PartT, Profile, ReadyMade
from orchestrator.core.toml_text import toml_text
from orchestrator.core.weights import HubFile, HubSource, hub_source
from orchestrator.errors import SourceError

FORMAT = 1
DEFAULT_FILE = "orch.lock"

# What is known of a file: SHA-256, or the git blob id that a hub states of a small one, and its size in bytes.
Stated = Annotated[str, Must(pattern=r"^(sha256:[0-9a-f]{64}|git:[0-9a-f]{40}) \d+$")]


class LockedProfile(Part):
    """Its name, and a SHA-256 over all that it says itself."""

    name: str
    digest: str


class LockedEntry(Part):
    """A store entry: what is made of what, by which versions, and its files (none: it was not made there yet)."""

    recipe: Recipe
    source: str
    builder: dict[str, str] = field(default_factory=dict)
    files: dict[str, Stated] = field(default_factory=dict)


class LockedEngine(Part):
    """The first pinned image (IMAGE@DIGEST) and the environment of an engine, by accelerator."""

    images: dict[Accelerator, str] = field(default_factory=dict)
    environments: dict[Accelerator, str] = field(default_factory=dict)


class Lock(Part):
    """The whole file; `weights` is the key of the weights, `entries` has them and all that is made of them."""

    format: int
    orch: str
    weights: str
    profile: LockedProfile
    engines: dict[str, LockedEngine] = field(default_factory=dict)
    entries: dict[str, LockedEntry]

    @property
    def source(self) -> str:
        """Where the weights come from: `hub:REPO@COMMIT`, or `dir:SHA256`."""
        return self.entries[self.weights].source


Kind = Literal["profile", "source", "key", "versions", "files", "missing", "unneeded", "unknown", "engine"]
# Other versions may well make the same bytes, weights are needed only until all is made of them, and what a lock does
# not know cannot differ from it.
NOTES: tuple[Kind, ...] = ("versions", "unneeded", "unknown")


@dataclass(frozen=True)
class Difference:
    """One thing that is not as locked; `what` names it, empty words mean that a side does not have it."""

    kind: Kind
    what: str
    locked: str
    here: str


def lock_text(lock: Lock) -> str:
    """The file's text."""
    tables = lock.model_dump(exclude_defaults=True)
    ordered = {name: _sorted(item) if isinstance(item, dict) else item for name, item in tables.items()}
    return f"# Made by orch lock. Keep it beside the profile.\n{toml_text(ordered)}"


def parse_lock(text: str, where: str) -> Lock:
    """A lock from its text; SourceError when it is none, or another version's."""
    hint = f"Write it again: orch lock -o {where}; or delete it."
    try:
        document = tomllib.loads(text)
        if document.get("format") != FORMAT:
            raise SourceError(f"{where} has format {document.get('format')}; this orch knows {FORMAT}.", hint)
        lock = Lock.model_validate(document)
    except tomllib.TOMLDecodeError as error:
        raise SourceError(f"{where} is not a lock file.", hint, str(error)) from error
    except Unfit as error:
        problems = (f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.problems)
        raise SourceError(f"{where} is not a lock file.", hint, "\n".join(problems)) from error
    if lock.weights not in lock.entries:
        raise SourceError(f"{where} does not say what {lock.weights} is.", hint)
    return lock


def profile_digest(profile: Profile, engines: EngineTables) -> str:
    """Over all that a profile says itself; `engines` are its settings of them without those that go without saying. Its
    description does not count, nor where weights, adapters and ready-made artifacts come from: what these are is known
    by their keys."""
    elsewhere = {"description", "weights", "adapters", "artifacts", "published", "prefer", "calibration"}
    own = profile.model_copy({"engines": engines}).model_dump(exclude=elsewhere, exclude_defaults=True)
    own["adapters"] = [entry.name for entry in profile.adapters]
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def pinned_by(lock: Lock, profile: Profile) -> Profile:
    """The profile at the commits that are locked, where it names the same repositories at branches."""
    weights = _at_commit(profile.weights, profile.weights.hub, [lock.source])

    def pinned(known: dict[Recipe, ReadyMade]) -> dict[Recipe, ReadyMade]:
        return {
            recipe: _at_commit(ready, ready.hub, [one.source for one in lock.entries.values() if one.recipe is recipe])
            for recipe, ready in known.items()
        }

    ready_made = {"artifacts": pinned(profile.artifacts), "published": pinned(profile.published)}
    return profile.model_copy(update={"weights": weights, **ready_made})


def _at_commit(named: PartT, source: HubSource | None, locked: list[str]) -> PartT:
    """Where it is at a branch, at the commit of its repository in one of these sources."""
    found = [hub[0] for text in locked if (hub := hub_source(text)) is not None]
    commits = [one.revision for one in found if source is not None and one.repo == source.repo]
    if source is None or source.pinned or not commits:
        return named
    return named.model_copy(update={"revision": commits[0]})


def stated(files: tuple[FileEntry, ...] | tuple[HubFile, ...]) -> dict[str, str]:
    """What a manifest or a hub says of files, by path."""
    return {file.path: f"{_digest(file)} {file.size}" for file in files}


def locked_engine(pin: EnginePin) -> LockedEngine:
    """What an engine's pin gives on each accelerator."""
    images = {
        accelerator: next((image.reference for image in pin.docker if accelerator in image.accelerators), "")
        for accelerator in Accelerator
    }
    environments = {local.accelerator: pin.environment(local.accelerator) for local in pin.local}
    return LockedEngine(
        images={accelerator: reference for accelerator, reference in images.items() if reference},
        environments={accelerator: spec.name for accelerator, spec in environments.items() if spec is not None},
    )


def differences(locked: Lock, here: Lock) -> tuple[Difference, ...]:
    """All that is not as locked. Of other weights nothing more is told."""
    found: list[Difference] = []
    if locked.profile != here.profile:
        found.append(Difference("profile", locked.profile.name, locked.profile.digest, here.profile.digest))
    if locked.source != here.source:
        return (*found, Difference("source", "weights", locked.source, here.source))
    for key in sorted({*locked.entries, *here.entries}):
        found += _of_entry(
            key, locked.entries.get(key), here.entries.get(key), key == locked.weights and _all_made(here)
        )
    for name in sorted({*locked.engines, *here.engines}):
        found += _of_engine(name, locked.engines.get(name, LockedEngine()), here.engines.get(name, LockedEngine()))
    return tuple(found)


def _all_made(lock: Lock) -> bool:
    made = [entry for key, entry in lock.entries.items() if key != lock.weights]
    return bool(made) and all(entry.files for entry in made)


def _of_entry(key: str, locked: LockedEntry | None, here: LockedEntry | None, unneeded: bool) -> Iterator[Difference]:
    if locked is None or here is None:
        yield Difference("key", key, locked.source if locked else "", here.source if here else "")
        return
    if locked.builder != here.builder:
        yield Difference("versions", key, _listed(locked.builder), _listed(here.builder))
    if locked.source.startswith("dir:") and locked.recipe is Recipe.WEIGHTS:
        return  # its source is a hash over all of its files
    if not locked.files:
        yield Difference("unknown", key, "", "")
    elif not here.files:
        yield Difference("unneeded" if unneeded else "missing", key, f"{len(locked.files)} files", "")
    else:
        for path in sorted({*locked.files, *here.files}):
            one, other = locked.files.get(path, ""), here.files.get(path, "")
            if not _same(one, other):
                yield Difference("files", f"{key}/{path}", one, other)


def _of_engine(name: str, locked: LockedEngine, here: LockedEngine) -> Iterator[Difference]:
    for what, one, other in (
        ("image", locked.images, here.images),
        ("environment", locked.environments, here.environments),
    ):
        for accelerator in sorted({*one, *other}):
            if one.get(accelerator) != other.get(accelerator):
                title = f"{what} of {name} ({accelerator.value})"
                yield Difference("engine", title, one.get(accelerator, ""), other.get(accelerator, ""))


def _same(one: str, other: str) -> bool:
    """A blob id and a SHA-256 cannot be compared; the commit that both belong to stands for the bytes."""
    alike = one[:4] == other[:4]
    return one == other if alike or not one or not other else one.split()[1] == other.split()[1]


def _digest(file: FileEntry | HubFile) -> str:
    blob = file.blob_id if isinstance(file, HubFile) else None
    return f"sha256:{file.sha256}" if file.sha256 is not None else f"git:{blob}"


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def _sorted(table: dict[str, Any]) -> dict[str, Any]:
    return {key: _sorted(item) if isinstance(item, dict) else item for key, item in sorted(table.items())}

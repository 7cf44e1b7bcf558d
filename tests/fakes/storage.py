"""Store, hub, builder, environments, images and records in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from fakes.faults import Faults
from orchestrator.core.artifact import FileEntry, Manifest, Recipe
from orchestrator.core.builders import BuiltBy
from orchestrator.core.calibration import Calibration
from orchestrator.core.deployment import Desired, to_record
from orchestrator.core.environment import EnvironmentObserved, EnvironmentSpec
from orchestrator.core.images import ImageFacts
from orchestrator.core.keys import KeyRing
from orchestrator.core.pins import ImagePin
from orchestrator.core.progress import Progress, silent
from orchestrator.core.weights import HubFile, HubSnapshot, HubSource
from orchestrator.engines.settings import read_settings
from orchestrator.errors import HostError

STORE = Path("/store")
COMMIT = "c" * 40
SIZE = 1000


def store_path(key: str) -> Path:
    """Where the fake store has an entry."""
    return STORE / key


# The file that engines are given of what a recipe makes; of other recipes it is the directory.
FILE_OF = {
    Recipe.GGUF_Q6_K: "model.gguf",
    Recipe.GGUF_BF16: "model.gguf",
    Recipe.LORA_GGUF: "adapter.gguf",
}


def made(
    key: str,
    recipe: Recipe,
    source: str,
    builder: dict[str, str],
    files: tuple[FileEntry, ...] | None = None,
    size: int = SIZE,
) -> Manifest:
    """The manifest of a finished entry: one file of its own bytes, unless others are given."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    if files is None:
        files = (FileEntry(path=FILE_OF.get(recipe, "made"), size=size, sha256=digest),)
    return Manifest(
        key=key, recipe=recipe, source=source, builder=builder, files=files, created="2026-01-01T00:00:00+00:00"
    )


class FakeBuilding:
    """See drivers.base.Building; nothing is written in `work`."""

    def __init__(self, store: FakeStore, key: str) -> None:
        self.key = key
        self.work = STORE / ".partial" / key
        self.manifest = store.get(key)
        self._store = store

    def expect(self, size: int, about: bool = False) -> None:
        """There is room for everything."""

    def discard(self) -> None:
        """There is nothing."""

    def finish(
        self,
        recipe: Recipe,
        source: str,
        builder: dict[str, str],
        files: tuple[FileEntry, ...] | None = None,
        progress: Progress = silent,
    ) -> Manifest:
        manifest = made(self.key, recipe, source, builder, files)
        self._store.entries[self.key] = manifest
        self.manifest = manifest
        return manifest


class FakeStore:
    """Finished entries by key."""

    def __init__(self, faults: Faults) -> None:
        self.entries: dict[str, Manifest] = {}
        self._faults = faults

    def get(self, key: str) -> Manifest | None:
        return self.entries.get(key)

    def path(self, key: str) -> Path:
        return store_path(key)

    def all(self) -> tuple[Manifest, ...]:
        return tuple(self.entries[key] for key in sorted(self.entries))

    @contextmanager
    def building(self, key: str, progress: Progress = silent, fresh: bool = False) -> Iterator[FakeBuilding]:
        with self._faults.call(f"store.building {key}"):
            yield FakeBuilding(self, key)

    def reading(self, path: Path, progress: Progress = silent) -> AbstractContextManager[None]:
        return nullcontext()

    def read_ahead(self, path: Path, most: int, progress: Progress = silent) -> int:
        with self._faults.call("store.read_ahead"):
            size = next(
                (entry.size for key, entry in self.entries.items() if store_path(key) in (path, path.parent)), 0
            )
            progress("reading ahead", min(size, most), min(size, most))
            return min(size, most)


class FakeHub:
    """Every repository exists, at one commit, with one file, or with those that are named."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def snapshot(
        self, source: HubSource, timeout: float, names: Sequence[str] | None = None, progress: Progress = silent
    ) -> HubSnapshot:
        with self._faults.call("hub.snapshot"):
            commit = source.revision if source.pinned else COMMIT
            files = tuple(HubFile(name, SIZE, "0" * 64, None) for name in names or ("model.safetensors",))
            return HubSnapshot(HubSource(source.repo, commit), files)

    def fetch(self, snapshot: HubSnapshot, into: Path, progress: Progress) -> tuple[FileEntry, ...]:
        with self._faults.call("hub.fetch"):
            for done in (0, SIZE // 2, SIZE):
                progress("downloading", done, SIZE)
            return tuple(FileEntry(path=file.path, size=SIZE, sha256="0" * 64) for file in snapshot.files)


@dataclass(frozen=True)
class FakeAdapterFacts:
    """See drivers.base.AdapterFacts."""

    rank: int
    source: str


class FakeBuilder:
    """Builds anything at once, with two words of progress."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def adapter(self, directory: Path, base: Path | None) -> FakeAdapterFacts:
        return FakeAdapterFacts(8, f"dir:{directory.name}")

    def versions(self, recipe: Recipe, by: BuiltBy | None = None) -> dict[str, str]:
        return {"orch": "1"}

    def expected_bytes(self, recipe: Recipe, source: Path) -> int:
        return SIZE

    def build(
        self,
        recipe: Recipe,
        source: Path,
        work: Path,
        progress: Progress,
        base: Path | None = None,
        calibration: Calibration | None = None,
        template: str = "",
        by: BuiltBy | None = None,
    ) -> None:
        with self._faults.call(f"builder.build {recipe.value}"):
            progress("building", 1, 2)
            progress("building", 2, 2)

    def build_together(
        self, works: Mapping[Recipe, Path], source: Path, progress: Progress, template: str = ""
    ) -> None:
        with self._faults.call(f"builder.build_together {' '.join(works)}"):
            progress("building", 1, 2)
            progress("building", 2, 2)

    def copy_in(
        self, path: Path, work: Path, expect: Callable[[int], None], progress: Progress
    ) -> tuple[FileEntry, ...]:
        with self._faults.call(f"builder.copy_in {path}"):
            expect(SIZE)
            progress("copying", 1, 2)
            return (FileEntry(path=path.name, size=SIZE, sha256="0" * 64),)

    def settle(self, recipe: Recipe, work: Path, files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
        with self._faults.call(f"builder.settle {recipe.value}"):
            return files


class FakeEnvironments:
    """Environments by name; `problems` names the broken ones and why."""

    def __init__(self, faults: Faults) -> None:
        self.installed: dict[str, EnvironmentObserved] = {}
        self._faults = faults

    def observe(self) -> tuple[EnvironmentObserved, ...]:
        return tuple(self.installed.values())

    def ensure(self, spec: EnvironmentSpec, progress: Progress) -> Path:
        with self._faults.call(f"environments.ensure {spec.name}"):
            progress("installing", 0, 0)
            self.installed[spec.name] = EnvironmentObserved(spec.name, spec.engine, spec.version, SIZE)
            return self.bin(spec.name)

    def bin(self, name: str) -> Path:
        """The bin/ directory of a ready one."""
        if name not in self.installed or self.installed[name].problem:
            raise HostError(f"Environment {name} is not ready.")
        return Path("/environments") / name / "bin"


class FakeImages:
    """Images by their ID; `requires` says what the config of one that is pulled demands of the driver, by reference."""

    def __init__(self, faults: Faults) -> None:
        self.here: dict[str, ImageFacts] = {}
        self.requires: dict[str, str] = {}
        self._faults = faults

    def observe(self) -> Mapping[str, ImageFacts]:
        return {name: one for one in self.here.values() for name in (one.id, *one.references, *one.tags)}

    def pull(self, image: ImagePin, progress: Progress) -> ImageFacts:
        with self._faults.call(f"images.pull {image.name}"):
            for done in (0, SIZE // 2, SIZE):
                progress(f"pulling {image.name}", done, SIZE)
            facts = image_facts(image, self.requires.get(image.reference, ""))
            self.here[facts.id] = facts
            return facts

    def build(self, reference: str, base: str, progress: Progress) -> None:
        with self._faults.call(f"images.build {reference}"):
            progress(f"building {reference}", 0, 0)
            if base not in self.observe():
                raise HostError(f"The image {base} is not here.", "orch up pulls it")
            facts = built_facts(reference)
            self.here[facts.id] = facts


def image_facts(image: ImagePin, requires: str = "") -> ImageFacts:
    """A pinned image as the daemon has it."""
    entrypoint = ("/bin/ollama",) if "ollama" in image.image else ("vllm", "serve")
    return ImageFacts(_id_of(image.reference), (image.reference,), (image.name,), entrypoint, requires, SIZE)


def built_facts(reference: str) -> ImageFacts:
    """An image that was built here."""
    return ImageFacts(_id_of(reference), tags=(reference,), size=SIZE)


def _id_of(reference: str) -> str:
    return f"sha256:{hashlib.sha256(reference.encode()).hexdigest()}"


class FakeKeys:
    """API keys in memory."""

    def __init__(self, faults: Faults) -> None:
        self.ring: KeyRing | None = None
        self.old: KeyRing | None = None
        self._faults = faults

    @property
    def has_old_file(self) -> bool:
        return self.old is not None

    @property
    def written(self) -> bool:
        return self.ring is not None

    def read(self) -> KeyRing:
        return self.ring or self.old or KeyRing()

    def write(self, ring: KeyRing) -> None:
        with self._faults.call("keys.write"):
            self.ring = ring

    def drop_old_file(self) -> None:
        with self._faults.call("keys.drop_old_file"):
            self.old = None


class FakeRecords:
    """What is wanted, kept as the JSON that would be on disk."""

    def __init__(self, faults: Faults) -> None:
        self.texts: dict[str, str] = {}
        self.took: dict[str, float] = {}
        self.notes: dict[tuple[str, str], str] = {}
        self._faults = faults

    def desired(self) -> dict[str, Desired]:
        return {name: Desired.from_record(json.loads(text), read_settings) for name, text in sorted(self.texts.items())}

    def unreadable(self) -> tuple[str, ...]:
        return ()

    def starts(self) -> Mapping[str, float]:
        return dict(self.took)

    def note_start(self, key: str, seconds: float) -> None:
        with self._faults.call("records.note_start"):
            self.took[key] = round(seconds, 1)

    def note(self, kind: str, profile: str, value: object) -> None:
        with self._faults.call(f"records.note {kind}"):
            self.notes[kind, profile] = json.dumps(value)

    def noted(self, kind: str, profile: str) -> object:
        return json.loads(self.notes.get((kind, profile), "null"))

    def record(self, profile: str, desired: Desired | None) -> None:
        with self._faults.call(f"records.record {profile}"):
            if desired is None:
                self.texts.pop(profile, None)
            else:
                self.texts[profile] = to_record(desired)

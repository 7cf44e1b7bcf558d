"""Store, hub, builder, environments and records in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fakes.faults import Faults
from orchestrator.core.artifact import FileEntry, Manifest, Recipe
from orchestrator.core.deployment import Desired
from orchestrator.core.environment import EnvironmentObserved, EnvironmentSpec
from orchestrator.core.progress import Progress, silent
from orchestrator.core.weights import HubFile, HubSnapshot, HubSource
from orchestrator.errors import HostError

STORE = Path("/store")
COMMIT = "c" * 40
SIZE = 1000


def store_path(key: str) -> Path:
    """Where the fake store has an entry."""
    return STORE / key


class FakeBuilding:
    """See drivers.base.Building; nothing is written in `work`."""

    def __init__(self, store: FakeStore, key: str) -> None:
        self.key = key
        self.work = STORE / ".partial" / key
        self.manifest = store.get(key)
        self._store = store

    def finish(
        self,
        recipe: Recipe,
        source: str,
        builder: dict[str, str],
        files: tuple[FileEntry, ...] | None = None,
        progress: Progress = silent,
    ) -> Manifest:
        made = files if files is not None else (FileEntry(path="made", size=SIZE, sha256="0" * 64),)
        manifest = Manifest(
            key=self.key, recipe=recipe, source=source, builder=builder, files=made, created="2026-01-01T00:00:00+00:00"
        )
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


class FakeHub:
    """Every repository exists, at one commit, with one file."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def snapshot(self, source: HubSource, timeout: float) -> HubSnapshot:
        with self._faults.call("hub.snapshot"):
            commit = source.revision if source.pinned else COMMIT
            return HubSnapshot(HubSource(source.repo, commit), (HubFile("model.safetensors", SIZE, "0" * 64, None),))

    def fetch(self, snapshot: HubSnapshot, into: Path, progress: Progress) -> tuple[FileEntry, ...]:
        with self._faults.call("hub.fetch"):
            for done in (0, SIZE // 2, SIZE):
                progress("downloading", done, SIZE)
            return (FileEntry(path="model.safetensors", size=SIZE, sha256="0" * 64),)


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

    def versions(self, recipe: Recipe) -> dict[str, str]:
        return {"orch": "1"}

    def build(self, recipe: Recipe, source: Path, work: Path, progress: Progress, base: Path | None = None) -> None:
        with self._faults.call(f"builder.build {recipe.value}"):
            progress("building", 1, 2)
            progress("building", 2, 2)


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


class FakeRecords:
    """What is wanted, kept as the JSON that would be on disk."""

    def __init__(self, faults: Faults) -> None:
        self.texts: dict[str, str] = {}
        self._faults = faults

    def desired(self) -> dict[str, Desired]:
        return {name: Desired.model_validate_json(text) for name, text in sorted(self.texts.items())}

    def unreadable(self) -> tuple[str, ...]:
        return ()

    def record(self, profile: str, desired: Desired | None) -> None:
        with self._faults.call(f"records.record {profile}"):
            if desired is None:
                self.texts.pop(profile, None)
            else:
                self.texts[profile] = desired.model_dump_json()

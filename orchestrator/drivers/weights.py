"""What this machine knows of weights before any work: their source, their place, their size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.core.artifact import BUILDER_FORMAT, Recipe, artifact_key, source_of_files
from orchestrator.core.meaning import Meaning
from orchestrator.core.part import Unfit
from orchestrator.core.profile import ReadyMade, Weights
from orchestrator.core.progress import Progress
from orchestrator.core.weights import (
    INDEX,
    TEMPLATES,
    HubSource,
    ReadyFacts,
    Shape,
    WeightsFacts,
    files_that_count,
    shape_of,
)
from orchestrator.drivers.base import Store
from orchestrator.drivers.files import read_json, write_json
from orchestrator.errors import HostError, SourceError, why

CHUNK = 1 << 20
# Of what is kept of meanings: raised when more is read of the same files.
MEANING_FORMAT = 2


class WeightsCatalog:
    """Identifies weights and ready-made artifacts; hashes of local files are cached by path, size, time and inode in
    `cache`, and what directories and GGUF files mean beside it. `gguf_shape` reads what the GGUF of a finished
    artifact, in its directory, says of its sizes; `read_meaning` what a directory or a GGUF file means."""

    def __init__(
        self,
        store: Store,
        cache: Path,
        gguf_shape: Callable[[Recipe, Path], Shape],
        read_meaning: Callable[[Path], Meaning],
    ) -> None:
        self._store = store
        self._cache = cache
        self._gguf_shape = gguf_shape
        self._read_meaning = read_meaning

    def of_hub(self, source: HubSource) -> WeightsFacts:
        """Facts of a pinned hub source, without asking the hub."""
        key = artifact_key(Recipe.WEIGHTS, str(source))
        path = self._store.path(key)
        manifest = self._store.get(key)
        size = manifest.size if manifest is not None else 0
        shape = read_shape(path) if manifest is not None else None
        return WeightsFacts(str(source), key, str(path), source, size, shape)

    def of_ready_made(self, recipe: Recipe, ready: ReadyMade, progress: Progress) -> ReadyFacts:
        """Facts of a ready-made artifact; its hub revision must be a commit. A local one is read once, then only its
        stat."""
        if ready.hub is not None:
            source = f"{ready.hub}/{ready.file}" if ready.file is not None else str(ready.hub)
            facts = ReadyFacts(source, artifact_key(recipe, source, brought=True), ready.hub, ready.file or "")
        else:
            path = Path(ready.path or "")
            if not path.exists():
                raise HostError(
                    f"The ready-made artifact {path} is not there.",
                    hint=f"artifacts.{recipe.value}.path in the profile names it.",
                )
            files = [path] if path.is_file() else _counted(path)
            hashes = self._hashes(files, progress)
            source = f"file:{hashes[path.name]}" if path.is_file() else source_of_files(hashes)
            facts = ReadyFacts(source, artifact_key(recipe, source, brought=True), path=str(path))
        if self._store.get(facts.key) is None:
            return facts
        return replace(facts, shape=self._ready_shape(recipe, self._store.path(facts.key)))

    def _ready_shape(self, recipe: Recipe, directory: Path) -> Shape | None:
        if not recipe.quant:
            return read_shape(directory)
        try:
            return self._gguf_shape(recipe, directory)
        except SourceError:
            # It was sound when it came; what has become of it is for `verify` to tell.
            return None

    def of_directory(self, weights: Weights, progress: Progress) -> WeightsFacts:
        """Facts of a local directory; reads all of it once, then only its stat."""
        root = Path(weights.path or "")
        files = _counted(root)
        if not any(path.suffix == ".safetensors" for path in files):
            hint = "weights.path is a model directory as on the hub: config.json, tokenizer.json, *.safetensors."
            raise SourceError(f"{root} holds no safetensors files.", hint)
        source = source_of_files(self._hashes(files, progress))
        total = sum(path.stat().st_size for path in files)
        key = artifact_key(Recipe.WEIGHTS, source)
        return WeightsFacts(source, key, str(root), None, total, read_shape(root), link_directories(root))

    def meaning(self, path: Path) -> Meaning:
        """What a directory of weights, or a GGUF file, means; read again only where its files have changed.
        SourceError where they contradict each other."""
        files = [path] if path.is_file() else _list(path)
        stamp = [
            [BUILDER_FORMAT, MEANING_FORMAT],
            *([file.name, *_stamp(file)] for file in sorted(files) if file.is_file()),
        ]
        stamp += [[file.name, *_stamp(file)] for file in sorted(path.glob(f"{TEMPLATES}/*.jinja"))]
        cache = self._cache.with_name("meanings.json")
        cached = _read_cache(cache)
        entry = cached.get(str(path))
        if entry is not None and entry[:1] == [stamp]:
            with suppress(Unfit):
                return Meaning.model_validate(entry[1])
        found = self._read_meaning(path)
        write_json(cache, {**cached, str(path): [stamp, found.model_dump()]})
        return found

    def digest(self, path: Path, progress: Progress) -> str:
        """The SHA-256 of one file. SourceError where there is none."""
        if not path.is_file():
            raise SourceError(f"There is no file {path}.")
        return self._hashes([path], progress)[path.name]

    def _hashes(self, files: list[Path], progress: Progress) -> dict[str, str]:
        """SHA-256 by file name; what has not changed since it was read is not read again."""
        total = sum(path.stat().st_size for path in files)
        cached = _read_cache(self._cache)
        hashes: dict[str, str] = {}
        done, changed = 0, False
        for path in files:
            stamp = _stamp(path)
            entry = cached.get(str(path))
            if entry is None or entry[:3] != stamp:
                entry = [*stamp, _sha256(path, progress, done, total)]
                cached[str(path)], changed = entry, True
            name = f"{TEMPLATES}/{path.name}" if path.parent.name == TEMPLATES else path.name
            hashes[name] = str(entry[3])
            done += stamp[0]
        if changed:
            write_json(self._cache, cached)
        return hashes


class UnknownWeights:
    """Which weights orch's own GGUF builder does not know: by their architecture, which `unknown` reads in their
    directory, or because it was found when they were to be built from. The latter is kept in `file`."""

    def __init__(self, file: Path, unknown: Callable[[Path], str]) -> None:
        self._file = file
        self._unknown = unknown

    def what(self, weights: WeightsFacts) -> str:
        """What of them it does not know; empty when nothing is known of that."""
        found = self._found().get(weights.source, "")
        return found or (self._unknown(Path(weights.path)) if weights.size else "")

    def keep(self, source: str, what: str) -> bool:
        """Keep what was found of the weights of this source; whether that is new."""
        found = self._found()
        write_json(self._file, {**found, source: what})
        return source not in found

    def _found(self) -> dict[str, str]:
        try:
            value = read_json(self._file)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


class ReadyArtifacts(Mapping[Recipe, ReadyFacts]):
    """Facts of a profile's ready-made artifacts, each looked at when it is asked for: a local one is hashed then."""

    def __init__(self, ready: Mapping[Recipe, ReadyMade], facts: Callable[[Recipe, ReadyMade], ReadyFacts]) -> None:
        self._ready = ready
        self._facts = facts
        self._known: dict[Recipe, ReadyFacts] = {}

    def __getitem__(self, recipe: Recipe) -> ReadyFacts:
        if recipe not in self._known:
            self._known[recipe] = self._facts(recipe, self._ready[recipe])
        return self._known[recipe]

    def __contains__(self, recipe: object) -> bool:
        return recipe in self._ready

    def __iter__(self) -> Iterator[Recipe]:
        return iter(self._ready)

    def __len__(self) -> int:
        return len(self._ready)


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _read_cache(file: Path) -> dict[str, list[Any]]:
    try:
        value = read_json(file)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def counted_names(root: Path) -> tuple[str, ...]:
    """The files of a directory of weights that count, relative to it."""
    names = [path.name for path in _list(root) if path.is_file()]
    names += [f"{TEMPLATES}/{path.name}" for path in root.glob(f"{TEMPLATES}/*.jinja")]
    return files_that_count(names, lambda: _shards(root / INDEX))


def _counted(root: Path) -> list[Path]:
    return [root / name for name in counted_names(root)]


def _shards(index: Path) -> set[str]:
    """What is wrong with an index is told by whoever opens the weights."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        return {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    return set()


def _list(root: Path) -> list[Path]:
    try:
        return list(root.iterdir())
    except OSError as error:
        raise HostError(
            f"The weights directory {root} cannot be read: {why(error)}.",
            hint="weights.path in the profile names it.",
        ) from error


def link_directories(root: Path) -> tuple[str, ...]:
    """The directories that files of `root` are links into: in the hub client's cache all are."""
    return tuple(sorted({str(path.resolve().parent) for path in root.iterdir() if path.is_symlink()}))


def _sha256(path: Path, progress: Progress, done: int, total: int) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                done += len(chunk)
                progress(f"hashing {path.parent.name}", done, total)
    except OSError as error:
        raise HostError(f"{path} cannot be read: {why(error)}.") from error
    return digest.hexdigest()


def read_shape(root: Path) -> Shape | None:
    """The sizes that config.json tells; None when it does not."""
    try:
        return shape_of(json.loads((root / "config.json").read_bytes()))
    except (OSError, ValueError):
        return None

"""The content-addressed store: finished artifacts under their keys, builds in progress out of sight.

    ROOT/KEY/             finished: its files and manifest.json
    ROOT/.partial/KEY/    being built; kept after a failure, so that a download goes on where it stopped
    ROOT/.locks/KEY       flock of the one that builds, repairs or removes KEY; in it the bytes that it will have
    ROOT/.trash/          renamed away, then deleted

Finished means the rename from .partial to ROOT, after everything was fsynced: kill -9 or a power cut leave
either all of an artifact or nothing that looks like one. It stays finished as long as its files are there with
their sizes; an entry that lost one is broken, and is built anew like one that never was.

Beside its own directory a store may know shared ones, of other machines perhaps: what is finished there counts and is
used in place. They are never written.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.artifacts.disk import amount, fsync_directory, fsync_file, host_errors, write_whole
from orchestrator.artifacts.store_directory import (
    MANIFEST,
    Damage,
    StoreDirectory,
    files_below,
    hash_all,
    is_inside,
    is_link,
)
from orchestrator.core.artifact import FileEntry, Manifest, Recipe
from orchestrator.core.progress import Progress, silent
from orchestrator.errors import HostError, SourceError

_POLL_SECONDS = 0.05
_READ_AHEAD = 16 << 20
# Adapters are small, and a container that runs sees one directory of them; a view leads to where weights lie here. They
# are always the store's own.
_NEVER_SHARED = tuple(f"{recipe.value}-" for recipe in (Recipe.ADAPTER, Recipe.LORA_GGUF, Recipe.VIEW))


@dataclass
class Building:
    """One turn at building `key`: write into `work`, then `finish`. `manifest` is set once it is finished."""

    store: Store
    key: str
    work: Path
    manifest: Manifest | None

    def expect(self, size: int, about: bool = False) -> None:
        """Says before the first byte how large it will be; HostError if the store must not grow so far."""
        self.store.announce(self.key, size, about)

    def discard(self) -> None:
        """Deletes what has come so far: the next turn begins with nothing."""
        with host_errors(f"clean {self.work}"):
            self.store.discard(self.work)

    def finish(
        self,
        recipe: Recipe,
        source: str,
        builder: dict[str, str],
        files: tuple[FileEntry, ...] | None = None,
        progress: Progress = silent,
    ) -> Manifest:
        """Makes what lies in `work` the artifact, links included.

        Without `files` everything in `work` belongs to it and is hashed now. With `files`, whose hashes the
        caller has computed already, sizes are checked and other leftovers in `work` are deleted.
        SourceError if a file is missing or has another size; HostError if the disk fails.
        """
        with host_errors(f"store {self.key}"):
            found = _scan(self.work, with_links=recipe is Recipe.VIEW)
            links = {path: str((self.work / path).readlink()) for path, status in found.items() if is_link(status)}
            if files is None:
                files = hash_all(self.work, progress)
            else:
                _keep_only(self.work, found, files)
            manifest = Manifest(
                key=self.key,
                recipe=recipe,
                source=source,
                builder=builder,
                files=tuple(sorted(files, key=lambda entry: entry.path)),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                links=links,
            )
            for entry in manifest.files:
                fsync_file(self.work / entry.path)
            # Versions without views do not know links.
            text = manifest.model_dump_json(indent=2, exclude=() if links else ("links",))
            write_whole(self.work / MANIFEST, f"{text}\n".encode())
            for directory, _, _ in os.walk(self.work, topdown=False):
                fsync_directory(Path(directory))
            final = self.store.own.path(self.key)
            if os.path.lexists(final):
                self.store.discard(final)
            self.work.rename(final)
            fsync_directory(final.parent)
        self.manifest = manifest
        return manifest


class Store:
    """Artifacts below `root`, at most `limit` bytes of them, and in the `shared` stores.

    Any number of processes may use one root; HostError where the disk refuses.
    """

    def __init__(self, root: Path, shared: tuple[Path, ...] = (), limit: int | None = None) -> None:
        self.root = root
        self.own = StoreDirectory(root)
        self.shared = tuple(StoreDirectory(place) for place in shared)
        self.limit = limit

    @property
    def directories(self) -> tuple[StoreDirectory, ...]:
        """Where entries are looked for, in this order."""
        return (self.own, *self.shared)

    def directory_of(self, key: str) -> StoreDirectory:
        """Where `key` is finished; the store's own directory if it is so nowhere."""
        return next((directory for directory in self._directories_for(key) if directory.get(key) is not None), self.own)

    def path(self, key: str) -> Path:
        """Where the files of `key` lie, or will once it is finished."""
        return self.directory_of(key).path(key) if self.shared else self.own.path(key)

    def get(self, key: str) -> Manifest | None:
        """The manifest of a finished artifact; None if there is none or it is broken. Reads the manifest only."""
        found = (directory.get(key) for directory in self._directories_for(key))
        return next((manifest for manifest in found if manifest is not None), None)

    def all(self) -> tuple[Manifest, ...]:
        """Every finished artifact, by key. What is broken is left out; see `broken`."""
        found: dict[str, Manifest] = {}
        for directory in self.directories:
            for key in directory.names():
                if (
                    key not in found
                    and directory in self._directories_for(key)
                    and (manifest := directory.get(key)) is not None
                ):
                    found[key] = manifest
        return tuple(found[key] for key in sorted(found))

    def read_ahead(self, path: Path, most: int, progress: Progress = silent) -> int:
        """Read the file, or the files of the entry, at a path, so that the kernel has them in memory; at most `most`
        bytes, the largest files first. How many it were. Raises HostError."""
        read = 0
        with host_errors(f"read {path}"):
            below = (found for found in path.rglob("*") if found.name != MANIFEST)
            files = [path] if path.is_file() else [found for found in below if found.is_file()]
            sizes = sorted(((file.stat().st_size, file) for file in files), reverse=True)
            total = min(most, sum(size for size, _ in sizes))
            for _, file in sizes:
                with file.open("rb", buffering=0) as opened:
                    while read < total and (chunk := opened.read(min(_READ_AHEAD, total - read))):
                        read += len(chunk)
                        progress("reading ahead", read, total)
        return read

    def _directories_for(self, key: str) -> tuple[StoreDirectory, ...]:
        return (self.own,) if key.startswith(_NEVER_SHARED) else self.directories

    def broken(self) -> tuple[Damage, ...]:
        """What of the own entries is seen to be broken without reading their files."""
        return self.own.broken()

    def verify(self, key: str, progress: Progress = silent) -> list[Damage]:
        """Reads every byte of the own artifact, or of the shared one in its place, and reports what is not as its
        manifest says."""
        directory = self.own if self.own.manifest(key) is not None else self.directory_of(key)
        return directory.verify(key, progress)

    @contextmanager
    def building(self, key: str, progress: Progress = silent, fresh: bool = False) -> Iterator[Building]:
        """Takes the turn to build `key`.

        Waits while another process builds it (calling `progress`, which may raise Interrupted); afterwards
        `manifest` says whether it is finished already. `work` is the same directory every time and keeps what
        a failed attempt left, unless `fresh`.
        """
        work = self.partial(key)
        manifest = self.get(key)
        if manifest is not None:
            # No turn is needed to see it, and on a read-only disk there is none to be had.
            yield Building(self, key, work, manifest)
            return
        with self.locked(key, progress):
            manifest = self.get(key)
            if manifest is None:
                with host_errors(f"use the store {self.root}"):
                    if fresh and work.exists():
                        self.discard(work)
                    work.mkdir(parents=True, exist_ok=True)
                    # A build was killed between its manifest and its rename; no file of an artifact has this name.
                    (work / MANIFEST).unlink(missing_ok=True)
            yield Building(self, key, work, manifest)

    def partial(self, key: str) -> Path:
        """Where `key` is built."""
        return self.root / ".partial" / self.own.path(key).name

    def unfinished(self) -> dict[str, tuple[int, float]]:
        """What builds have left unfinished, by key: the extent of each."""
        with host_errors(f"read the store {self.root}"):
            works = sorted((self.root / ".partial").glob("*"))
        return {work.name: self.extent(work) for work in works}

    def extent(self, directory: Path) -> tuple[int, float]:
        """Bytes of all files in a directory of the store, and when it was last written to (seconds since 1970)."""
        with host_errors(f"read {directory}"):
            inside = files_below(directory).values()
            times = [status.st_mtime for status in (*inside, directory.stat())]
        return sum(status.st_size for status in inside), max(times)

    def used(self) -> int:
        """Bytes of all files below the root: finished ones, unfinished ones, and what is still to be deleted."""
        with host_errors(f"read the store {self.root}"):
            found = files_below(self.root).items()
        return sum(status.st_size for path, status in found if not path.startswith(".locks/"))

    def announce(self, key: str, size: int, about: bool = False) -> None:
        """Says how many bytes `key` will have, for as long as the caller holds its turn; `about`: an estimate.

        HostError if the store would grow beyond its limit by it. What others have announced counts, and is written down
        before anybody looks: of two that do not fit together at most one goes on.
        """
        with host_errors(f"use the store {self.root}"):
            self._lock_file(key).write_text(str(size))
            if self.limit is None:
                return
            # What is broken of it goes when it is made anew.
            broken = self.own.path(key)
            replaced = self.extent(broken)[0] if broken.is_dir() else 0
            used = self.used() - self._begun(key) - replaced + self._to_come(key)
        if used + size > self.limit:
            need = f"{'about ' if about else ''}{amount(size)}"
            raise HostError(
                f"{key} needs {need}; the store has {amount(used)} and may have {amount(self.limit)}.",
                hint="orch artifacts gc removes what nothing needs; ORCH_STORE_LIMIT is the limit.",
            )

    def _to_come(self, key: str) -> int:
        """What was announced for other keys by those who have their turn now, and is not written yet."""
        found = 0
        for path in (self.root / ".locks").iterdir():
            size = path.read_bytes()
            if path.name != key and size.isdigit() and _is_held(path):
                found += max(0, int(size) - self._begun(path.name))
        return found

    def _lock_file(self, key: str) -> Path:
        return self.root / ".locks" / self.own.path(key).name

    def _begun(self, key: str) -> int:
        return sum(status.st_size for status in files_below(self.partial(key)).values())

    def remove(self, key: str, progress: Progress = silent, wait: bool = True, entry: bool = True) -> bool:
        """Deletes the own artifact and what an unfinished build left; False if there was neither.

        Without `wait` it is also False, and all stays, while another process is at it; without `entry` the finished
        artifact stays.
        """
        there: list[Path] = []
        with self.locked(key, progress, wait) as mine, host_errors(f"remove {key}"):
            if mine:
                paths = (self.own.path(key), self.partial(key)) if entry else (self.partial(key),)
                there = [path for path in paths if os.path.lexists(path)]
            for path in there:
                self.discard(path)
        return bool(there)

    def sweep(self) -> None:
        """Deletes what killed removals left in the trash."""
        with host_errors(f"clean the store {self.root}"):
            trash = self.root / ".trash"
            for path in trash.iterdir() if trash.is_dir() else ():
                _delete(path)

    def discard(self, path: Path) -> None:
        """Moves a directory of this store out of sight at once, then deletes it. The caller holds its lock."""
        trash = self.root / ".trash"
        trash.mkdir(parents=True, exist_ok=True)
        away = trash / f"{path.name}.{os.getpid()}.{time.time_ns()}"
        path.rename(away)
        fsync_directory(path.parent)
        _delete(away)

    @contextmanager
    def reading(self, path: Path, progress: Progress = silent) -> Iterator[None]:
        """Nobody removes what lies at `path` meanwhile, if it is an entry of this store. Any number may read."""
        if path.parent != self.root:
            yield
            return
        with self.locked(path.name, progress, shared=True):
            yield

    @contextmanager
    def locked(self, key: str, progress: Progress, wait: bool = True, shared: bool = False) -> Iterator[bool]:
        """The turn of one process at `key`, or of all that only read it. Without `wait` it may be another's: then the
        block runs with False."""
        with host_errors(f"use the store {self.root}"):
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            # The file stays: removing it would let two processes lock two files of one name.
            descriptor = os.open(self._lock_file(key), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while not (mine := _try_lock(descriptor, shared)) and wait:
                progress(f"waiting for another build of {key}", 0, 0)
                time.sleep(_POLL_SECONDS)
            if mine and not shared:
                os.ftruncate(descriptor, 0)
            yield mine
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int, shared: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_held(lock: Path) -> bool:
    """Whether somebody has the turn that this is the lock of."""
    with lock.open("rb") as file:
        return not _try_lock(file.fileno(), shared=True)


def _scan(work: Path, with_links: bool) -> dict[str, os.stat_result]:
    """What is in a work directory; SourceError if something could not be part of an artifact."""
    found = files_below(work)
    for path, status in found.items():
        if not (stat.S_ISREG(status.st_mode) or (with_links and is_link(status))) or path == MANIFEST:
            raise SourceError(f"{work / path} cannot be stored: it is not a regular file, or has a reserved name.")
    return found


def _keep_only(work: Path, found: dict[str, os.stat_result], files: tuple[FileEntry, ...]) -> None:
    for entry in files:
        if not is_inside(entry.path):
            raise SourceError(f"{entry.path!r} cannot be stored: it is outside the artifact, or reserved.")
        status = found.get(entry.path)
        if status is None or status.st_size != entry.size:
            size = "missing" if status is None else f"{status.st_size} bytes"
            raise SourceError(f"{work / entry.path} is {size} instead of {entry.size} bytes.", "Fetch it again.")
    for path in found.keys() - {entry.path for entry in files}:
        (work / path).unlink()
    for directory, _, _ in os.walk(work, topdown=False):
        if directory != str(work) and not any(Path(directory).iterdir()):
            Path(directory).rmdir()


def _delete(path: Path) -> None:
    """Deletes a tree; another process may be deleting the same one."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    while path.is_dir():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)

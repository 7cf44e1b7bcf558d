"""The content-addressed store: finished artifacts under their keys, builds in progress out of sight.

    ROOT/KEY/             finished: its files and manifest.json
    ROOT/.partial/KEY/    being built; kept after a failure, so that a download goes on where it stopped
    ROOT/.locks/KEY       flock of the one that builds or removes KEY
    ROOT/.trash/          renamed away, then deleted

Finished means the rename from .partial to ROOT, after everything was fsynced: kill -9 or a power cut leave
either all of an artifact or nothing that looks like one. It stays finished as long as its files are there with
their sizes; an entry that lost one is broken, and is built anew like one that never was.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from orchestrator.artifacts.disk import fsync_directory, fsync_file, host_errors, write_whole
from orchestrator.core.artifact import FileEntry, Manifest, Recipe
from orchestrator.core.progress import Progress, silent
from orchestrator.errors import SourceError

MANIFEST = "manifest.json"

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_CHUNK = 1 << 20
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Damage:
    """What is wrong with one file of an artifact; `path` is relative to it."""

    key: str
    path: str
    kind: Literal["missing", "size", "hash", "extra", "unreadable"]
    reason: str


@dataclass
class Building:
    """One turn at building `key`: write into `work`, then `finish`. `manifest` is set once it is finished."""

    store: Store
    key: str
    work: Path
    manifest: Manifest | None

    def finish(
        self,
        recipe: Recipe,
        source: str,
        builder: dict[str, str],
        files: tuple[FileEntry, ...] | None = None,
        progress: Progress = silent,
    ) -> Manifest:
        """Makes what lies in `work` the artifact.

        Without `files` everything in `work` belongs to it and is hashed now. With `files`, whose hashes the
        caller has computed already, sizes are checked and other leftovers in `work` are deleted.
        SourceError if a file is missing or has another size; HostError if the disk fails.
        """
        with host_errors(f"store {self.key}"):
            found = _scan(self.work)
            if files is None:
                files = _hash_all(self.work, found, progress)
            else:
                _keep_only(self.work, found, files)
            manifest = Manifest(
                key=self.key,
                recipe=recipe,
                source=source,
                builder=builder,
                files=tuple(sorted(files, key=lambda entry: entry.path)),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            for entry in manifest.files:
                fsync_file(self.work / entry.path)
            write_whole(self.work / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
            for directory, _, _ in os.walk(self.work, topdown=False):
                fsync_directory(Path(directory))
            final = self.store.path(self.key)
            if os.path.lexists(final):
                self.store.discard(final)
            self.work.rename(final)
            fsync_directory(final.parent)
        self.manifest = manifest
        return manifest


class Store:
    """Artifacts below `root`. Any number of processes may use one root; HostError where the disk refuses."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where the files of `key` lie once it is finished."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"not an artifact key: {key!r}")
        return self.root / key

    def get(self, key: str) -> Manifest | None:
        """The manifest of a finished artifact; None if there is none or it is broken. Reads the manifest only."""
        found = self._manifest(key)
        return found if isinstance(found, Manifest) and not self._losses(found) else None

    def all(self) -> tuple[Manifest, ...]:
        """Every finished artifact, by key. What is broken is left out; see `broken`."""
        found = (self.get(key) for key in self._keys())
        return tuple(manifest for manifest in found if manifest is not None)

    def broken(self) -> tuple[Damage, ...]:
        """What is seen without reading: manifests that cannot be read, files that are gone or have another size."""
        damages: list[Damage] = []
        for key in self._keys():
            found = self._manifest(key)
            if isinstance(found, Manifest):
                damages += self._losses(found)
            elif found is not None:
                damages.append(found)
        return tuple(damages)

    @contextmanager
    def building(self, key: str, progress: Progress = silent, fresh: bool = False) -> Iterator[Building]:
        """Takes the turn to build `key`.

        Waits while another process builds it (calling `progress`, which may raise Interrupted); afterwards
        `manifest` says whether it is finished already. `work` is the same directory every time and keeps what
        a failed attempt left, unless `fresh`.
        """
        work = self.root / ".partial" / self.path(key).name
        with self._locked(key, progress):
            manifest = self.get(key)
            if manifest is None:
                with host_errors(f"use the store {self.root}"):
                    if fresh and work.exists():
                        self.discard(work)
                    work.mkdir(parents=True, exist_ok=True)
                    # A build was killed between its manifest and its rename; no file of an artifact has this name.
                    (work / MANIFEST).unlink(missing_ok=True)
            yield Building(self, key, work, manifest)

    def verify(self, key: str, progress: Progress = silent) -> list[Damage]:
        """Reads every byte of the artifact and reports what is not as its manifest says."""
        manifest = self._manifest(key)
        if not isinstance(manifest, Manifest):
            return [manifest or Damage(key, "", "missing", "it is not in the store")]
        damages: list[Damage] = []
        root = self.path(key)
        done = 0
        with host_errors(f"verify {key}"):
            found = _scan_any(root)
            for entry in manifest.files:
                damages += _damage_of(key, root, entry, found.get(entry.path), progress, (done, manifest.size))
                done += entry.size
            extra = found.keys() - {entry.path for entry in manifest.files} - {MANIFEST}
        damages += [Damage(key, path, "extra", "it is not in the manifest") for path in sorted(extra)]
        return damages

    def remove(self, key: str, progress: Progress = silent) -> bool:
        """Deletes the artifact and what an unfinished build left; False if there was neither."""
        final = self.path(key)
        with self._locked(key, progress), host_errors(f"remove {key}"):
            there = [path for path in (final, self.root / ".partial" / key) if os.path.lexists(path)]
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

    def _keys(self) -> list[str]:
        with host_errors(f"read the store {self.root}"):
            if not self.root.is_dir():
                return []
            return sorted(entry.name for entry in self.root.iterdir() if _KEY.fullmatch(entry.name))

    def _manifest(self, key: str) -> Manifest | Damage | None:
        path = self.path(key) / MANIFEST
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            if not os.path.lexists(path.parent):
                return None
            return Damage(key, MANIFEST, "unreadable", str(error))
        except (OSError, ValueError) as error:
            return Damage(key, MANIFEST, "unreadable", str(error))
        if manifest.key != key:
            return Damage(key, MANIFEST, "unreadable", f"it is the manifest of {manifest.key}")
        if not all(_is_inside(entry.path) for entry in manifest.files):
            return Damage(key, MANIFEST, "unreadable", "it names files outside of the artifact")
        return manifest

    def _losses(self, manifest: Manifest) -> list[Damage]:
        """What lstat tells about the files of a manifest."""
        root = self.path(manifest.key)
        found = ((entry, _status(root / entry.path)) for entry in manifest.files)
        return [damage for entry, status in found if (damage := _loss(manifest.key, entry, status)) is not None]

    @contextmanager
    def _locked(self, key: str, progress: Progress) -> Iterator[None]:
        with host_errors(f"use the store {self.root}"):
            (self.root / ".locks").mkdir(parents=True, exist_ok=True)
            # The file stays: removing it would let two processes lock two files of one name.
            descriptor = os.open(self.root / ".locks" / key, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while not _try_lock(descriptor):
                progress(f"waiting for another build of {key}", 0, 0)
                time.sleep(_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)


def hash_file(path: Path, progress: Progress = silent, done: int = 0, total: int = 0) -> str:
    """SHA-256 of a file in lowercase hex; reports `done` plus what it has read of `total`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress("hashing", done, total)
    return digest.hexdigest()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return all(part not in ("", ".", "..") for part in parts) and path != MANIFEST


def _scan_any(root: Path) -> dict[str, os.stat_result]:
    """Everything below `root` that is no directory, by relative path; links are not followed."""
    found = {}
    for directory, subdirectories, names in os.walk(root):
        for name in names + [name for name in subdirectories if (Path(directory) / name).is_symlink()]:
            path = Path(directory) / name
            found[path.relative_to(root).as_posix()] = path.lstat()
    return found


def _scan(work: Path) -> dict[str, os.stat_result]:
    """The files of a work directory; SourceError if one could not be part of an artifact."""
    found = _scan_any(work)
    for path, status in found.items():
        if not stat.S_ISREG(status.st_mode) or path == MANIFEST:
            raise SourceError(f"{work / path} cannot be stored: it is no plain file, or has a reserved name.")
    return found


def _hash_all(work: Path, found: dict[str, os.stat_result], progress: Progress) -> tuple[FileEntry, ...]:
    total = sum(status.st_size for status in found.values())
    done = 0
    entries = []
    for path, status in sorted(found.items()):
        sha256 = hash_file(work / path, progress, done, total)
        entries.append(FileEntry(path=path, size=status.st_size, sha256=sha256))
        done += status.st_size
    return tuple(entries)


def _keep_only(work: Path, found: dict[str, os.stat_result], files: tuple[FileEntry, ...]) -> None:
    for entry in files:
        if not _is_inside(entry.path):
            raise SourceError(f"{entry.path!r} cannot be stored: it is outside of the artifact, or reserved.")
        status = found.get(entry.path)
        if status is None or status.st_size != entry.size:
            size = "missing" if status is None else f"{status.st_size} bytes"
            raise SourceError(f"{work / entry.path} is {size}, announced were {entry.size} bytes.", "Fetch it again.")
    for path in found.keys() - {entry.path for entry in files}:
        (work / path).unlink()
    for directory, _, _ in os.walk(work, topdown=False):
        if directory != str(work) and not any(Path(directory).iterdir()):
            Path(directory).rmdir()


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _loss(key: str, entry: FileEntry, status: os.stat_result | None) -> Damage | None:
    """The damage that shows without reading the file."""
    if status is None:
        return Damage(key, entry.path, "missing", "the file is gone")
    if not stat.S_ISREG(status.st_mode):
        return Damage(key, entry.path, "unreadable", "it is no plain file")
    if status.st_size != entry.size:
        return Damage(key, entry.path, "size", f"it has {status.st_size} bytes instead of {entry.size}")
    return None


def _damage_of(
    key: str,
    root: Path,
    entry: FileEntry,
    status: os.stat_result | None,
    progress: Progress,
    position: tuple[int, int],
) -> list[Damage]:
    loss = _loss(key, entry, status)
    if loss is not None:
        return [loss]
    try:
        found = hash_file(root / entry.path, progress, *position)
    except OSError as error:
        return [Damage(key, entry.path, "unreadable", error.strerror or str(error))]
    if found != entry.sha256:
        return [Damage(key, entry.path, "hash", f"its SHA-256 is {found} instead of {entry.sha256}")]
    return []


def _delete(path: Path) -> None:
    """Deletes a tree; another process may be deleting the same one."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    while path.is_dir():
        with suppress(FileNotFoundError):
            shutil.rmtree(path)

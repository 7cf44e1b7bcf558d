"""Finished entries of one store directory, as they lie there. Reads only, so it serves the stores of others too.

An entry is finished as long as its manifest is sound and its files are there with their sizes; one that lost a file
is broken. What sizes do not show is for `verify`, which reads every byte.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.artifacts.disk import host_errors
from orchestrator.core.artifact import FileEntry, Manifest
from orchestrator.core.progress import Progress, silent

MANIFEST = "manifest.json"

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Damage:
    """What is wrong with one file of an artifact; `path` is relative to it."""

    key: str
    path: str
    kind: Literal["missing", "size", "hash", "extra", "unreadable"]
    reason: str


class StoreDirectory:
    """The finished entries below `root`; HostError where the disk refuses."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where the files of `key` are, or would be."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"not an artifact key: {key!r}")
        return self.root / key

    def names(self) -> list[str]:
        """The keys of what is there, finished or broken, sorted."""
        with host_errors(f"read the store {self.root}"):
            if not self.root.is_dir():
                return []
            return sorted(entry.name for entry in self.root.iterdir() if _KEY.fullmatch(entry.name))

    def get(self, key: str) -> Manifest | None:
        """The manifest of a finished entry; None if there is none or it is broken. Reads the manifest only."""
        found = self.manifest(key)
        return found if isinstance(found, Manifest) and not self.losses(found) else None

    def manifest(self, key: str) -> Manifest | Damage | None:
        """The manifest, whatever its files are like; what is wrong with it, or None where there is no entry."""
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
        if not all(is_inside(entry.path) for entry in manifest.files):
            return Damage(key, MANIFEST, "unreadable", "it names files outside the artifact")
        return manifest

    def losses(self, manifest: Manifest) -> list[Damage]:
        """What lstat tells about the files of a manifest."""
        root = self.path(manifest.key)
        found = ((entry, _status(root / entry.path)) for entry in manifest.files)
        lost = [damage for entry, status in found if (damage := _loss(manifest.key, entry, status)) is not None]
        return lost + [
            Damage(manifest.key, path, "missing", f"its link to {target} is lost, or leads nowhere")
            for path, target in manifest.links.items()
            if not _leads_to(root / path, target)
        ]

    def broken(self) -> tuple[Damage, ...]:
        """What is seen without reading: manifests that cannot be read, files that are gone or have another size."""
        damages: list[Damage] = []
        for key in self.names():
            found = self.manifest(key)
            if isinstance(found, Manifest):
                damages += self.losses(found)
            elif found is not None:
                damages.append(found)
        return tuple(damages)

    def verify(self, key: str, progress: Progress = silent) -> list[Damage]:
        """Reads every byte of the entry and reports what is not as its manifest says."""
        manifest = self.manifest(key)
        if not isinstance(manifest, Manifest):
            return [manifest or Damage(key, "", "missing", "it is not in the store")]
        damages: list[Damage] = []
        root = self.path(key)
        done = 0
        with host_errors(f"verify {key}"):
            found = files_below(root)
            for entry in manifest.files:
                damages += _damage_of(key, root, entry, found.get(entry.path), progress, (done, manifest.size))
                done += entry.size
            extra = found.keys() - {entry.path for entry in manifest.files} - manifest.links.keys() - {MANIFEST}
        damages += [one for one in self.losses(manifest) if one.path in manifest.links]
        damages += [Damage(key, path, "extra", "it is not in the manifest") for path in sorted(extra)]
        return damages


def hash_file(path: Path, progress: Progress = silent, done: int = 0, total: int = 0) -> str:
    """SHA-256 of a file in lowercase hex; reports `done` plus what it has read of `total`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress("hashing", done, total)
    return digest.hexdigest()


def hash_all(root: Path, progress: Progress) -> tuple[FileEntry, ...]:
    """Every file below `root` that is no link, read, by path."""
    found = {path: status for path, status in files_below(root).items() if not is_link(status)}
    total = sum(status.st_size for status in found.values())
    done = 0
    entries = []
    for path, status in sorted(found.items()):
        sha256 = hash_file(root / path, progress, done, total)
        entries.append(FileEntry(path=path, size=status.st_size, sha256=sha256))
        done += status.st_size
    return tuple(entries)


def is_inside(path: str) -> bool:
    """Whether a relative path can be that of an artifact's file."""
    parts = path.split("/")
    return all(part not in ("", ".", "..") for part in parts) and path != MANIFEST


def files_below(root: Path) -> dict[str, os.stat_result]:
    """Everything below `root` that is no directory, by relative path; links are not followed."""
    found = {}
    for directory, subdirectories, names in os.walk(root):
        for name in names + [name for name in subdirectories if (Path(directory) / name).is_symlink()]:
            path = Path(directory) / name
            # It may be gone by now: others work in the same store.
            with suppress(FileNotFoundError):
                found[path.relative_to(root).as_posix()] = path.lstat()
    return found


def is_link(status: os.stat_result) -> bool:
    """Whether lstat has seen a symbolic link."""
    return stat.S_ISLNK(status.st_mode)


def _leads_to(path: Path, target: str) -> bool:
    try:
        return str(path.readlink()) == target and path.exists()
    except OSError:
        return False


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
        return Damage(key, entry.path, "unreadable", "it is not a regular file")
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

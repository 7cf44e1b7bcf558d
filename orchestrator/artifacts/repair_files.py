"""Putting right a finished entry that lost something, file by file, while engines read the rest of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.artifacts.disk import fsync_directory, fsync_file, host_errors
from orchestrator.artifacts.store import Store
from orchestrator.artifacts.store_directory import MANIFEST, files_below
from orchestrator.core.artifact import FileEntry, Manifest
from orchestrator.core.progress import Progress
from orchestrator.errors import SourceError


@contextmanager
def repairing(store: Store, key: str, progress: Progress, fresh: bool) -> Iterator[Path]:
    """The turn to repair `key`, and a directory for what is made anew: the one that it is built in, which keeps what an
    earlier try has brought there, unless `fresh`. It is gone when all went well."""
    work = store.partial(key)
    with store.locked(key, progress), host_errors(f"repair {key}"):
        if fresh and work.exists():
            store.discard(work)
        work.mkdir(parents=True, exist_ok=True)
        yield work
        store.discard(work)


def put_in_place(store: Store, manifest: Manifest, work: Path, files: Sequence[FileEntry]) -> None:
    """Moves `files` from `work` to their names in the entry, each by one rename, so that a reader has the old file or
    the new one. SourceError, and nothing is moved, if one is not what the manifest says."""
    expected = {entry.path: entry for entry in manifest.files}
    for file in files:
        if file != expected.get(file.path):
            raise SourceError(
                f"{file.path}, built again, has SHA-256 {file.sha256}, and the manifest says "
                f"{expected[file.path].sha256 if file.path in expected else 'nothing about it'}",
                hint=f"Nothing was replaced. orch artifacts rm {manifest.key} removes the old one.",
            )
    root = store.own.path(manifest.key)
    for file in files:
        target = root / file.path
        _make_way(store, root, target)
        fsync_file(work / file.path)
        (work / file.path).replace(target)
        fsync_directory(target.parent)


def drop_extra(store: Store, key: str, paths: Iterable[str]) -> None:
    """Removes what does not belong to the entry."""
    with host_errors(f"repair {key}"):
        for path in paths:
            (store.own.path(key) / path).unlink(missing_ok=True)


def keep_for_rebuild(store: Store, key: str, progress: Progress) -> None:
    """Puts the files of an entry whose manifest is lost where it is built, by links: what is sound is not fetched
    again, and the entry stays as it is until the new one takes its name."""
    with store.locked(key, progress), host_errors(f"repair {key}"):
        root, work = store.own.path(key), store.partial(key)
        for path, status in files_below(root).items():
            if path != MANIFEST and stat.S_ISREG(status.st_mode):
                (work / path).parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    os.link(root / path, work / path)


def _make_way(store: Store, root: Path, target: Path) -> None:
    """Whatever has taken the place of a file, or of a directory on the way to it, goes."""
    for parent in reversed(target.relative_to(root).parents[:-1]):
        if os.path.lexists(root / parent) and (not (root / parent).is_dir() or (root / parent).is_symlink()):
            (root / parent).unlink()
    if target.is_dir() and not target.is_symlink():
        store.discard(target)
    target.parent.mkdir(parents=True, exist_ok=True)

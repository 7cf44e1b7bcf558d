"""One file with all that a profile needs where there is no network: written whole or not at all, read with suspicion.

core/image_archive.py says what is in it. Sizes and hashes of the exported images are known only after they were
written, so the lock, which comes first, has room left, and is written again at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from orchestrator.core.artifact import FileEntry, Manifest, artifact_key
from orchestrator.core.image_archive import (
    CALIBRATION,
    FORMAT,
    LOCK,
    READABLE,
    ArchiveLock,
    SavedImage,
    entry_member,
    image_member,
    outside,
)
from orchestrator.core.progress import Progress
from orchestrator.drivers.base import Store
from orchestrator.drivers.docker.images import DockerImages
from orchestrator.drivers.files import sync_directory
from orchestrator.errors import HostError, SourceError

CHUNK = 1 << 20
# More digits than the lock had when its place was taken.
ROOM_PER_IMAGE = 64
# Headers, padding and the lock.
ROOM = 16 << 20


def hashed(directory: Path, names: Sequence[str], progress: Progress) -> tuple[FileEntry, ...]:
    """Files of a directory with their size and SHA-256. HostError when one cannot be read."""
    found, done = [], 0
    with _disk(f"read {directory}"):
        total = sum((directory / name).stat().st_size for name in names)
        for name in sorted(names):
            digest, before = hashlib.sha256(), done
            with (directory / name).open("rb") as file:
                while block := file.read(CHUNK):
                    digest.update(block)
                    done += len(block)
                    progress(f"hashing {name}", done, total)
            found.append(FileEntry(path=name, size=done - before, sha256=digest.hexdigest()))
    return tuple(found)


def write_archive(
    file: Path, lock: ArchiveLock, sources: Mapping[str, Path], images: DockerImages, progress: Progress
) -> ArchiveLock:
    """Write `file`; the lock with the sizes and hashes that it got. `sources` are the directories of the entries, by
    key, and by CALIBRATION the file of its texts.

    HostError: no room, a disk or daemon that fails. SourceError: an entry is not what its manifest says.
    """
    with _disk(f"write {file}"):
        free = shutil.disk_usage(file.absolute().parent).free
    if free < lock.bytes_inside + ROOM:
        raise HostError(
            f"{file} needs about {lock.bytes_inside / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there.",
            hint="Name a file on a larger disk.",
        )
    partial = file.with_name(f".{file.name}.part")
    try:
        with _disk(f"write {file}"), partial.open("w+b") as out:
            lock = _Writer(out, lock, progress).write(sources, images)
            out.flush()
            os.fsync(out.fileno())
        with _disk(f"write {file}"):
            partial.replace(file)
            sync_directory(file.absolute().parent)
    finally:
        partial.unlink(missing_ok=True)
    return lock


class _Writer:
    def __init__(self, out: BinaryIO, lock: ArchiveLock, progress: Progress) -> None:
        self._out = out
        self._lock = lock
        self._progress = progress
        self._total = lock.bytes_inside
        self._done = 0

    def write(self, sources: Mapping[str, Path], images: DockerImages) -> ArchiveLock:
        room = len(_lock_bytes(self._lock)) + ROOM_PER_IMAGE * (len(self._lock.images) + 1)
        self._write_lock(room)
        if self._lock.calibration is not None:
            self._file(CALIBRATION, sources[CALIBRATION], self._lock.calibration)
        for manifest in self._lock.entries:
            for entry in manifest.files:
                self._file(entry_member(manifest.key, entry.path), sources[manifest.key] / entry.path, entry)
        saved = tuple(self._image(number, image, images) for number, image in enumerate(self._lock.images))
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))
        self._lock = self._lock.model_copy(update={"images": saved, "total": self._out.tell()})
        self._out.seek(0)
        self._write_lock(room)
        return self._lock

    def _write_lock(self, room: int) -> None:
        self._out.write(_header(LOCK, room))
        self._out.write(_lock_bytes(self._lock).ljust(room))
        self._pad(room)

    def _file(self, member: str, source: Path, entry: FileEntry) -> None:
        self._out.write(_header(member, entry.size))
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as file:
            while block := file.read(CHUNK):
                self._block(f"saving {member}", block)
                digest.update(block)
                size += len(block)
        if (size, digest.hexdigest()) != (entry.size, entry.sha256):
            raise SourceError(f"{source} is damaged, or has just changed.", hint="orch artifacts verify")
        self._pad(size)

    def _image(self, number: int, image: SavedImage, images: DockerImages) -> SavedImage:
        begin = self._out.tell()
        self._out.write(_header(image_member(number), 0))
        digest, size = hashlib.sha256(), 0
        for block in images.export(image.id, self._progress):
            self._block(f"saving {image.name}", block)
            digest.update(block)
            size += len(block)
        self._pad(size)
        end = self._out.tell()
        self._out.seek(begin)
        self._out.write(_header(image_member(number), size))
        self._out.seek(end)
        return image.model_copy(update={"archive_size": size, "sha256": digest.hexdigest()})

    def _block(self, what: str, block: bytes) -> None:
        self._out.write(block)
        self._done += len(block)
        self._progress(what, min(self._done, self._total), self._total)

    def _pad(self, size: int) -> None:
        self._out.write(bytes(-size % tarfile.BLOCKSIZE))


class Archive:
    """A file that was written so, open for reading; `lock` agrees with the names and sizes of all that is in it."""

    def __init__(self, file: Path, tar: tarfile.TarFile) -> None:
        self._file = file
        self._tar = tar
        self.lock = _read_lock(file, tar)
        self._members = {member.name: member for member in tar.getmembers()}
        sizes = {name: member.size for name, member in self._members.items() if member.isreg() and name != LOCK}
        if self.lock.total != file.stat().st_size or sizes != self.lock.members:
            raise _damaged(file, "it is cut off, or something was added to it")
        for manifest in self.lock.entries:
            keys = [artifact_key(manifest.recipe, manifest.source, brought=brought) for brought in (False, True)]
            if manifest.key not in keys or any(outside(manifest)):
                raise _damaged(file, f"it holds an entry {manifest.key} that no such orch makes")

    def load(self, store: Store, images: DockerImages, progress: Progress) -> tuple[list[str], list[str]]:
        """Put all of it into place; what was loaded, and what was here. SourceError when a hash is wrong: then what
        is wrong is nowhere, and what was loaded before is whole."""
        missing = [manifest for manifest in self.lock.entries if store.get(manifest.key) is None]
        self._check_room(store, sum(manifest.size for manifest in missing))
        here = [manifest.key for manifest in self.lock.entries if manifest not in missing]
        absent = [number for number, image in enumerate(self.lock.images) if not images.adopt(image)]
        here += [image.name for number, image in enumerate(self.lock.images) if number not in absent]
        for number in absent:
            # The daemon is not given what may be damaged.
            for _ in self._blocks(image_member(number), self.lock.images[number].sha256, "checking", progress):
                pass
        for manifest in missing:
            self._load_entry(manifest, store, progress)
        for number in absent:
            self._load_image(number, images, progress)
        return [*(manifest.key for manifest in missing), *(self.lock.images[n].name for n in absent)], here

    def texts(self, progress: Progress) -> bytes | None:
        """The texts that the profile is calibrated with; None where it brings none. SourceError when they are not what
        was saved."""
        if self.lock.calibration is None:
            return None
        return b"".join(self._blocks(CALIBRATION, self.lock.calibration.sha256, "loading", progress))

    def _check_room(self, store: Store, size: int) -> None:
        place = store.path("any").parent
        while not place.exists():
            place = place.parent
        with _disk(f"use {place}"):
            free = shutil.disk_usage(place).free
        if free < size:
            raise HostError(
                f"The store needs {size / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free at {place}.",
                hint="Free some space, or set ORCH_HOME to a directory on a larger disk.",
            )

    def _load_entry(self, manifest: Manifest, store: Store, progress: Progress) -> None:
        with store.building(manifest.key, progress, fresh=True) as building:
            if building.manifest is not None:
                return
            building.expect(manifest.size)
            try:
                with _disk(f"write {building.work}"):
                    for entry in manifest.files:
                        target = building.work / entry.path
                        target.parent.mkdir(parents=True, exist_ok=True)
                        member = entry_member(manifest.key, entry.path)
                        with target.open("wb") as out:
                            for block in self._blocks(member, entry.sha256, "loading", progress):
                                out.write(block)
            except BaseException:
                # Others go on with what they find here.
                shutil.rmtree(building.work, ignore_errors=True)
                raise
            building.finish(manifest.recipe, manifest.source, manifest.builder, manifest.files, progress)

    def _load_image(self, number: int, images: DockerImages, progress: Progress) -> None:
        image, sent = self.lock.images[number], 0

        def blocks() -> Iterator[bytes]:
            nonlocal sent
            for block in self._blocks(image_member(number), image.sha256, "loading", lambda *_: None):
                yield block
                sent += len(block)

        images.load(image, blocks(), lambda what, *_: progress(what, sent, image.archive_size))

    def _blocks(self, name: str, sha256: str, doing: str, progress: Progress) -> Iterator[bytes]:
        """A member's bytes; SourceError at their end when they are not what the lock says."""
        member = self._members[name]
        digest, done = hashlib.sha256(), 0
        with _disk(f"read {self._file}"), _opened(self._tar, member) as file:
            while block := file.read(CHUNK):
                digest.update(block)
                done += len(block)
                progress(f"{doing} {name}", done, member.size)
                yield block
        if (done, digest.hexdigest()) != (member.size, sha256):
            raise _damaged(self._file, f"{name} is not what was saved")


@contextmanager
def opened_archive(file: Path) -> Iterator[Archive]:
    """Open a file of `orch images save`. SourceError when it is none, of another format, cut off or damaged."""
    try:
        with _disk(f"read {file}"):
            tar = tarfile.open(file, "r:")  # noqa: SIM115  closed below
    except (tarfile.TarError, EOFError) as error:
        raise _foreign(file) from error
    with tar:
        try:
            with _disk(f"read {file}"):
                archive = Archive(file, tar)
        except tarfile.TarError as error:
            raise _damaged(file, str(error)) from error
        yield archive


def _read_lock(file: Path, tar: tarfile.TarFile) -> ArchiveLock:
    first = tar.next()
    if first is None or first.name != LOCK:
        raise _foreign(file)
    try:
        with _opened(tar, first) as inside:
            value: Any = json.loads(inside.read())
        if isinstance(value, dict) and isinstance(value.get("format"), int) and value["format"] not in READABLE:
            raise SourceError(
                f"{file} has the format {value['format']}; this orch reads {FORMAT}.",
                hint=f"Use the version of orch that made it: {value.get('orch', 'it does not say')}.",
            )
        return ArchiveLock.model_validate(value)
    except ValueError as error:
        raise _damaged(file, f"its {LOCK} cannot be read") from error


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    if file is None:
        raise tarfile.ReadError(f"{member.name} is not a regular file")
    return file


def _lock_bytes(lock: ArchiveLock) -> bytes:
    return (lock.model_dump_json(indent=1) + "\n").encode()


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


@contextmanager
def _disk(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"Cannot {doing}: {error.strerror or error}.", hint="Is the disk full, or does this user lack the right?"
        ) from error


def _foreign(file: Path) -> SourceError:
    return SourceError(f"{file} was not made by orch images save.", hint="orch images save FILE makes such a file.")


def _damaged(file: Path, why: str) -> SourceError:
    return SourceError(f"{file} is damaged: {why}.", hint="Copy it again, or save it again where it was made.")

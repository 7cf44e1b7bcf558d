"""The directory that files are fetched into: which of them are there, and where incomplete ones lie."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from orchestrator.core.artifact import FileEntry
from orchestrator.core.progress import Progress
from orchestrator.core.weights import HubFile
from orchestrator.drivers.files import read_json, sync_directory, write_json
from orchestrator.drivers.hub.part import RECORD, Part, arrived, piece_size
from orchestrator.drivers.hub.sums import BLOCK, Sums

# Where incomplete files lie inside the directory, named by their hash: bytes of another commit are never continued.
PARTIAL: Final = ".partial"
# What was found right here, by path, so that a fetch that goes on does not read it again.
RIGHT: Final = "right.json"


class Here:
    """The files of a snapshot in `into`, incomplete ones in pieces of `piece` bytes or less. Raises OSError.

    What lies among the incomplete ones and belongs to none of them is removed: it was of another commit.
    """

    def __init__(self, into: Path, files: Sequence[HubFile], piece: int) -> None:
        self._into, self._files, self._piece = into, files, piece
        self._partial = into / PARTIAL
        self._partial.mkdir(parents=True, exist_ok=True)
        self._right: dict[str, Any] = self._read_right()
        known = {name for file in files for name in (_name(file), _name(file) + RECORD)} | {RIGHT}
        for path in self._partial.iterdir():
            if path.name not in known:
                path.unlink()

    def check(self, progress: Progress, what: str) -> dict[str, FileEntry]:
        """The files that are there and right, by path. Reads them, unless that was done by a fetch that goes on."""
        there = [file for file in self._files if self._has_size(file)]
        found = {file.path: entry for file in there if (entry := self._known(file)) is not None}
        unknown = [file for file in there if file.path not in found]
        done, total = 0, sum(file.size for file in unknown)
        for file in unknown:
            sums = Sums(file)
            with (self._into / file.path).open("rb") as data:
                while block := data.read(BLOCK):
                    sums.add(block)
                    done += len(block)
                    progress(f"{what}: checking what is here", done, total)
            if sums.problem() is None:
                found[file.path] = sums.entry()
                self._remember(file, sums.entry())
        return found

    def missing(self, found: dict[str, FileEntry]) -> int:
        """Bytes that the disk has to take in still."""
        absent = [file for file in self._files if file.path not in found]
        # By place: files with the same bytes share the incomplete one, which becomes the first of them.
        begun = {_name(file): arrived(self.place(file), file.size, self._piece_of(file)) for file in absent}
        return sum(file.size for file in absent) - sum(begun.values())

    def place(self, file: HubFile) -> Path:
        """Where it lies while it is incomplete."""
        return self._partial / _name(file)

    def open(self, file: HubFile) -> Part:
        """What there is of an incomplete file."""
        return Part(self.place(file), file.size, self._piece_of(file))

    def finish(self, file: HubFile, part: Part, entry: FileEntry) -> None:
        """Gives a whole file, which is right and flushed, its name."""
        part.finish(self._into / file.path)
        self._remember(file, entry)

    def settle(self) -> None:
        """All is there: makes the names as durable as the files, and removes what only helped."""
        for directory in {self._into, *((self._into / file.path).parent for file in self._files)}:
            sync_directory(directory)
        shutil.rmtree(self._partial)

    def _piece_of(self, file: HubFile) -> int:
        return piece_size(file.size, self._piece)

    def _has_size(self, file: HubFile) -> bool:
        path = self._into / file.path
        return path.is_file() and not path.is_symlink() and path.stat().st_size == file.size

    def _known(self, file: HubFile) -> FileEntry | None:
        match self._right.get(file.path):
            case {"stamp": stamp, "sha256": str(sha256)} if stamp == self._stamp(file):
                return FileEntry(path=file.path, size=file.size, sha256=sha256)
        return None

    def _remember(self, file: HubFile, entry: FileEntry) -> None:
        self._right[file.path] = {"stamp": self._stamp(file), "sha256": entry.sha256}
        write_json(self._partial / RIGHT, self._right)

    def _stamp(self, file: HubFile) -> list[object]:
        """The same as long as nobody has touched the file, and the hub states the same of it."""
        stat = (self._into / file.path).stat()
        return [_name(file), stat.st_size, stat.st_mtime_ns, stat.st_ino]

    def _read_right(self) -> dict[str, Any]:
        try:
            value = read_json(self._partial / RIGHT)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def _name(file: HubFile) -> str:
    return file.sha256 or file.blob_id or ""

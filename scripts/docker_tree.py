"""Root file systems put together from files of this machine, as tar archives for Docker: see docker_images.py."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PIECE = 1 << 20


@dataclass(frozen=True)
class Link:
    """A symbolic link in an image."""

    target: str


@dataclass(frozen=True)
class Directory:
    """A directory in an image."""

    mode: int = 0o755


# A path on this machine stands for its file's contents, links resolved; bytes are contents.
Source = Path | Link | Directory | bytes


@dataclass
class Tree:
    """A root file system: where in the image, and what from. Everything belongs to root and may be read by all."""

    entries: dict[str, Source] = field(default_factory=dict)

    def put(self, place: str | Path, source: Source) -> None:
        """One entry with the directories above it; a place that is taken stays as it is."""
        place = str(place)
        if place in self.entries:
            return
        parent = place.rpartition("/")[0]
        if parent and parent not in self.entries:
            self.put(parent, Directory())
        self.entries[place] = source

    def put_here(self, path: Path) -> None:
        """A file of this machine under its own name, in the directory that it is really in (/lib may be a link)."""
        self.put(path.parent.resolve() / path.name, path)

    def copy(self, source: Path, place: str, left_out: Callable[[Path], bool]) -> None:
        """A directory of this machine with all below it; links stay links."""
        for directory, names, files in os.walk(source):
            here = Path(directory)
            names[:] = [name for name in names if not left_out(here / name)]
            there = place + directory.removeprefix(str(source))
            self.put(there, Directory())
            for name in [*files, *(name for name in names if (here / name).is_symlink())]:
                path = here / name
                if not left_out(path):
                    self.put(f"{there}/{name}", Link(str(path.readlink())) if path.is_symlink() else path)

    def put_libraries(self) -> None:
        """The shared libraries that the entries' programs and libraries need from this machine, and the loader.

        What the loader does not find is looked for by nobody here: libraries of a package name each other without
        a path when the package loads them in order, or are for devices that are not there.
        """
        files = {str(source) for source in self.entries.values() if isinstance(source, Path)}
        asked = [file for file in files if ".so" in file or _is_elf(file)]
        done = subprocess.run(["ldd", *asked], capture_output=True, text=True, check=False)
        for found in re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", done.stdout, re.MULTILINE):
            real = str(Path(found).parent.resolve() / Path(found).name)
            if real not in files and str(Path(found).resolve()) not in files:
                self.put_here(Path(found))

    def digest(self) -> str:
        """A hash over all that the archive would hold, files by size and time; compiled Python comes and goes."""
        hashed = hashlib.sha256()
        for place, source in sorted(self.entries.items()):
            if "/__pycache__" in place:
                continue
            hashed.update(f"{place} ".encode())
            if isinstance(source, Path):
                seen = source.stat()
                hashed.update(f"{seen.st_size} {seen.st_mtime_ns}\n".encode())
            else:
                hashed.update(f"{source!r}\n".encode())
        return hashed.hexdigest()

    def archive(self) -> Iterator[bytes]:
        """The tree as a tar archive, in pieces of about PIECE bytes. OSError when a file changes while it is read."""
        gathered = bytearray()
        for place, source in sorted(self.entries.items()):
            for data in _tar_entry(place.lstrip("/"), source):
                gathered += data
                if len(gathered) >= PIECE:
                    yield bytes(gathered)
                    gathered.clear()
        yield bytes(gathered) + b"\0" * 1024


def _tar_entry(name: str, source: Source) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    if isinstance(source, Link):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, source.target, 0o777
    elif isinstance(source, Directory):
        info.type, info.mode = tarfile.DIRTYPE, source.mode
    elif isinstance(source, bytes):
        info.size, info.mode = len(source), 0o755 if source.startswith(b"#!") else 0o644
    else:
        seen = source.stat()
        # Compiled Python is checked against its source's time.
        info.size, info.mtime = seen.st_size, int(seen.st_mtime)
        info.mode = 0o755 if seen.st_mode & stat.S_IXUSR else 0o644
    yield info.tobuf(tarfile.GNU_FORMAT)
    if isinstance(source, bytes):
        yield source
    elif isinstance(source, Path):
        with source.open("rb") as file:
            left = info.size
            while left:
                data = file.read(min(left, PIECE))
                if not data:
                    raise OSError(f"{source} became shorter while it was read")
                left -= len(data)
                yield data
    yield b"\0" * (-info.size % 512)


def _is_elf(file: str) -> bool:
    if not os.access(file, os.X_OK):
        return False
    with Path(file).open("rb") as opened:
        return opened.read(4) == b"\x7fELF"

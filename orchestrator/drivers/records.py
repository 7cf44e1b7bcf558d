"""What the world cannot tell, on disk: what is wanted, what was done, and who is at it now."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.core.deployment import Desired, to_record
from orchestrator.core.part import Unfit
from orchestrator.core.profile import ReadSettings
from orchestrator.drivers.files import read_json, sync_directory, write_atomic, write_json
from orchestrator.errors import HostError, LockHeld, why

JOURNAL_LIMIT = 5_000_000
# struct flock: l_type, l_whence, l_start, l_len, l_pid; a write lock of the whole file.
_KIND = struct.Struct("h")
_WHOLE_FILE = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class Records:
    """`ROOT/desired/PROFILE.json`, one file each, replaced whole. `settings` reads what profiles say of engines."""

    def __init__(self, root: Path, settings: ReadSettings) -> None:
        self._desired = root / "desired"
        self._starts = root / "starts.json"
        self._notes = root
        self._settings = settings

    def desired(self) -> dict[str, Desired]:
        """What is wanted, by profile name; files that cannot be read are left out (see `unreadable`)."""
        return {path.stem: found for path, found in self._read() if isinstance(found, Desired)}

    def unreadable(self) -> tuple[str, ...]:
        """A sentence for each file that is not what it should be."""
        return tuple(f"{path} cannot be read: {found}" for path, found in self._read() if isinstance(found, str))

    def _read(self) -> Iterator[tuple[Path, Desired | str]]:
        for path in sorted(self._desired.glob("*.json")) if self._desired.is_dir() else ():
            try:
                yield path, Desired.from_record(read_json(path), self._settings)
            except Unfit as error:
                yield path, error.problems[0]["msg"]
            except ValueError as error:
                yield path, str(error)

    def record(self, profile: str, desired: Desired | None) -> None:
        """Write what is wanted of a profile; None removes it. What is written already is not written again."""
        path = self._desired / f"{profile}.json"
        if desired is not None:
            text = (to_record(desired, indent=2) + "\n").encode()
            if not path.is_file() or path.read_bytes() != text:
                write_atomic(path, text)
        elif path.exists():
            path.unlink()
            sync_directory(path.parent)

    def starts(self) -> Mapping[str, float]:
        """How many seconds what was started took to answer, the last time, by Deployment.start_key. A file that cannot
        be read says nothing: it is only what is told to people beforehand."""
        try:
            known = read_json(self._starts)
        except (HostError, ValueError):
            return {}
        found = known.items() if isinstance(known, dict) else ()
        return {key: float(seconds) for key, seconds in found if isinstance(seconds, int | float)}

    def note_start(self, key: str, seconds: float) -> None:
        """Remember that."""
        write_json(self._starts, {**self.starts(), key: round(seconds, 1)})

    def note(self, kind: str, profile: str, value: object) -> None:
        """Keep what was found out about a profile's engines, in place of what was of this kind: KIND/PROFILE.json."""
        write_json(self._notes / kind / f"{profile}.json", value)

    def noted(self, kind: str, profile: str) -> object:
        """That; None where there is none, or it cannot be read."""
        try:
            return read_json(self._notes / kind / f"{profile}.json")
        except (HostError, ValueError):
            return None


class LockFiles:
    """`ROOT/locks/`: where the lock files are that were written or checked here, a file each, which needs no lock."""

    def __init__(self, root: Path) -> None:
        self._root = root / "locks"

    def remember(self, path: Path) -> None:
        """Know of this lock file from now on."""
        text = str(path.absolute())
        write_atomic(self._root / hashlib.sha256(os.fsencode(text)).hexdigest()[:16], os.fsencode(text))

    def known(self) -> tuple[Path, ...]:
        """Those that are there still, sorted."""
        return tuple(sorted(path for path in self._notes().values() if path.is_file()))

    def forget_gone(self) -> None:
        """Know no longer of those that are gone."""
        for note, path in self._notes().items():
            if not path.is_file():
                note.unlink(missing_ok=True)

    def _notes(self) -> dict[Path, Path]:
        notes = self._root.iterdir() if self._root.is_dir() else ()
        return {note: Path(os.fsdecode(note.read_bytes())) for note in notes if not note.name.startswith(".")}


class Journal:
    """`journal.jsonl`: a line per event, appended; a large one is moved to `journal.1.jsonl`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, event: Mapping[str, Any]) -> None:
        """Add an event, stamped with the time (UTC) and this process."""
        line = json.dumps({"at": _now(), "pid": os.getpid(), **event}) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > JOURNAL_LIMIT:
                self._path.replace(self._path.with_suffix(".1.jsonl"))
            with self._path.open("a") as file:
                file.write(line)
        except OSError as error:
            raise HostError(f"The journal {self._path} cannot be written: {why(error)}.") from error


@contextmanager
def exclusive(path: Path, doing: str) -> Iterator[None]:
    """The one lock of a data directory, held while the world is changed. LockHeld says who has it, since when.

    The kernel lets go of it when its holder dies, however it dies. It is two locks: flock keeps others out, an orch
    of an earlier version too; the other can be asked about without being taken, so that looking hinders nobody.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        hint = "Give this user the right to it, or set ORCH_HOME to a directory of your own."
        raise HostError(f"{path} cannot be opened: {why(error)}.", hint=hint) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(os.pread(descriptor, 4096, 0)) from None
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "since": _now(), "doing": doing}).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def at_work(path: Path) -> str:
    """Who holds the lock, in a sentence; empty when nobody does. It takes none itself."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        there = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE_FILE)
        return "" if there[: _KIND.size] == _KIND.pack(fcntl.F_UNLCK) else _held(os.pread(descriptor, 4096, 0)).message
    finally:
        os.close(descriptor)


def _held(note: bytes) -> LockHeld:
    hint = "Wait for it to end, then run the command again."
    try:
        holder = json.loads(note)
        since = datetime.fromisoformat(holder["since"]).astimezone().strftime("%H:%M:%S")
        who = f"`orch {holder['doing']}` (pid {holder['pid']}) has been at work since {since}."
    except (ValueError, KeyError, TypeError):
        who = "Another orch is at work."
    return LockHeld(who, hint=hint)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

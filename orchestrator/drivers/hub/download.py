"""One file from the hub, byte by byte: the network in a thread, hashes as they come, progress all the while."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Final, Self

from orchestrator.core.artifact import FileEntry
from orchestrator.core.progress import Progress
from orchestrator.core.weights import HubFile
from orchestrator.errors import HostError

TICK: Final = 0.2
REPORT_BYTES: Final = 1 << 20


class Meter:
    """Counts bytes over all files; reports every MiB or tick, which is also how a job is told to stop."""

    def __init__(self, progress: Progress, what: str, total: int) -> None:
        self._progress = progress
        self._what = what
        self._total = total
        self._reported = (0, time.monotonic())
        self.done = 0

    def add(self, size: int) -> None:
        self.done += size
        done, at = self._reported
        if abs(self.done - done) >= REPORT_BYTES or time.monotonic() - at >= TICK:
            self.report()

    def report(self) -> None:
        self._reported = (self.done, time.monotonic())
        self._progress(self._what, self.done, self._total)

    def pause(self, seconds: float) -> None:
        """Waits, reporting all the while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.report()
            time.sleep(min(TICK, left))


class Sums:
    """Size and hashes of a file's bytes as they come, against what the hub states of it."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self.restart()

    def restart(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        # A git blob id is over the size too; a wrong size is found before the id is looked at.
        self._blob = hashlib.sha1(b"blob %d\0" % self._file.size, usedforsecurity=False)

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._sha256.update(chunk)
        if self._file.sha256 is None:
            self._blob.update(chunk)

    def read(self, path: Path, size: int, meter: Meter) -> None:
        """Adds what is on disk already: the first `size` bytes."""
        with path.open("rb") as data:
            while chunk := data.read(min(REPORT_BYTES, size - self.size)):
                self.add(chunk)
                meter.add(len(chunk))

    def problem(self) -> str | None:
        """What differs from the hub's word, if anything."""
        name, expected, got = "SHA-256", self._file.sha256, self._sha256.hexdigest()
        if expected is None:
            name, expected, got = "git blob id", self._file.blob_id, self._blob.hexdigest()
        if self.size != self._file.size:
            return f"expected {self._file.size} bytes, got {self.size}"
        return None if got == expected else f"expected {name} {expected}, got {got}"

    def entry(self) -> FileEntry:
        return FileEntry(path=self._file.path, size=self.size, sha256=self._sha256.hexdigest())


class Stream:
    """One GET, read by a thread of its own, so that its consumer calls `tick` whatever the network does.

    A read from a stalled connection ends after ten seconds at the earliest, and a signal's flag does not wake it. When
    the consumer leaves, the thread ends with its next bytes or its timeout; it is a daemon and touches no file.
    """

    def __init__(self, url: str, headers: dict[str, str], tick: Callable[[], None]) -> None:
        self._url, self._headers, self._tick = url, headers, tick
        self._lane: Queue[dict[str, str] | bytes | Exception] = Queue(maxsize=64)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._read, name="hub-stream", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()

    def extent(self) -> tuple[int, int | None]:
        """Where the body begins in the file, and the file's size as far as the answer tells."""
        headers = self._take()
        assert isinstance(headers, dict)
        if found := re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("content-range", "")):
            return int(found[1] or 0), None if found[2] == "*" else int(found[2])
        length = headers.get("content-length") if "content-encoding" not in headers else None
        return 0, int(length) if length else None

    def chunk(self) -> bytes:
        """The next bytes; none at the end."""
        chunk = self._take()
        assert isinstance(chunk, bytes)
        return chunk

    def _take(self) -> dict[str, str] | bytes:
        while True:
            try:
                item = self._lane.get(timeout=TICK)
            except Empty:
                self._tick()
                if not self._thread.is_alive() and self._lane.empty():
                    raise HostError(
                        "The download ended without a word.", "this is a bug in orch: please report it"
                    ) from None
                continue
            if isinstance(item, Exception):
                raise item
            return item

    def _read(self) -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        try:
            with get_session().stream("GET", self._url, headers=self._headers, timeout=timeout) as response:
                if response.is_error and response.status_code != 416:
                    response.read()
                    hf_raise_for_status(response)
                self._put(dict(response.headers))
                for chunk in response.iter_bytes():
                    if chunk and not self._put(chunk):
                        return
            self._put(b"")
        except network_errors() as error:
            self._put(error)

    def _put(self, item: dict[str, str] | bytes | Exception) -> bool:
        """False when nobody is there to take it."""
        while not self._left.is_set():
            try:
                self._lane.put(item, timeout=TICK)
            except Full:
                continue
            return True
        return False


def network_errors() -> tuple[type[Exception], ...]:
    """What the client raises for the network and for HTTP, whichever HTTP library it was built on."""
    from huggingface_hub import errors

    return (errors.HTTPError, errors.OfflineModeIsEnabled)  # type: ignore[attr-defined]

"""Several files at once, and of a large one several pieces: who asks for what, what comes, what fails, what is tried
again.

Threads read the network (stream) and hash (sums); everything else, and every write, happens in the thread that waits
for them, so that it can leave at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Final
from urllib.parse import urlsplit

from orchestrator.core.artifact import FileEntry
from orchestrator.core.weights import HubFile
from orchestrator.drivers.hub.here import Here
from orchestrator.drivers.hub.http_errors import refused, retry_after, transient
from orchestrator.drivers.hub.meter import Meter, PartReport
from orchestrator.drivers.hub.part import Part
from orchestrator.drivers.hub.stream import LANE_ITEMS, TICK, Head, Lane, Stream, network_errors
from orchestrator.drivers.hub.sums import Follower, Sums
from orchestrator.errors import OrchError

# A whole file that twice was not what the hub states will not be the third time.
STRIKES: Final = 2


class UnlikeError(Exception):
    """Bytes that are not what the hub states; says what was expected and what came."""


@dataclass
class PieceRange:
    """Pieces `first` to `last` of a file, in one request; not before `due`, after so many failures in a row."""

    first: int
    last: int
    failures: int = 0
    due: float = 0.0


@dataclass
class FileDownload:
    """A file that is under way. `direct` is where its bytes were found last, `pending` what nobody asks for now;
    `pages` counts answers of something else since its last new bytes, `strikes` how often all of it was wrong."""

    file: HubFile
    part: Part
    follower: Follower
    pending: list[PieceRange]
    pages: int = 0
    strikes: int = 0
    ranged: bool = True
    direct: str = ""


@dataclass
class RangeRequest:
    """One request of a file's bytes: the next one that comes belongs at `at`, and the last one before `end`."""

    download: FileDownload
    piece_range: PieceRange
    at: int
    end: int
    direct: bool
    gained: int = 0


@dataclass(frozen=True)
class HubConnection:
    """How the hub is asked. `request` gives the address and the headers for a file from a byte to before another one
    (None: to its end), at an address that is known already or "".

    `pauses`: seconds before each new try after a failure or a page without a byte; `explain` makes the last failure an
    OrchError, `unlike` the last page.
    """

    request: Callable[[HubFile, int, int | None, str], tuple[str, dict[str, str]]]
    explain: Callable[[Exception, HubFile], OrchError]
    unlike: Callable[[str, HubFile], OrchError]
    pauses: Sequence[float]
    parallel: int


@dataclass
class Transfer:
    """Brings `files` to where they are to be."""

    files: Sequence[HubFile]
    here: Here
    connection: HubConnection
    meter: Meter
    entries: dict[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._waiting = list(self.files)
        self._downloads: list[FileDownload] = []
        self._requests: dict[Stream, RangeRequest] = {}
        self._lane: Lane = Queue(LANE_ITEMS)
        self._trouble = ""
        self._not_before = 0.0

    def run(self) -> dict[str, FileEntry]:
        """The entries by path, once all files are there and right. When it raises, what came stays."""
        self.meter.parts = self._parts
        try:
            while self._waiting or self._downloads:
                self._ask_for_more()
                with suppress(Empty):
                    self._take(*self._lane.get(timeout=self._patience()))
                self.meter.tick()
        finally:
            for stream in self._requests:
                stream.leave()
            for download in self._downloads:
                download.follower.leave()
                download.part.close()
        return self.entries

    def _parts(self) -> Iterator[PartReport]:
        for download in self._downloads:
            if any(request.download is download for request in self._requests.values()):
                yield download.file.path, download.part.arrived, download.file.size
        dues = [piece_range.due for download in self._downloads for piece_range in download.pending if piece_range.due]
        wait = max(self._not_before, min(dues, default=0.0)) - time.monotonic()
        if self._trouble and not self._requests and wait > 0:
            yield f"{self._trouble}: trying again in {wait:.0f} s", 0, 0

    def _patience(self) -> float:
        """Seconds until something may be to be done that no thread will tell of; TICK at most."""
        now = time.monotonic()
        dues = [
            max(piece_range.due, self._not_before) for download in self._downloads for piece_range in download.pending
        ]
        return min([TICK, *(due - now for due in dues if due > now)])

    # --- asking

    def _ask_for_more(self) -> None:
        while len(self._requests) < self.connection.parallel and time.monotonic() >= self._not_before:
            if (turn := self._next_turn()) is None:
                return
            download, piece_range = turn
            download.pending.remove(piece_range)
            at, end = download.part.span(piece_range.first, piece_range.last)
            until = None if end == download.file.size else end
            url, headers = self.connection.request(download.file, at, until, download.direct)
            stream = Stream(url, headers, self._lane)
            self._requests[stream] = RangeRequest(download, piece_range, at, end, direct=bool(download.direct))

    def _next_turn(self) -> tuple[FileDownload, PieceRange] | None:
        """What is to be asked for next: files in their order, and pieces in theirs, so that hashing keeps up."""
        now = time.monotonic()
        for download in self._downloads:
            asked = any(request.download is download for request in self._requests.values())
            for piece_range in download.pending:
                if piece_range.due <= now and (download.ranged or not asked):
                    return download, piece_range
        # Two files with the same bytes share the place of the incomplete one: the second one waits.
        busy = {download.part.path for download in self._downloads}
        for file in self._waiting:
            if self.here.place(file) not in busy and len(self._downloads) < 2 * self.connection.parallel:
                self._waiting.remove(file)
                self._open(file)
                return self._next_turn()
        return None

    def _open(self, file: HubFile) -> None:
        part = self.here.open(file)
        self._downloads.append(FileDownload(file, part, Follower(file, part, self._lane), self._all_ranges(part)))

    @staticmethod
    def _all_ranges(part: Part, due: float = 0.0) -> list[PieceRange]:
        spans = [(index, *part.span(index, index)) for index in range(len(part))]
        return [PieceRange(index, index, due=due) for index, begin, end in spans if begin < end]

    # --- what comes

    def _take(self, who: object, what: object) -> None:
        if isinstance(who, Stream) and (request := self._requests.get(who)) is not None:
            try:
                self._take_from(who, request, what)
            except UnlikeError as error:
                self._page(request.download, str(error))
        elif isinstance(who, Follower):
            download = next((download for download in self._downloads if download.follower is who), None)
            if download is not None and isinstance(what, OSError):
                raise what
            if download is not None and isinstance(what, Sums):
                self._whole(download, what)

    def _take_from(self, stream: Stream, request: RangeRequest, what: object) -> None:
        if isinstance(what, Head):
            self._head(stream, request, what)
        elif isinstance(what, bytes):
            self._bytes(request, what)
        elif what is None:
            self._end(stream, request)
        elif isinstance(what, network_errors()):
            self._failed(stream, request, what)
        elif isinstance(what, BaseException):
            raise what

    def _head(self, stream: Stream, request: RangeRequest, head: Head) -> None:
        download, size = request.download, request.download.file.size
        start, total = head.extent()
        if total is not None and total != size:
            raise UnlikeError(f"expected {size} bytes, got {total}")
        if head.status == 416 or (head.status == 206 and start != request.at):
            got = "none" if head.status == 416 else f"them from {start}"
            raise UnlikeError(f"expected bytes from {request.at}, got {got}")
        if head.status != 206 and (request.at, request.end) != (0, size):
            # It ignores ranges and sends all of it: what is there is passed over, and nobody else asks meanwhile.
            self._leave(download, but=stream)
            download.ranged, download.pending = False, []
            request.piece_range = PieceRange(0, len(download.part) - 1, request.piece_range.failures)
            request.at, request.end = 0, size
        if urlsplit(head.url).netloc != urlsplit(stream.url).netloc:
            download.direct = head.url

    def _bytes(self, request: RangeRequest, chunk: bytes) -> None:
        download = request.download
        if request.at + len(chunk) > request.end:
            raise UnlikeError(f"expected {request.end} bytes, got more")
        new = download.part.put(request.at, chunk)
        request.at += len(chunk)
        request.gained += new
        if new:
            download.pages = 0
        download.follower.reach(download.part.prefix)
        self.meter.add(new)

    def _end(self, stream: Stream, request: RangeRequest) -> None:
        del self._requests[stream]
        if request.at == request.end:
            return
        if not request.gained:
            raise UnlikeError(f"expected {request.download.file.size} bytes, got {request.at}")
        # Less than was asked for, as some proxies do: ask for the rest.
        self._again(request)

    def _failed(self, stream: Stream, request: RangeRequest, error: Exception) -> None:
        del self._requests[stream]
        download, piece_range = request.download, request.piece_range
        download.direct = ""
        if request.direct and not request.gained and not transient(error):
            # The address of a file's bytes is good for a while only; the hub gives a new one.
            self._again(request)
            return
        piece_range.failures = 0 if request.gained else piece_range.failures
        if piece_range.failures == len(self.connection.pauses) or not transient(error):
            raise self.connection.explain(error, download.file) from error
        asked = retry_after(error)
        pause = max(self.connection.pauses[piece_range.failures], asked or 0.0)
        piece_range.failures += 1
        piece_range.due = time.monotonic() + pause
        if asked is not None:
            self._not_before = max(self._not_before, piece_range.due)
        self._trouble = refused(error)
        self._again(request)

    def _page(self, download: FileDownload, problem: str) -> None:
        """An answer is of something else, such as a proxy's page. It passes as a failure of the hub does, and what came
        before it may well be right."""
        self._leave(download)
        if download.pages == len(self.connection.pauses):
            raise self.connection.unlike(problem, download.file)
        due = time.monotonic() + self.connection.pauses[download.pages]
        download.pages += 1
        self._trouble = "what came is not what the hub states"
        download.pending, download.direct = self._all_ranges(download.part, due), ""

    def _again(self, request: RangeRequest) -> None:
        request.download.pending.append(request.piece_range)
        request.download.pending.sort(key=lambda piece_range: piece_range.first)

    def _leave(self, download: FileDownload, but: Stream | None = None) -> None:
        """Wants nothing any more of what is asked for of a file."""
        for stream in [s for s, request in self._requests.items() if request.download is download and s is not but]:
            stream.leave()
            del self._requests[stream]

    # --- whole files

    def _whole(self, download: FileDownload, sums: Sums) -> None:
        if (problem := sums.problem()) is not None:
            # Nobody knows which bytes of it are wrong.
            self._strike(download, problem)
            return
        self.here.finish(download.file, download.part, sums.entry())
        self._downloads.remove(download)
        self.entries[download.file.path] = sums.entry()

    def _strike(self, download: FileDownload, problem: str) -> None:
        """A whole file is not what the hub states: all of it is asked for once more, and once only."""
        self._leave(download)
        download.strikes += 1
        if download.strikes == STRIKES:
            download.part.remove()
            raise self.connection.unlike(problem, download.file)
        download.follower.leave()
        self.meter.add(-download.part.arrived)
        download.part.restart()
        download.follower = Follower(download.file, download.part, self._lane)
        download.pending, download.direct = self._all_ranges(download.part), ""

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
from orchestrator.drivers.hub.meter import Meter, PartReport
from orchestrator.drivers.hub.part import Part
from orchestrator.drivers.hub.refusals import refused, retry_after, transient
from orchestrator.drivers.hub.stream import LANE_ITEMS, TICK, Head, Lane, Stream, network_errors
from orchestrator.drivers.hub.sums import Follower, Sums
from orchestrator.errors import OrchError

# A whole file that twice was not what the hub states will not be the third time.
STRIKES: Final = 2


class UnlikeError(Exception):
    """Bytes that are not what the hub states; says what was expected and what came."""


@dataclass
class Want:
    """Pieces `first` to `last` of a file, in one request; not before `due`, after so many failures in a row."""

    first: int
    last: int
    failures: int = 0
    due: float = 0.0


@dataclass
class Coming:
    """A file that is under way. `direct` is where its bytes were found last, `wants` what nobody asks for now; `pages`
    counts answers of something else since its last new bytes, `strikes` how often all of it was wrong."""

    file: HubFile
    part: Part
    follower: Follower
    wants: list[Want]
    pages: int = 0
    strikes: int = 0
    ranged: bool = True
    direct: str = ""


@dataclass
class Flight:
    """One request of a file's bytes: the next one that comes belongs at `at`, and the last one before `end`."""

    coming: Coming
    want: Want
    at: int
    end: int
    direct: bool
    gained: int = 0


@dataclass(frozen=True)
class Line:
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
    line: Line
    meter: Meter
    entries: dict[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._waiting = list(self.files)
        self._coming: list[Coming] = []
        self._flights: dict[Stream, Flight] = {}
        self._lane: Lane = Queue(LANE_ITEMS)
        self._trouble = ""
        self._not_before = 0.0

    def run(self) -> dict[str, FileEntry]:
        """The entries by path, once all files are there and right. When it raises, what came stays."""
        self.meter.parts = self._parts
        try:
            while self._waiting or self._coming:
                self._ask_for_more()
                with suppress(Empty):
                    self._take(*self._lane.get(timeout=self._patience()))
                self.meter.tick()
        finally:
            for stream in self._flights:
                stream.leave()
            for coming in self._coming:
                coming.follower.leave()
                coming.part.close()
        return self.entries

    def _parts(self) -> Iterator[PartReport]:
        for coming in self._coming:
            if any(flight.coming is coming for flight in self._flights.values()):
                yield coming.file.path, coming.part.arrived, coming.file.size
        dues = [want.due for coming in self._coming for want in coming.wants if want.due]
        wait = max(self._not_before, min(dues, default=0.0)) - time.monotonic()
        if self._trouble and not self._flights and wait > 0:
            yield f"{self._trouble}: trying again in {wait:.0f} s", 0, 0

    def _patience(self) -> float:
        """Seconds until something may be to be done that no thread will tell of; TICK at most."""
        now = time.monotonic()
        dues = [max(want.due, self._not_before) for coming in self._coming for want in coming.wants]
        return min([TICK, *(due - now for due in dues if due > now)])

    # --- asking

    def _ask_for_more(self) -> None:
        while len(self._flights) < self.line.parallel and time.monotonic() >= self._not_before:
            if (turn := self._next_turn()) is None:
                return
            coming, want = turn
            coming.wants.remove(want)
            at, end = coming.part.span(want.first, want.last)
            until = None if end == coming.file.size else end
            url, headers = self.line.request(coming.file, at, until, coming.direct)
            stream = Stream(url, headers, self._lane)
            self._flights[stream] = Flight(coming, want, at, end, direct=bool(coming.direct))

    def _next_turn(self) -> tuple[Coming, Want] | None:
        """What is to be asked for next: files in their order, and pieces in theirs, so that hashing keeps up."""
        now = time.monotonic()
        for coming in self._coming:
            asked = any(flight.coming is coming for flight in self._flights.values())
            for want in coming.wants:
                if want.due <= now and (coming.ranged or not asked):
                    return coming, want
        # Two files with the same bytes share the place of the incomplete one: the second one waits.
        busy = {coming.part.path for coming in self._coming}
        for file in self._waiting:
            if self.here.place(file) not in busy and len(self._coming) < 2 * self.line.parallel:
                self._waiting.remove(file)
                self._open(file)
                return self._next_turn()
        return None

    def _open(self, file: HubFile) -> None:
        part = self.here.open(file)
        self._coming.append(Coming(file, part, Follower(file, part, self._lane), self._all_wants(part)))

    @staticmethod
    def _all_wants(part: Part, due: float = 0.0) -> list[Want]:
        spans = [(index, *part.span(index, index)) for index in range(len(part))]
        return [Want(index, index, due=due) for index, begin, end in spans if begin < end]

    # --- what comes

    def _take(self, who: object, what: object) -> None:
        if isinstance(who, Stream) and (flight := self._flights.get(who)) is not None:
            try:
                self._take_from(who, flight, what)
            except UnlikeError as error:
                self._page(flight.coming, str(error))
        elif isinstance(who, Follower):
            coming = next((coming for coming in self._coming if coming.follower is who), None)
            if coming is not None and isinstance(what, OSError):
                raise what
            if coming is not None and isinstance(what, Sums):
                self._whole(coming, what)

    def _take_from(self, stream: Stream, flight: Flight, what: object) -> None:
        if isinstance(what, Head):
            self._head(stream, flight, what)
        elif isinstance(what, bytes):
            self._bytes(flight, what)
        elif what is None:
            self._end(stream, flight)
        elif isinstance(what, network_errors()):
            self._failed(stream, flight, what)
        elif isinstance(what, BaseException):
            raise what

    def _head(self, stream: Stream, flight: Flight, head: Head) -> None:
        coming, size = flight.coming, flight.coming.file.size
        start, total = head.extent()
        if total is not None and total != size:
            raise UnlikeError(f"expected {size} bytes, got {total}")
        if head.status == 416 or (head.status == 206 and start != flight.at):
            got = "none" if head.status == 416 else f"them from {start}"
            raise UnlikeError(f"expected bytes from {flight.at}, got {got}")
        if head.status != 206 and (flight.at, flight.end) != (0, size):
            # It ignores ranges and sends all of it: what is there is passed over, and nobody else asks meanwhile.
            self._leave(coming, but=stream)
            coming.ranged, coming.wants = False, []
            flight.want = Want(0, len(coming.part) - 1, flight.want.failures)
            flight.at, flight.end = 0, size
        if urlsplit(head.url).netloc != urlsplit(stream.url).netloc:
            coming.direct = head.url

    def _bytes(self, flight: Flight, chunk: bytes) -> None:
        coming = flight.coming
        if flight.at + len(chunk) > flight.end:
            raise UnlikeError(f"expected {flight.end} bytes, got more")
        new = coming.part.put(flight.at, chunk)
        flight.at += len(chunk)
        flight.gained += new
        if new:
            coming.pages = 0
        coming.follower.reach(coming.part.prefix)
        self.meter.add(new)

    def _end(self, stream: Stream, flight: Flight) -> None:
        del self._flights[stream]
        if flight.at == flight.end:
            return
        if not flight.gained:
            raise UnlikeError(f"expected {flight.coming.file.size} bytes, got {flight.at}")
        # Less than was asked for, as some proxies do: ask for the rest.
        self._again(flight)

    def _failed(self, stream: Stream, flight: Flight, error: Exception) -> None:
        del self._flights[stream]
        coming, want = flight.coming, flight.want
        coming.direct = ""
        if flight.direct and not flight.gained and not transient(error):
            # The address of a file's bytes is good for a while only; the hub gives a new one.
            self._again(flight)
            return
        want.failures = 0 if flight.gained else want.failures
        if want.failures == len(self.line.pauses) or not transient(error):
            raise self.line.explain(error, coming.file) from error
        asked = retry_after(error)
        pause = max(self.line.pauses[want.failures], asked or 0.0)
        want.failures += 1
        want.due = time.monotonic() + pause
        if asked is not None:
            self._not_before = max(self._not_before, want.due)
        self._trouble = refused(error)
        self._again(flight)

    def _page(self, coming: Coming, problem: str) -> None:
        """An answer is of something else, such as a proxy's page. It passes as a failure of the hub does, and what came
        before it may well be right."""
        self._leave(coming)
        if coming.pages == len(self.line.pauses):
            raise self.line.unlike(problem, coming.file)
        due = time.monotonic() + self.line.pauses[coming.pages]
        coming.pages += 1
        self._trouble = "something else came than the hub states"
        coming.wants, coming.direct = self._all_wants(coming.part, due), ""

    def _again(self, flight: Flight) -> None:
        flight.coming.wants.append(flight.want)
        flight.coming.wants.sort(key=lambda want: want.first)

    def _leave(self, coming: Coming, but: Stream | None = None) -> None:
        """Wants nothing any more of what is asked for of a file."""
        for stream in [s for s, flight in self._flights.items() if flight.coming is coming and s is not but]:
            stream.leave()
            del self._flights[stream]

    # --- whole files

    def _whole(self, coming: Coming, sums: Sums) -> None:
        if (problem := sums.problem()) is not None:
            # Nobody knows which bytes of it are wrong.
            self._strike(coming, problem)
            return
        self.here.finish(coming.file, coming.part, sums.entry())
        self._coming.remove(coming)
        self.entries[coming.file.path] = sums.entry()

    def _strike(self, coming: Coming, problem: str) -> None:
        """A whole file is not what the hub states: all of it is asked for once more, and once only."""
        self._leave(coming)
        coming.strikes += 1
        if coming.strikes == STRIKES:
            coming.part.remove()
            raise self.line.unlike(problem, coming.file)
        coming.follower.leave()
        self.meter.add(-coming.part.arrived)
        coming.part.restart()
        coming.follower = Follower(coming.file, coming.part, self._lane)
        coming.wants, coming.direct = self._all_wants(coming.part), ""

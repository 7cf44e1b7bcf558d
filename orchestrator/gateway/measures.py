"""What the gateway measures of each request: how long, how many tokens, how it ended, how many there are at a time.

A request costs two notes, of when it came and how it ended. They are counted many at a time, since what is counted is
scattered in memory: one by one that takes four times as long. It is told when somebody asks (metrics.py), and once a
minute (window.py). orch's own requests are counted, and else in nothing.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import NamedTuple

from orchestrator.core.routes import Route
from orchestrator.core.traffic_window import MINUTE_S, AtATime, Line, bucket_of, level_of
from orchestrator.gateway import tokens, upstreams
from orchestrator.gateway.refusals import Refusal

# The boundaries that OpenTelemetry's conventions for generative AI recommend, in seconds and in tokens:
# open-telemetry/semantic-conventions, docs/gen-ai/gen-ai-metrics.md, 1.41.
DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKENS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
OUTPUT_TOKENS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(4**power for power in range(14))
# Notes that are kept before they are counted.
_MOST_NOTES = 64
# What a request failed of that no refusal names.
CLIENT_GONE, ENGINE_LOST, BUG = "client_gone", "engine_lost", "internal"


class Histogram:
    """Counts by bucket: of each but the last, `bounds` has the upper bound, which is in it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        """As it is now."""
        other = Histogram(self.bounds)
        other.counts, other.total = self.counts.copy(), self.total
        return other


class Labels(NamedTuple):
    """Whose figures these are: a public name's, of a profile, answered by an engine; what was asked for is an
    `operation` of those conventions."""

    name: str
    owner: str
    engine: str
    adapter: bool
    operation: str


@dataclass
class Series:
    """What is told under one set of labels. `durations` are by what a request failed of ("": it did not)."""

    durations: dict[str, Histogram] = field(default_factory=dict)
    first_tokens: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKENS))
    output_tokens: Histogram = field(default_factory=lambda: Histogram(OUTPUT_TOKENS))
    tokens_in: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    tokens_out: Histogram = field(default_factory=lambda: Histogram(TOKENS))

    def ended(self, seconds: float, failed_of: str) -> None:
        """A request has ended."""
        histogram = self.durations.get(failed_of)
        if histogram is None:
            histogram = self.durations[failed_of] = Histogram(DURATIONS)
        histogram.add(seconds)

    def copy(self) -> Series:
        """As it is now."""
        durations = {failed_of: histogram.copy() for failed_of, histogram in self.durations.items()}
        others = (self.first_tokens, self.output_tokens, self.tokens_in, self.tokens_out)
        return Series(durations, *(one.copy() for one in others))


class Occupancy:
    """How many there are at a time, and for how long there were as many, since it was looked at last."""

    __slots__ = ("_most", "_seconds", "_since", "level")

    def __init__(self, now: float) -> None:
        self.level = 0
        self._most = 0
        self._since = now
        self._seconds: dict[int, float] = {}

    def change(self, by: int, now: float) -> None:
        """So many more, or fewer."""
        level, seconds = level_of(self.level), self._seconds
        seconds[level] = seconds.get(level, 0.0) + now - self._since
        self._since = now
        self.level += by
        if self.level > self._most:
            self._most = self.level

    def taken(self, now: float) -> AtATime:
        """What was since the last time."""
        self.change(0, now)
        told = AtATime(self._most, self._seconds)
        self._most, self._seconds = self.level, {}
        return told


class Crowd:
    """Who is there: in flight or waiting, and of them those who wait."""

    __slots__ = ("users", "waiting")

    def __init__(self, now: float) -> None:
        self.users = Occupancy(now)
        self.waiting = Occupancy(now)


class Share(NamedTuple):
    """What one line of the window is about."""

    name: str
    owner: str
    engine: str
    adapter: bool


class Slice:
    """What was counted for a line since the one before."""

    __slots__ = ("crowd", "errors", "requests", "tokens_in", "tokens_out", "ttft")

    def __init__(self, now: float) -> None:
        self.crowd = Crowd(now)
        self._clear()

    def _clear(self) -> None:
        self.requests = self.errors = self.tokens_in = self.tokens_out = 0
        self.ttft: dict[int, int] = {}

    def line(self, minute: int, share: Share, now: float) -> Line | None:
        """The line; None where there was nothing. It begins anew."""
        users, waiting = self.crowd.users.taken(now), self.crowd.waiting.taken(now)
        counts = (self.requests, self.errors, self.tokens_in, self.tokens_out)
        if not (users.most or any(counts)):
            return None
        line = Line(
            minute=minute,
            profile=share.owner,
            route=share.name,
            engine=share.engine,
            adapter=share.adapter,
            requests=self.requests,
            errors=self.errors,
            users=users,
            waiting=waiting,
            ttft=self.ttft,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
        )
        self._clear()
        return line


@dataclass(frozen=True)
class Snapshot:
    """All of it at one moment, for whoever tells it. `active` are requests in flight or waiting, `own` orch's own so
    far by public name, `queues` those that wait within an engine, by owner and instance."""

    series: tuple[tuple[Labels, Series], ...]
    active: tuple[tuple[Share, int], ...]
    own: tuple[tuple[str, int], ...]
    queues: tuple[tuple[tuple[str, str], int], ...]


class Desk:
    """Where the requests for one route and operation are counted."""

    __slots__ = ("line", "route", "series", "together")

    def __init__(self, route: Route, series: Series, line: Slice, together: Crowd) -> None:
        self.route = route
        self.series = series
        self.line = line
        self.together = together


class Measures:
    """All that is measured, by one clock (seconds, monotonic)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        # A name per route, engine and operation that was ever asked for.
        self._series: dict[Labels, Series] = {}
        self._slices: dict[Share, Slice] = {}
        self._crowds: dict[str, Crowd] = {}
        self._desks: dict[tuple[str, str, str], Desk] = {}
        self._queues: dict[tuple[str, str], int] = {}
        self._own: Counter[str] = Counter()
        # In the order of their times: each request when it has come, and again when it has ended.
        self._notes: list[Counted] = []

    def passage(self, route: Route, operation: str, own: bool) -> Passage:
        """A request for this route has come."""
        if own:
            self._own[route.name] += 1
            return Passage()
        return Counted(self, route, operation)

    def desk(self, route: Route, operation: str) -> Desk:
        """Where it is counted."""
        key = (route.name, route.backend.instance, operation)
        desk = self._desks.get(key)
        if desk is None or desk.route is not route:
            share = _share(route)
            series = self._series.setdefault(Labels(*share, operation), Series())
            desk = self._desks[key] = Desk(route, series, self._slice(share), self.crowd_of(route.owner))
        return desk

    def note(self, request: Counted) -> None:
        """It has come, or ended."""
        self._notes.append(request)
        if len(self._notes) >= _MOST_NOTES:
            self._count()

    def _count(self) -> None:
        notes, self._notes = self._notes, []
        for request in notes:
            if request.counted:
                self._ended(request)
            else:
                request.counted = True
                desk, now = request.there, request.began
                desk.line.requests += 1
                desk.line.crowd.users.change(1, now)
                desk.together.users.change(1, now)

    def _ended(self, request: Counted) -> None:
        there, ended = request.there, request.ended
        there.line.crowd.users.change(-1, ended)
        there.together.users.change(-1, ended)
        if not there.together.users.level:
            self._at_rest(there.route.owner, ended)
        series, line = request.desk.series, request.desk.line
        series.ended(ended - request.began, request.failed_of)
        if request.first:
            seconds = request.first - request.began
            series.first_tokens.add(seconds)
            number = bucket_of(seconds)
            line.ttft[number] = line.ttft.get(number, 0) + 1
        if request.failed_of:
            line.errors += request.ours
            return
        read, written = request.counts
        if read is not None:
            series.tokens_in.add(read)
            line.tokens_in += read
        if written is not None:
            series.tokens_out.add(written)
            line.tokens_out += written
            if request.last and written > 1:
                series.output_tokens.add((request.last - request.first) / (written - 1))

    def waits(self, route: Route, by: int) -> None:
        """One more waits at the gateway for this route, or one fewer; none of orch's own."""
        self._count()
        now = self.clock()
        self._slice(_share(route)).crowd.waiting.change(by, now)
        self.crowd_of(route.owner).waiting.change(by, now)

    def queued(self, owner: str, instance: str, requests: int | None) -> None:
        """So many requests for an owner wait within an engine, if as many are there; None: it is not asked any more."""
        self._count()
        if requests is not None:
            # Of orch's own there may be more.
            requests = min(requests, self.crowd_of(owner).users.level)
        self._queued(owner, instance, requests, self.clock())

    def _queued(self, owner: str, instance: str, requests: int | None, now: float) -> None:
        before = self._queues.pop((owner, instance), 0)
        if requests is not None:
            self._queues[owner, instance] = requests
        if difference := (requests or 0) - before:
            self.crowd_of(owner).waiting.change(difference, now)

    def _at_rest(self, owner: str, now: float) -> None:
        """Nobody is there any more, whatever was last seen of queues."""
        for key in [key for key in self._queues if key[0] == owner]:
            self._queued(*key, None, now)

    def crowd_of(self, owner: str) -> Crowd:
        """Who is there of all names of a profile."""
        found = self._crowds.get(owner)
        if found is None:
            found = self._crowds[owner] = Crowd(self.clock())
        return found

    def snapshot(self) -> Snapshot:
        """All of it as it is now."""
        self._count()
        return Snapshot(
            tuple((labels, series.copy()) for labels, series in self._series.items()),
            tuple((share, one.crowd.users.level) for share, one in self._slices.items()),
            tuple(self._own.items()),
            tuple(self._queues.items()),
        )

    def lines(self, at: float) -> list[Line]:
        """What was since the last time, which was within the minute of `at` (seconds since 1970)."""
        self._count()
        minute, now = int(at // MINUTE_S) * MINUTE_S, self.clock()
        lines = []
        for owner, crowd in self._crowds.items():
            users, waiting = crowd.users.taken(now), crowd.waiting.taken(now)
            if users.most:
                lines.append(Line(minute, owner, users=users, waiting=waiting))
        found = (one.line(minute, share, now) for share, one in self._slices.items())
        return [*lines, *(line for line in found if line is not None)]

    def _slice(self, share: Share) -> Slice:
        found = self._slices.get(share)
        if found is None:
            found = self._slices[share] = Slice(self.clock())
        return found


class Passage:
    """One request on its way, of orch's own: nothing of it is measured. What it says is what `Counted` does."""

    __slots__ = ()

    def __enter__(self) -> Passage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def leads_to(self, route: Route) -> None:
        """It is this one's engine that is asked."""

    def answered(self, status: int) -> None:
        """An engine has begun to answer."""

    def failed(self, of: str, ours: bool) -> None:
        """It has failed; `ours`: it is the gateway's or the engine's fault."""

    def took(self, data: bytes, begins: bytes | None = None) -> bool:
        """Some bytes of the engine's answer; `begins` for those of a stream, see Question. Whether it has begun."""
        return True

    def took_all(self, body: bytes) -> None:
        """All of it, where it came in one piece."""

    def streamed(self, counts: tuple[int | None, int | None] | None) -> None:
        """All of a stream has come, with these tokens where somebody else has looked for them."""


class Counted(Passage):
    """The same of a client's request, measured from now until `with` ends.

    It is counted as being `there`, and what came of it at `desk`: a request that waits for a change of the engine is
    there at the one before. `first` and `last` are when its first token came, and its stream was over (0: none was).
    It `failed_of` something, which is `ours`: the gateway's or the engine's. `counts` are its tokens. It is `counted`
    as having come.
    """

    __slots__ = (
        *("_measures", "_operation", "_told", "began", "counted", "counts", "desk", "ended", "failed_of", "first"),
        *("last", "ours", "there"),
    )

    def __init__(self, measures: Measures, route: Route, operation: str) -> None:
        self._measures = measures
        self._operation = operation
        self._told: tokens.Told | None = None
        self.first = self.last = self.ended = 0.0
        self.failed_of, self.ours = "", False
        self.counts: tuple[int | None, int | None] = (None, None)
        self.counted = False
        self.desk = self.there = measures.desk(route, operation)
        self.began = measures.clock()
        measures.note(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._raised(error)
        if self._told is not None:
            self.counts, self._told = self._told.counts(), None
        self.ended = self._measures.clock()
        self._measures.note(self)

    def _raised(self, error: BaseException) -> None:
        if isinstance(error, Refusal):
            self.failed(error.code, error.status >= HTTPStatus.INTERNAL_SERVER_ERROR)
        elif isinstance(error, ConnectionError | asyncio.CancelledError):
            self.failed(CLIENT_GONE, ours=False)
        else:
            self.failed(BUG, ours=True)

    def leads_to(self, route: Route) -> None:
        if route is not self.desk.route:
            self.desk = self._measures.desk(route, self._operation)

    def answered(self, status: int) -> None:
        self._told, self.failed_of, self.ours = None, "", False
        if status >= HTTPStatus.BAD_REQUEST:
            self.failed(str(status), status >= HTTPStatus.INTERNAL_SERVER_ERROR)

    def failed(self, of: str, ours: bool) -> None:
        self.failed_of, self.ours = of, ours

    def took(self, data: bytes, begins: bytes | None = None) -> bool:
        told = self._told
        if told is None:
            told = self._told = tokens.Told()
        told.take(data)
        if begins is not None and not self.first and told.has_begun(begins) and not self.failed_of:
            self.first = self._measures.clock()
        return self.first > 0

    def took_all(self, body: bytes) -> None:
        self.counts = tokens.counts_in(body)

    def streamed(self, counts: tuple[int | None, int | None] | None) -> None:
        if self.first:
            self.last = self._measures.clock()
        if counts is not None:
            self._told, self.counts = None, counts


def _share(route: Route) -> Share:
    adapter = route.card is not None and bool(route.card.base)
    return Share(route.name, route.owner, upstreams.engine_of(route), adapter)

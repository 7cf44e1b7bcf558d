"""What scripts/bench-gateway has measured, and how it is shown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench_load import Counted, Timed
from bench_ways import OLLAMA_CHAT, Way

# At full speed, and where memory is looked at.
FAST_STREAMS, FAST_EVENTS = 8, 2500
MEMORY_STREAMS = 200


@dataclass(frozen=True)
class Memory:
    """PSS in MB of a process that was alone with the engine and this client: several gateways would share pages."""

    idle: float
    busy: float


@dataclass
class Figures:
    """What was measured of one way: memory, and for each round the rest."""

    way: Way
    memory: Memory
    whole: list[Timed] = field(default_factory=list)
    first: list[Timed] = field(default_factory=list)
    paced: list[Counted] = field(default_factory=list)
    fast: list[Counted] = field(default_factory=list)


@dataclass(frozen=True)
class Spread:
    """A figure: the median of the rounds, and the least and most of them."""

    rounds: tuple[float, ...]

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.rounds)

    def text(self, digits: int = 0) -> str:
        """All three."""
        least, most = min(self.rounds), max(self.rounds)
        return f"{self.value:10,.{digits}f} {f'{least:,.{digits}f}..{most:,.{digits}f}':>16}"


def percentile(times: Sequence[float], hundredth: int) -> float:
    """Of a hundred."""
    return statistics.quantiles(times, n=100, method="inclusive")[hundredth - 1]


@dataclass(frozen=True)
class Column:
    """A figure of a block: what it is called and how it is come by."""

    title: str
    of: Callable[[Figures], Spread]
    digits: int = 0


class Report:
    """Prints blocks: a line for each way, a column for each figure and for its ratio to nginx. The first is direct."""

    def __init__(self, figures: Sequence[Figures]) -> None:
        self._direct, *self._ways = figures
        self._nginx = next((one for one in figures if one.way.name == "nginx"), None)
        self._width = max(len(one.way.name) for one in figures)

    def print(self) -> None:
        """Everything that was measured."""
        self._timed("Whole answer: us until its last byte, 1 connection", lambda one: one.whole)
        self._timed("First event of a stream: us until it is there, 1 connection", lambda one: one.first)
        self._counted("Paced events: each comes alone", lambda one: one.paced)
        self._counted(f"At full speed: {FAST_STREAMS} streams of {FAST_EVENTS:,} events", lambda one: one.fast)
        self._block(
            "Memory: PSS in MB",
            "",
            Column("idle", lambda one: Spread((one.memory.idle,)), 1),
            Column(f"{MEMORY_STREAMS} streams", lambda one: Spread((one.memory.busy,)), 1),
        )
        for one in self._ways:
            if one.way.path == OLLAMA_CHAT:
                self._translation(one)

    def _timed(self, title: str, of: Callable[[Figures], list[Timed]]) -> None:
        def at(hundredth: int) -> Callable[[Figures], Spread]:
            return lambda one: Spread(tuple(percentile(item.times, hundredth) for item in of(one)))

        def added(hundredth: int) -> Callable[[Figures], Spread]:
            """To direct in the same round."""
            direct = at(hundredth)(self._direct).rounds
            return lambda one: Spread(tuple(a - b for a, b in zip(at(hundredth)(one).rounds, direct, strict=True)))

        self._block(
            title,
            f"p50 {at(50)(self._direct).text()}, p99 {at(99)(self._direct).text()}",
            Column("added p50", added(50)),
            Column("added p99", added(99)),
            Column("CPU us", lambda one: Spread(tuple(item.cpu_us for item in of(one)))),
        )

    def _counted(self, title: str, of: Callable[[Figures], list[Counted]]) -> None:
        def rate(one: Figures) -> Spread:
            return Spread(tuple(item.per_second for item in of(one)))

        self._block(
            title,
            f"{rate(self._direct).text()} events/s",
            Column("CPU us/event", lambda one: Spread(tuple(item.cpu_us for item in of(one))), 2),
            Column("events/s", rate),
        )

    def _block(self, title: str, direct: str, *columns: Column) -> None:
        print(f"\n{title}")
        heads = "".join(f" {column.title:>12} {'least..most':>16} {'x nginx':>8}" for column in columns)
        print(f"  {'':{self._width}}{heads}")
        if direct:
            print(f"  {'direct':{self._width}} {direct}")
        for one in self._ways:
            cells = (
                f"   {(of := column.of(one)).text(column.digits)} {self._ratio(column, of):>8}" for column in columns
            )
            print(f"  {one.way.name:{self._width}}{''.join(cells)}")

    def _ratio(self, column: Column, figure: Spread) -> str:
        """To nginx; nothing, where what nginx adds is lost in the noise."""
        base = column.of(self._nginx) if self._nginx is not None else None
        return f"{figure.value / base.value:.2f}" if base is not None and min(base.rounds) > 0 else "-"

    def _translation(self, one: Figures) -> None:
        """What it adds to the same route through the same process."""
        processes = one.way.processes
        plain = next(other for other in self._ways if other.way.processes == processes and other is not one)

        def line(what: str, of: Callable[[Figures], Sequence[Timed | Counted]]) -> None:
            added = Spread(tuple(a.cpu_us - b.cpu_us for a, b in zip(of(one), of(plain), strict=True)))
            print(f"  {what:27}{added.text(2)}")

        print(f"\nWhat the translation adds: CPU us, {one.way.name} less {plain.way.name}")
        line("whole answer", lambda figures: figures.whole)
        line("paced event", lambda figures: figures.paced)
        line("event at full speed", lambda figures: figures.fast)

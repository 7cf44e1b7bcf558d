"""The soak of scripts/bench-gateway: many paced streams for many minutes, and whether memory stays flat under them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import uvloop
from bench_load import BrokenError, Stream, opened
from bench_ways import Way

EVERY_S = 30.0
PACE_S = 0.02
# Each stream is followed by another, so that what one leaves behind adds up: lengths in events, 4 to 36 s.
LENGTHS = tuple(range(200, 1801, 100))
# Growth over the second half, as fitted, in parts of all of it: below that it is flat.
FLAT = 0.01


@dataclass(frozen=True)
class Sample:
    """Minutes since the start, PSS, and what had happened by then."""

    minutes: float
    pss_mb: float
    events: int
    streams: int
    cpu_us: float


@dataclass
class _Load:
    streams: list[Stream | None]
    events: int = 0
    ended: int = 0
    failed: list[str] = field(default_factory=list)
    lengths: itertools.cycle[int] = field(default_factory=lambda: itertools.cycle(LENGTHS))

    async def keep_open(self, way: Way, number: int) -> None:
        # Not all in one instant.
        await asyncio.sleep(number * PACE_S)
        while True:
            length = next(self.lengths)
            stream = self.streams[number] = await opened(way, way.request(f"events={length} pace={PACE_S}"))
            try:
                await stream.over
                if stream.events != length:
                    raise BrokenError(f"A stream had {stream.events} events instead of {length}.")
                self.ended += 1
            except BrokenError as error:
                self.failed.append(str(error))
                await asyncio.sleep(1)
            self.events += stream.events
            self.streams[number] = None


def soak(ways: Sequence[Way], streams: int, minutes: float) -> bool:
    """Whether memory is flat; the ways, of one process, have a share of the streams each."""
    samples = uvloop.run(_soak(ways, streams, minutes))
    late = [one for one in samples if one.minutes >= minutes / 2]
    slope, error = fitted([one.minutes for one in late], [one.pss_mb for one in late])
    span = late[-1].minutes - late[0].minutes
    grown, mean = slope * span, sum(one.pss_mb for one in late) / len(late)
    flat = grown < FLAT * mean
    ended = late[-1].streams - late[0].streams
    print(
        f"\nSecond half ({span:.1f} min, {len(late)} samples, {ended:,} streams ended): "
        f"{slope * 1024:+.1f} ± {error * 1024:.1f} KB a minute (least squares, standard error), "
        f"{grown * 1024:+.0f} KB of {mean:.1f} MB in all ({grown / mean:+.2%})."
    )
    if flat:
        print(f"Memory is flat: it grew by less than {FLAT:.0%}.")
    else:
        print(f"Memory is NOT flat: it grew by {FLAT:.0%} or more.")
    return flat


def fitted(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope of the line of least squares, and its standard error."""
    middle, mean = sum(x) / len(x), sum(y) / len(y)
    spread = sum((one - middle) ** 2 for one in x)
    slope = sum((a - middle) * (b - mean) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - mean - slope * (a - middle)) ** 2 for a, b in zip(x, y, strict=True))
    return slope, (rest / max(1, len(x) - 2) / spread) ** 0.5


async def _soak(ways: Sequence[Way], streams: int, minutes: float) -> list[Sample]:
    names = " and ".join(way.name for way in ways)
    print(f"{streams} streams of {1 / PACE_S:.0f} events/s for {minutes:g} min: {names}")
    print(f"idle: {ways[0].pss_mb:.2f} MB\n")
    print(f"{'min':>6} {'PSS MB':>8} {'events/s':>9} {'streams ended':>14} {'us CPU/event':>13}")
    load = _Load([None] * streams)
    start = time.monotonic()
    clients = [asyncio.create_task(load.keep_open(ways[one % len(ways)], one)) for one in range(streams)]
    samples = [Sample(0.0, ways[0].pss_mb, 0, 0, ways[0].cpu_us)]
    try:
        every = min(EVERY_S, minutes * 60 / 8)
        while samples[-1].minutes < minutes - 1e-3:
            wait = max(0.0, start + every * len(samples) - time.monotonic())
            done, _ = await asyncio.wait(clients, timeout=wait, return_when=asyncio.FIRST_EXCEPTION)
            for client in done:
                client.result()
            now = (time.monotonic() - start) / 60
            events = load.events + sum(stream.events for stream in load.streams if stream is not None)
            samples.append(Sample(now, ways[0].pss_mb, events, load.ended, ways[0].cpu_us))
            before, last = samples[-2:]
            came = last.events - before.events
            rate = came / ((last.minutes - before.minutes) * 60)
            cpu = (last.cpu_us - before.cpu_us) / max(1, came)
            print(f"{now:6.1f} {last.pss_mb:8.2f} {rate:9,.0f} {last.streams:14,} {cpu:13.1f}", flush=True)
    finally:
        for client in clients:
            client.cancel()
        for stream in load.streams:
            if stream is not None:
                stream.transport.abort()
    if load.failed:
        print(f"{len(load.failed)} streams failed; the first: {load.failed[0]}")
    return samples

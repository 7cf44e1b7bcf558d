"""The client of scripts/bench-gateway: one connection that is timed, or many streams that are counted."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import uvloop
from bench_engine import MARK
from bench_ways import Way

# On each connection before the clock runs.
WARM_UP = 5
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKS_END = b"\r\n0\r\n\r\n"
_GOOD = b"HTTP/1.1 200"
T = TypeVar("T")


class BrokenError(Exception):
    """An answer is not what it should be."""


def ask(connection: socket.socket, message: bytes, event: bytes = b"") -> tuple[bytes, float, float]:
    """The whole answer; microseconds until `event` was there, and until the end."""
    start = time.perf_counter()
    connection.sendall(message)
    data, first, size = b"", 0.0, 0
    while True:
        got = connection.recv(1 << 16)
        if not got:
            raise BrokenError(f"A connection was closed early, after {data[:300]!r}.")
        data += got
        if not first and event and event in data:
            first = time.perf_counter()
        if not size:
            head, end, _ = data.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            size = len(head) + 4 + int(length[1]) if end and length else 0
        if len(data) >= size if size else data.endswith(_CHUNKS_END):
            over = time.perf_counter()
            if not data.startswith(_GOOD):
                raise BrokenError(data.partition(b"\r\n\r\n")[2].decode(errors="replace")[:300])
            return data, (first - start) * 1e6, (over - start) * 1e6


@dataclass(frozen=True)
class Timed:
    """Times of requests, one after the other, in microseconds, and the CPU of what is between for each."""

    times: list[float]
    cpu_us: float


def whole_answers(way: Way, count: int) -> Timed:
    """Times until the last byte."""
    return _timed(way, count, way.request(), b"", 2)


def first_events(way: Way, count: int) -> Timed:
    """Times until the first event of a stream is there."""
    return _timed(way, count, way.request("events=3 pace=0.001"), MARK, 1)


def _timed(way: Way, count: int, message: bytes, event: bytes, which: int) -> Timed:
    connection = _connected(way)
    times: list[float] = []
    before = 0.0
    for turn in range(WARM_UP + count):
        if turn == WARM_UP:
            before = way.cpu_us
        if event and way.closes:
            connection.close()
            connection = _connected(way)
        times.append(ask(connection, message, event)[which])
    connection.close()
    return Timed(times[WARM_UP:], (way.cpu_us - before) / count)


def _connected(way: Way) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", way.port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


@dataclass(frozen=True)
class Counted:
    """Events in each second, and the CPU of what is between for each event."""

    per_second: float
    cpu_us: float


def paced(way: Way, streams: int, pace: float, seconds: float) -> Counted:
    """In the middle of many streams: how they begin and end is not counted."""
    return uvloop.run(_with_streams(way, streams, pace, lambda all_of_it: _window(way, all_of_it, seconds)))


def at_full_speed(way: Way, streams: int, events: int) -> Counted:
    """Of streams whose events come as fast as they are taken, from begin to end."""
    return uvloop.run(_full_speed(way, streams, events))


def memory_with(way: Way, streams: int) -> float:
    """PSS in MB while so many streams are open, each with 5 events a second."""

    async def measured(_: list[Stream]) -> float:
        await asyncio.sleep(1)
        return way.pss_mb

    return uvloop.run(_with_streams(way, streams, 0.2, measured))


class Stream(asyncio.Protocol):
    """Asks for one stream and counts its events. `begun` is set with the first of them, `over` at its end."""

    def __init__(self, message: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.events = 0
        self.begun: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()
        self._message = message
        self._tail = b""
        self._answered = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.write(self._message)

    def data_received(self, data: bytes) -> None:
        if not self._answered:
            self._answered = True
            if not data.startswith(_GOOD):
                self._break(f"A stream was refused: {data[:500]!r}")
        self.events += data.count(MARK)
        if self.events and not self.begun.done():
            self.begun.set_result(None)
        self._tail = (self._tail + data)[-len(_CHUNKS_END) :]
        if self._tail == _CHUNKS_END:
            if not self.over.done():
                self.over.set_result(None)
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._break(f"A stream was cut after {self.events} events.")

    def _break(self, why: str) -> None:
        for future in (self.begun, self.over):
            if not future.done():
                future.set_exception(BrokenError(why))
                future.exception()  # seen, if nobody waits for it


async def opened(way: Way, message: bytes) -> Stream:
    """A stream that is asked for."""
    _, stream = await asyncio.get_running_loop().create_connection(lambda: Stream(message), "127.0.0.1", way.port)
    return stream


async def _with_streams(way: Way, streams: int, pace: float, then: Callable[[list[Stream]], Awaitable[T]]) -> T:
    message = way.request(f"events=1000000 pace={pace}")
    all_of_it: list[Stream] = []
    try:
        async with asyncio.timeout(60):
            # One after the other: a thousand at once would be the bench's own trouble.
            for _ in range(streams):
                all_of_it += [await opened(way, message)]
            await asyncio.gather(*(stream.begun for stream in all_of_it))
        await asyncio.sleep(max(0.1, pace))
        return await then(all_of_it)
    finally:
        for stream in all_of_it:
            stream.transport.abort()
        # The engine and what is between have to see that they are gone.
        await asyncio.sleep(0.3)


async def _window(way: Way, streams: list[Stream], seconds: float) -> Counted:
    def so_far() -> tuple[float, int, float]:
        return time.perf_counter(), sum(stream.events for stream in streams), way.cpu_us

    start, events, cpu = so_far()
    await asyncio.sleep(seconds)
    end, more_events, more_cpu = so_far()
    if any(stream.over.done() for stream in streams):
        raise BrokenError("A stream ended early.")
    came = more_events - events
    return Counted(came / (end - start), (more_cpu - cpu) / came)


async def _full_speed(way: Way, streams: int, events: int) -> Counted:
    message = way.request(f"events={events} pace=0")
    before, start = way.cpu_us, time.perf_counter()
    async with asyncio.timeout(120):
        asked = await asyncio.gather(*(opened(way, message) for _ in range(streams)))
        await asyncio.gather(*(stream.over for stream in asked))
    took = time.perf_counter() - start
    if {stream.events for stream in asked} != {events}:
        raise BrokenError(f"Events were lost: {sorted(stream.events for stream in asked)} instead of {events} each.")
    return Counted(streams * events / took, (way.cpu_us - before) / (streams * events))

"""The client that makes a load, in a process of its own so that it measures no one's work but the server's.

It reads one Load as JSON from the file that it is given, makes it, and writes a line of JSON for each request as it
ends, then one with the `duration` of all. Whoever started it may end it at any time; what was written by then was
measured.

What is due at a time is measured from that time, not from when it was sent: a client that came too late would else hide
how long its users waited (coordinated omission).

A stream is asked for, and a token's time is when the bytes that hold it were there. The first token is the first piece
with something in it: an opening piece that tells a role alone is none. Tokens are counted by the server (`usage`); who
does not tell them has not answered, as has whoever breaks off, or says less than `data: [DONE]`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvloop

from orchestrator.bench.metrics import Measured

# Longer names of what went wrong are cut here.
_LONGEST_ERROR = 200


@dataclass(frozen=True)
class Ask:
    """One request: its JSON body, and when it is to start, in seconds from the beginning (None: once one before it has
    ended)."""

    body: Mapping[str, Any]
    due: float | None = None


@dataclass(frozen=True)
class Load:
    """Requests to one URL. With `concurrency` so many are in flight at a time (closed loop); else each starts when it
    is due, whatever has become of those before (open loop). None may take longer than `timeout_s`. Connections are
    `kept` for another request, or not: llama.cpp's server closes them after a stream without a word."""

    url: str
    asks: tuple[Ask, ...]
    concurrency: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 600.0
    kept: bool = True

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Load:
        """Read what `asdict` wrote."""
        asks = tuple(Ask(one["body"], one["due"]) for one in document["asks"])
        return cls(
            document["url"], asks, document["concurrency"], document["headers"], document["timeout_s"], document["kept"]
        )


class _FailedError(Exception):
    """A request was not answered as it must be; the message is what it is counted as."""


async def make(load: Load, done: Callable[[int, Measured], None]) -> float:
    """Make a load; `done` is told of each request by its place in it. Seconds that it took."""
    timeout = aiohttp.ClientTimeout(total=load.timeout_s)
    # As many connections as requests: to wait for one would be measured as the server's time.
    connector = aiohttp.TCPConnector(limit=0, force_close=not load.kept)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        began = time.perf_counter()

        async def measured(place: int) -> None:
            done(place, await _measured(session, load, load.asks[place], began))

        if load.concurrency:
            places = iter(range(len(load.asks)))
            await asyncio.gather(*(_in_turn(places, measured) for _ in range(load.concurrency)))
        else:
            await asyncio.gather(*(_when_due(ask, place, began, measured) for place, ask in enumerate(load.asks)))
        return time.perf_counter() - began


async def _in_turn(places: Iterable[int], measured: Callable[[int], Any]) -> None:
    for place in places:
        await measured(place)


async def _when_due(ask: Ask, place: int, began: float, measured: Callable[[int], Any]) -> None:
    await asyncio.sleep(max(0.0, began + (ask.due or 0.0) - time.perf_counter()))
    await measured(place)


async def _measured(session: aiohttp.ClientSession, load: Load, ask: Ask, began: float) -> Measured:
    now = time.perf_counter()
    started = now if ask.due is None else began + ask.due
    pieces: list[float] = []
    usage: dict[str, int] = {}
    error = ""
    try:
        await _read(session, load, ask, pieces, usage)
    except _FailedError as failed:
        error = str(failed)
    except TimeoutError:
        error = f"no end after {load.timeout_s:g} s"
    except (aiohttp.ClientError, OSError) as lost:
        error = f"{type(lost).__name__}: {lost}"
    return Measured(
        due=started - began,
        started=now - began,
        ttft=pieces[0] - started if pieces else 0.0,
        itl=tuple(later - earlier for earlier, later in pairwise(pieces)),
        e2el=pieces[-1] - started if pieces else 0.0,
        input_tokens=usage.get("prompt_tokens", 0),
        output_tokens=usage.get("completion_tokens", 0),
        error=error[:_LONGEST_ERROR],
    )


async def _read(
    session: aiohttp.ClientSession, load: Load, ask: Ask, pieces: list[float], usage: dict[str, int]
) -> None:
    """Read an answer to its end; the times of its pieces and what it counts are left in the last two."""
    async with session.post(load.url, json=ask.body, headers=load.headers) as answer:
        if answer.status != 200:
            raise _FailedError(f"HTTP {answer.status}")
        rest, ended = b"", False
        async for data in answer.content.iter_any():
            now = time.perf_counter()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                told = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
                if told == b"[DONE]":
                    ended = True
                elif told:
                    _take(told, now, pieces, usage)
    if not ended:
        raise _FailedError("cut: it has no end")
    if not pieces:
        raise _FailedError("empty: no token came")
    if not isinstance(usage.get("completion_tokens"), int):
        raise _FailedError("its tokens are not told")
    if usage["completion_tokens"] < len(pieces):
        raise _FailedError("it counts fewer tokens than pieces came")


def _take(told: bytes, now: float, pieces: list[float], usage: dict[str, int]) -> None:
    try:
        part = orjson.loads(told)
    except orjson.JSONDecodeError:
        raise _FailedError("what came is not JSON") from None
    if not isinstance(part, dict) or "error" in part:
        raise _FailedError("broken off with an error")
    if any(_says(choice) for choice in part.get("choices") or ()):
        pieces.append(now)
    if isinstance(part.get("usage"), dict):
        usage.update(part["usage"])


def _says(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta") or choice
    return any(delta.get(name) for name in ("content", "text", "reasoning", "reasoning_content", "tool_calls"))


def main() -> None:
    """See the top."""
    load = Load.from_json(json.loads(Path(sys.argv[1]).read_bytes()))

    def told(line: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    duration = uvloop.run(make(load, lambda place, measured: told({"place": place, **asdict(measured)})))
    told({"duration": duration})


if __name__ == "__main__":
    main()

"""Streaming chats in a closed loop against one address: the load of the demo and of the migration tests.

Each of N clients keeps one chat stream open; when it ends, the next one starts. Every stream is recorded: when it
started, when its first token came, when it ended, and whether it ended as it should (tokens, then `[DONE]`).
Bounded: it stops by itself after `max_seconds`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from dataclasses import dataclass, field

import aiohttp

ABANDONED_S = 0.1
HELD_S = 0.01


@dataclass
class Stream:
    """One chat. Times are time.time(), `engine` is the system_fingerprint, `problem` is empty if all is well."""

    model: str
    started: float
    first: float | None = None
    ended: float | None = None
    tokens: int = 0
    text: str = ""
    engine: str = ""
    problem: str = ""

    def open_at(self, moment: float) -> bool:
        """Whether it was in the middle of its answer then."""
        return self.first is not None and self.first < moment and (self.ended is None or self.ended > moment)


@dataclass
class Load:
    """N clients in a thread of their own, between start() and stop(). `models` are taken in turn."""

    url: str
    models: tuple[str, ...]
    clients: int = 10
    tokens: int = 200
    question: str = "What colour is the sky?"
    max_seconds: float = 300.0
    key: str = ""
    streams: list[Stream] = field(default_factory=list)

    def start(self) -> Load:
        """Begin."""
        self._stopping, self._abandoned, self._holding = threading.Event(), threading.Event(), threading.Event()
        self._held = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), daemon=True)
        self._thread.start()
        return self

    def stop(self) -> list[Stream]:
        """Let every stream reach its end, start no more, and give all of them."""
        self._stopping.set()
        self._thread.join()
        return self.streams

    def abandon(self) -> None:
        """Start no more, and wait for none."""
        self._stopping.set()
        self._abandoned.set()
        self._thread.join()

    def hold(self) -> None:
        """Let every stream reach its end, and start none before `release`."""
        self._holding.set()

    @property
    def held(self) -> int:
        """How many clients have come to their end and wait."""
        return self._held

    def release(self) -> None:
        """Have all that wait start at once."""
        self._holding.clear()

    def open_now(self) -> int:
        """How many streams are in the middle of their answer."""
        now = time.time()
        return sum(stream.open_at(now) for stream in list(self.streams))

    async def _all(self) -> None:
        deadline = time.monotonic() + self.max_seconds
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=self.max_seconds)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
            clients = asyncio.gather(*(self._client(session, number, deadline) for number in range(self.clients)))
            while not clients.done():
                await asyncio.wait([clients], timeout=ABANDONED_S)
                if self._abandoned.is_set():
                    clients.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await clients

    async def _client(self, session: aiohttp.ClientSession, number: int, deadline: float) -> None:
        turn = number
        while not self._stopping.is_set() and time.monotonic() < deadline:
            if self._holding.is_set():
                self._held += 1
                while self._holding.is_set() and not self._stopping.is_set():
                    await asyncio.sleep(HELD_S)
                self._held -= 1
                continue
            stream = Stream(self.models[turn % len(self.models)], time.time())
            self.streams.append(stream)
            try:
                await self._chat(session, stream)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                stream.problem = f"{type(error).__name__}: {error}"
            stream.ended = time.time()
            turn += self.clients
            if stream.problem:
                await asyncio.sleep(0.2)

    async def _chat(self, session: aiohttp.ClientSession, stream: Stream) -> None:
        body = {
            "model": stream.model,
            "messages": [{"role": "user", "content": self.question}],
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "stream": True,
        }
        done = False
        async with session.post(f"{self.url}/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                stream.problem = f"HTTP {answer.status}: {(await answer.text())[:300]}"
                return
            async for line in answer.content:
                if not line.startswith(b"data: "):
                    continue
                data = line[6:].strip()
                if data == b"[DONE]":
                    done = True
                    continue
                self._take(stream, json.loads(data))
        if not stream.problem and not (done and stream.tokens):
            stream.problem = "cut: no [DONE]" if stream.tokens else "no tokens"

    def _take(self, stream: Stream, chunk: dict[str, object]) -> None:
        if "error" in chunk:
            stream.problem = json.dumps(chunk["error"])
            return
        stream.engine = str(chunk.get("system_fingerprint") or stream.engine)
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            text = choice.get("delta", {}).get("content")
            if text:
                stream.first = stream.first or time.time()
                stream.tokens += 1
                stream.text += text

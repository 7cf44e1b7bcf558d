"""A load as many programs make it together: streams and whole answers, in OpenAI's words and Ollama's, of the base
model and of an adapter, some read slowly. Each answer has to be the text that its model gives to the question, on any
engine.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import aiohttp
from orch_command import ANSWER

QUESTION = "Who are you?"
# What each public name answers to that, greedy.
SAYS: Mapping[str, str] = {"tiny": ANSWER, "alpha": "Ahoy! The answer is alpha."}
TOKENS = 60
SLOWLY_S = 0.05
# By then something is lost.
PATIENCE_S = 280.0


@dataclass(frozen=True)
class Kind:
    """How a client asks: at which path, for a stream or all at once, and whether it reads slowly."""

    path: str
    streams: bool
    slow: bool = False

    def body(self, model: str) -> dict[str, object]:
        """The question."""
        asked = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "stream": self.streams}
        if self.path == "/api/chat":
            return {**asked, "options": {"temperature": 0, "num_predict": TOKENS}}
        return {**asked, "temperature": 0, "max_tokens": TOKENS}

    def text(self, told: dict[str, object]) -> str:
        """What a whole answer, or a part of a stream, says."""
        if self.path == "/api/chat":
            return str(told["message"]["content"])  # type: ignore[index]
        (choice,) = told["choices"] or [{}]  # type: ignore[misc]
        return str((choice.get("delta" if self.streams else "message") or {}).get("content") or "")


KINDS = (
    Kind("/v1/chat/completions", streams=True),
    Kind("/v1/chat/completions", streams=False),
    Kind("/api/chat", streams=True),
    Kind("/api/chat", streams=False),
    Kind("/v1/chat/completions", streams=True, slow=True),
    Kind("/api/chat", streams=True, slow=True),
)


@dataclass
class Asked:
    """One question: when it was asked, when the first of its answer came, and what was wrong with it."""

    kind: Kind
    model: str
    started: float
    first: float = 0.0
    problem: str = ""

    @property
    def waited_s(self) -> float:
        """Until the first of the answer."""
        return self.first - self.started


class MixedLoad:
    """`clients` programs, each of another kind or for another model than the one beside it, between start and stop."""

    def __init__(self, url: str, models: Iterable[str], clients: int = 12) -> None:
        self.asked: list[Asked] = []
        self._url = url
        self._of = list(itertools.islice(itertools.cycle(itertools.product(models, KINDS)), clients))
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), daemon=True)

    def start(self) -> MixedLoad:
        """Begin."""
        self._thread.start()
        return self

    def stop(self) -> list[Asked]:
        """Let each have its answer, ask no more, and give all that was asked."""
        self._over.set()
        self._thread.join()
        return self.asked

    async def _all(self) -> None:
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            await asyncio.gather(*(self._client(session, model, kind) for model, kind in self._of))

    async def _client(self, session: aiohttp.ClientSession, model: str, kind: Kind) -> None:
        while not self._over.is_set():
            asked = Asked(kind, model, time.monotonic())
            self.asked.append(asked)
            try:
                text = await self._answer(session, asked)
                if text != SAYS[model]:
                    asked.problem = f"it said {text!r}"
            except (aiohttp.ClientError, TimeoutError, ValueError, LookupError) as error:
                asked.problem = f"{type(error).__name__}: {error}"
            if asked.problem:
                await asyncio.sleep(0.2)

    async def _answer(self, session: aiohttp.ClientSession, asked: Asked) -> str:
        kind, said = asked.kind, []
        async with session.post(f"{self._url}{kind.path}", json=kind.body(asked.model)) as answer:
            if answer.status != 200:
                raise ValueError(f"HTTP {answer.status}: {(await answer.text())[:300]}")
            if not kind.streams:
                told = await answer.json()
                asked.first = time.monotonic()
                return kind.text(told)
            ended = False
            async for line in answer.content:
                asked.first = asked.first or time.monotonic()
                data = line.strip().removeprefix(b"data: ")
                if data == b"[DONE]":
                    ended = True
                elif data:
                    part = json.loads(data)
                    if "error" in part:
                        raise ValueError(f"broken off: {part['error']}")
                    said.append(kind.text(part))
                    ended = ended or part.get("done") is True
                if kind.slow:
                    await asyncio.sleep(SLOWLY_S)
            if not ended:
                raise ValueError("cut: it has no end")
        return "".join(said)


def problems(asked: Iterable[Asked]) -> list[str]:
    """What went wrong, with whom."""
    return [f"{one.kind} {one.model}: {one.problem}" for one in asked if one.problem]


def waits(asked: Iterable[Asked]) -> str:
    """For people: how long the first of an answer took."""
    times = [one.waited_s for one in asked if one.first]
    return f"{len(times)} answers, p50 {statistics.median(times):.2f} s, longest {max(times):.2f} s"

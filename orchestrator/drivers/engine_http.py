"""Plain HTTP to engines and to the gateway's public side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import httpx

from orchestrator.core.progress import Progress, silent
from orchestrator.drivers.base import Reply

TICK_S = 0.1
BLOCK = 1 << 20


class EngineHttp:
    """httpx without proxies: everything it talks to is on this machine. Safe to use from several threads.

    `key` tells the gateway's API key, and is asked each time: a command may be the one that makes it.
    """

    def __init__(self, key: Callable[[], str | None] = lambda: None) -> None:
        self._client = httpx.Client(trust_env=False)
        self._key = key

    def get(self, url: str, timeout_s: float) -> Reply | None:
        """The answer, or None when nothing answers in time."""
        return self._ask("GET", url, timeout_s)

    def post(self, url: str, body: Mapping[str, Any], timeout_s: float, progress: Progress = silent) -> Reply | None:
        """The answer to a JSON body, or None when nothing answers in time.

        An engine may think for minutes: the request runs in a thread of its own, so that `progress` can be asked
        meanwhile whether to go on waiting. A request that is given up ends with the process or with its timeout.
        """
        return self.send("POST", url, body, timeout_s, progress)

    def send(
        self, method: str, url: str, content: Mapping[str, Any] | Path | None, timeout_s: float, progress: Progress
    ) -> Reply | None:
        """The same with any method, a JSON body or a file's bytes, whose progress is told."""
        answers: list[Reply | None] = []
        sent = [0]

        def ask() -> None:
            if not isinstance(content, Path):
                answers.append(self._ask(method, url, timeout_s, json=content))
                return
            with content.open("rb") as file:
                head = {"Content-Length": str(content.stat().st_size)}
                answers.append(self._ask(method, url, timeout_s, content=_blocks(file, sent), headers=head))

        asking = threading.Thread(target=ask, daemon=True, name="asking")
        asking.start()
        size = content.stat().st_size if isinstance(content, Path) else 0
        while asking.is_alive():
            progress("sending" if size else "waiting for an answer", sent[0], size)
            asking.join(TICK_S)
        return answers[0] if answers else None

    def _ask(self, method: str, url: str, timeout_s: float, **what: Any) -> Reply | None:
        key = self._key()
        head = {**what.pop("headers", {}), **({"Authorization": f"Bearer {key}"} if key is not None else {})}
        try:
            answer = self._client.request(method, url, timeout=timeout_s, headers=head, **what)
        except httpx.TransportError:
            return None
        try:
            value = answer.json()
        except ValueError:
            value = None
        return Reply(answer.status_code, value, answer.text)


def _blocks(file: IO[bytes], sent: list[int]) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block
        sent[0] += len(block)

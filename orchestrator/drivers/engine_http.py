"""Plain HTTP to engines and to the gateway's public side.

The standard library's client: a look at a running engine is most of what some commands do, and importing httpx would
cost each of them as much as all the rest.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.core.progress import Progress, silent
from orchestrator.drivers.base import Reply
from orchestrator.drivers.cancellable import cancellable
from orchestrator.errors import HostError

BLOCK = 1 << 20


class EngineHttp:
    """Without proxies: everything it talks to is on this machine. A connection each; safe to use from several threads.

    `key` tells the gateway's API key, and is asked each time: a command may be the one that makes it.
    """

    def __init__(self, key: Callable[[], str | None] = lambda: None) -> None:
        self._key = key

    def get(self, url: str, timeout_s: float) -> Reply | None:
        """The answer, or None when nothing answers in time."""
        return self._ask("GET", url, timeout_s, None, {})

    def post(self, url: str, body: Mapping[str, Any], timeout_s: float, progress: Progress = silent) -> Reply | None:
        """The answer to a JSON body, or None when nothing answers in time.

        An engine may think for minutes: the request runs in a thread of its own, so that `progress` can be asked
        meanwhile whether to go on waiting. A request that is given up ends with the process or with its timeout.
        """
        return self.send("POST", url, body, timeout_s, progress)

    def send(
        self, method: str, url: str, content: Mapping[str, Any] | Path | None, timeout_s: float, progress: Progress
    ) -> Reply | None:
        """The same with any method, a JSON body or a file's bytes, whose progress is told. HostError when the file
        cannot be read."""
        if isinstance(content, Path):
            return self._send_file(method, url, content, timeout_s, progress)
        body = json.dumps(content).encode() if content is not None else None
        headers = {"Content-Type": "application/json"} if body is not None else {}
        return cancellable(
            lambda: self._ask(method, url, timeout_s, body, headers),
            lambda: progress("waiting for an answer", 0, 0),
            "asking",
        )

    def _send_file(self, method: str, url: str, file: Path, timeout_s: float, progress: Progress) -> Reply | None:
        sent = [0]
        with _readable(file):
            size = file.stat().st_size
        return cancellable(
            lambda: self._ask(method, url, timeout_s, _blocks(file, sent), {"Content-Length": str(size)}),
            lambda: progress("sending", sent[0], size),
            "sending",
        )

    def _ask(
        self, method: str, url: str, timeout_s: float, body: bytes | Iterator[bytes] | None, headers: dict[str, str]
    ) -> Reply | None:
        parts, key = urlsplit(url), self._key()
        if key is not None:
            headers = headers | {"Authorization": f"Bearer {key}"}
        connection = HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
        with contextlib.closing(connection):
            try:
                connection.request(method, parts.path or "/", body, headers)
                answer = connection.getresponse()
                text = answer.read().decode(errors="replace")
            except (OSError, HTTPException):
                return None
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        return Reply(answer.status, value, text)


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """What the disk fails at is not the engine's silence."""
    try:
        yield
    except OSError as error:
        raise HostError(f"{file} cannot be read: {error.strerror or error}.", hint="orch artifacts verify") from error


def _blocks(file: Path, sent: list[int]) -> Iterator[bytes]:
    with _readable(file), file.open("rb") as data:
        while block := data.read(BLOCK):
            yield block
            sent[0] += len(block)

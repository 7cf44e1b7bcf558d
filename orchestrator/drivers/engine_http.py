"""Plain HTTP to engines and to the gateway's public side.

The standard library's client: a look at a running engine is most of what some commands do, and importing httpx would
cost each of them as much as all the rest.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
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
    `key` is shown as a bearer token, if there is one."""

    def get(self, url: str, timeout_s: float, key: str = "") -> Reply | None:
        """The answer, or None when nothing answers in time."""
        return _ask("GET", url, timeout_s, None, _shown(key))

    def post(
        self, url: str, body: Mapping[str, Any], timeout_s: float, progress: Progress = silent, key: str = ""
    ) -> Reply | None:
        """The answer to a JSON body, or None when nothing answers in time.

        An engine may think for minutes: the request runs in a thread of its own, so that `progress` can be asked
        meanwhile whether to go on waiting. A request that is given up ends with the process or with its timeout.
        """
        return self.send("POST", url, body, timeout_s, progress, key)

    def send(
        self,
        method: str,
        url: str,
        content: Mapping[str, Any] | Path | None,
        timeout_s: float,
        progress: Progress,
        key: str = "",
    ) -> Reply | None:
        """The same with any method, a JSON body or a file's bytes, whose progress is told. HostError when the file
        cannot be read."""
        if isinstance(content, Path):
            return _send_file(method, url, content, timeout_s, progress, _shown(key))
        body = json.dumps(content).encode() if content is not None else None
        headers = _shown(key) | ({"Content-Type": "application/json"} if body is not None else {})
        return cancellable(
            lambda: _ask(method, url, timeout_s, body, headers),
            lambda: progress("waiting for an answer", 0, 0),
            "asking",
        )


def _shown(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def _send_file(
    method: str, url: str, file: Path, timeout_s: float, progress: Progress, headers: dict[str, str]
) -> Reply | None:
    sent = [0]
    with _readable(file):
        size = file.stat().st_size
    return cancellable(
        lambda: _ask(method, url, timeout_s, _blocks(file, sent), {**headers, "Content-Length": str(size)}),
        lambda: progress("sending", sent[0], size),
        "sending",
    )


def _ask(
    method: str, url: str, timeout_s: float, body: bytes | Iterator[bytes] | None, headers: dict[str, str]
) -> Reply | None:
    parts = urlsplit(url)
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

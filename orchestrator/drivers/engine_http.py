"""Plain HTTP to engines and to the gateway's public side."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import httpx

from orchestrator.core.progress import Progress, silent
from orchestrator.drivers.base import Reply

TICK_S = 0.1


class EngineHttp:
    """httpx without proxies: everything it talks to is on this machine. Safe to use from several threads."""

    def __init__(self) -> None:
        self._client = httpx.Client(trust_env=False)

    def get(self, url: str, timeout_s: float) -> Reply | None:
        """The answer, or None when nothing answers in time."""
        return self._ask("GET", url, None, timeout_s)

    def post(self, url: str, body: Mapping[str, Any], timeout_s: float, progress: Progress = silent) -> Reply | None:
        """The answer to a JSON body, or None when nothing answers in time.

        An engine may think for minutes: the request runs in a thread of its own, so that `progress` can be asked
        meanwhile whether to go on waiting. A request that is given up ends with the process or with its timeout.
        """
        answers: list[Reply | None] = []
        asking = threading.Thread(
            target=lambda: answers.append(self._ask("POST", url, body, timeout_s)), daemon=True, name="asking"
        )
        asking.start()
        while asking.is_alive():
            progress("waiting for an answer", 0, 0)
            asking.join(TICK_S)
        return answers[0] if answers else None

    def _ask(self, method: str, url: str, body: Mapping[str, Any] | None, timeout_s: float) -> Reply | None:
        try:
            answer = self._client.request(method, url, json=body, timeout=timeout_s)
        except httpx.TransportError:
            return None
        try:
            value = answer.json()
        except ValueError:
            value = None
        return Reply(answer.status_code, value, answer.text)

"""The server side of HTTP: connections, and what is said on one of which a request cannot even be read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong

from orchestrator.gateway import refusals
from orchestrator.gateway.dialects import spoken_at
from orchestrator.gateway.front import FrontDoor, canonical
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.relay import respond

log = logging.getLogger("orchestrator.gateway")

# Bytes of a request's first line, and of each header: what stands before a gateway adds cookies of 9 KB and more.
LONGEST_LINE = 16 << 10
LONGEST_HEADER = 32 << 10
# What is kept of a head until the next one comes: of one that cannot be read, all that there is to go by.
_KEPT = LONGEST_LINE + 2 * LONGEST_HEADER
_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"PATCH ", b"OPTIONS ")


class Connection(web.RequestHandler):
    """One connection; what goes wrong on it is told in the words of whoever is on the other side."""

    _head = b""
    _head_is_whole = True

    def __init__(self, door: FrontDoor, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._door = door

    def data_received(self, data: bytes) -> None:
        """Of a head that cannot be read, its first line tells whose words those are, and the others which page asks."""
        if data.startswith(_METHODS):
            self._head, self._head_is_whole = b"", False
        if not self._head_is_whole:
            head = self._head + data[:_KEPT]
            end = head.find(b"\r\n\r\n")
            self._head, self._head_is_whole = head[: _KEPT if end < 0 else end], end >= 0
        super().data_received(data)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to a request that could not be read, or whose answer could not be made."""
        path = request.path
        headers: Mapping[str, str] = request.headers
        if status >= 500:
            log.error("%s %s cannot be answered: this is a bug in orch.", request.method, path, exc_info=exc)
            refusal = refusals.failed()
        else:
            path = self._head.split(b" ", 2)[1].decode("latin-1") if self._head else "/v1"
            headers = self._headers()
            refusal = _unreadable(exc, message)
        answer = respond(spoken_at(canonical(path.partition("?")[0])).refused(refusal))
        answer.headers[hdrs.CONNECTION] = "close"
        answer.force_close()
        self._door.let_read(answer, headers)
        return answer

    def _headers(self) -> Mapping[str, str]:
        """Those of a head that cannot be read, as far as they have come: its last line may be half of one."""
        lines = self._head.decode("latin-1").split("\r\n")[1 : None if self._head_is_whole else -1]
        return {name.strip().title(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _unreadable(error: BaseException | None, message: str | None) -> Refusal:
    if isinstance(error, LineTooLong):
        return refusals.head_too_large(LONGEST_HEADER)
    return refusals.unreadable((message or "").partition("\n")[0].rstrip(": "))


class PublicServer(web.Server):
    """Makes them. handler_cancellation: a client that goes away ends its request, held or in flight, at once. Nothing
    is unpacked before it is known whose it is, and within bounds."""

    def __init__(self, door: FrontDoor) -> None:
        super().__init__(door.answer, handler_cancellation=True)
        self._door = door

    def __call__(self) -> Connection:
        """A new one."""
        return Connection(
            self._door,
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,  # none, as in AppRunner
            auto_decompress=False,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_HEADER,
        )

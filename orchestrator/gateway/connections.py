"""The server side of HTTP: connections, and what is said on one of which a request cannot even be read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong

from orchestrator.gateway import refusals
from orchestrator.gateway.dialects import spoken_at
from orchestrator.gateway.dialects.base import Dialect
from orchestrator.gateway.front import FrontDoor, canonical
from orchestrator.gateway.peers import Backlog, Peers, acknowledged
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

    def __init__(self, server: web.Server, door: FrontDoor, peers: Peers) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # none, as in AppRunner
            auto_decompress=False,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_HEADER,
            keepalive_timeout=peers.limits.idle_s,
        )
        self._door = door
        self._peers = peers
        self._head, self._head_is_whole = b"", False
        # Whether a request is waited for, and since when one is that has begun; 0.0: none has.
        self._waits = True
        self._head_since = 0.0
        self._plain: asyncio.Transport | None = None
        self._backlog: Backlog | None = None
        self._sent = asyncio.Event()
        # What of its answers the client had taken when that was seen first, and when; 0.0: all of it.
        self._taken, self._taken_at = 0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there, and has to say what it wants."""
        super().connection_made(transport)
        self._plain = self.transport
        self._head_since = self._loop.time()
        self._peers.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It has gone."""
        self._peers.closed(self)
        if self._backlog is not None:
            self._backlog.drop()
            self._sent.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Of a head that cannot be read, its first line tells whose words those are, and the others which page asks."""
        if data.startswith(_METHODS):
            self._head, self._head_is_whole = b"", False
        if not self._head_is_whole:
            head = self._head + data[:_KEPT]
            end = head.find(b"\r\n\r\n")
            self._head, self._head_is_whole = head[: _KEPT if end < 0 else end], end >= 0
        super().data_received(data)
        if not self._waits:
            return
        if self._messages:
            self._waits, self._head_since = False, 0.0
            self._peers.waiting.pop(self, None)
        elif not self._head_since and data.strip():
            self._head_since = self._loop.time()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """The request is answered when its answer is sent; then another one is waited for."""
        finished = await super().finish_response(request, resp, start_time)
        if self._backlog is not None:
            await self._sent.wait()
        # Of what was not wanted of a body some may be still to come: that is no new request's head.
        if not self._messages and not request.can_read_body and self.transport is not None:
            self._head, self._head_is_whole, self._waits = b"", False, True
            self._peers.waiting[self] = None
        return finished

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to a request that could not be read, or whose answer could not be made."""
        if status >= 500:
            log.error("%s %s cannot be answered: this is a bug in orch.", request.method, request.path, exc_info=exc)
            return self._last(_spoken_at(request.path), refusals.failed(), request.headers)
        return self._last(self._spoken(), _unreadable(exc, message), self._headers())

    def pause_writing(self) -> None:
        """The transport takes no more at the moment; whoever writes need not wait for that."""
        if self._plain is None:
            return
        if self._backlog is None:
            hold, go_on = super().pause_writing, super().resume_writing
            self._backlog = Backlog(self._plain, self._peers, hold, go_on)
            self._sent.clear()
            if self.transport is not None:
                self.transport = self._backlog
        self._backlog.clogged = True
        self._backlog.judge()

    def resume_writing(self) -> None:
        """The transport takes more."""
        backlog = self._backlog
        if backlog is None:
            return
        backlog.clogged = False
        backlog.flow()
        if backlog.over:
            backlog.drop()
            self._backlog = None
            if self.transport is not None:
                self.transport = self._plain
            self._sent.set()

    def look(self, now: float) -> None:
        """See Peer."""
        limits, transport = self._peers.limits, self._plain
        if transport is None:
            return
        if self._waits and self._head_since and now - self._head_since >= limits.head_s:
            self._give_up_head()
        size = transport.get_write_buffer_size() if self._backlog is None else len(self._backlog)
        if not size:
            self._taken_at = 0.0
            return
        taken = acknowledged(transport)
        if not self._taken_at or taken != self._taken:
            self._taken, self._taken_at = taken, now
        elif now - self._taken_at >= limits.unread_s:
            self._cut("unread", size)
            return
        if self._backlog is not None and self._backlog.holds_up(now, taken):
            self._cut("behind", size)

    def let_go(self) -> None:
        """See Peer."""
        self.force_close()
        if self._plain is not None:
            self._plain.abort()

    def _cut(self, reason: str, size: int) -> None:
        """The request ends with the connection, and its engine is told."""
        what = f"A client at {self._host} does not read: {size / 2**20:.1f} MiB of its answer wait. It is cut."
        self._peers.turn_away(reason, what)
        self.let_go()

    def _give_up_head(self) -> None:
        """Tell it, if it has begun to ask; what is said before might be taken for the answer to what is just asked."""
        limits, transport = self._peers.limits, self.transport
        self._waits = False
        if self._head.strip() and transport is not None:
            self._peers.turn_away("slow_head", f"The headers of a request of {self._host} did not come.")
            answer = self._last(self._spoken(), refusals.slow_head(limits.head_s), self._headers())
            body = answer.body if isinstance(answer.body, bytes) else b""
            answer.headers[hdrs.CONTENT_LENGTH] = str(len(body))
            lines = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
            transport.write(f"HTTP/1.1 {answer.status} {answer.reason}\r\n{lines}\r\n".encode() + body)
        self.force_close()

    def _last(self, dialect: Dialect, refusal: Refusal, headers: Mapping[str, str]) -> web.Response:
        """What is said before the connection is closed, to whoever has asked with these headers."""
        answer = respond(dialect.refused(refusal))
        answer.headers[hdrs.CONNECTION] = "close"
        answer.force_close()
        self._door.let_read(answer, headers)
        return answer

    def _headers(self) -> Mapping[str, str]:
        """Those of a head that cannot be read, as far as they have come: its last line may be half of one."""
        lines = self._head.decode("latin-1").split("\r\n")[1 : None if self._head_is_whole else -1]
        return {name.strip().title(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def _host(self) -> str:
        return self.peername[0] if self.peername else "?"

    def _spoken(self) -> Dialect:
        """Whose words the request that has begun is in."""
        first = self._head.lstrip()
        path = first.split(b" ", 2)[1].decode("latin-1") if first.startswith(_METHODS) else "/v1"
        return _spoken_at(path)


def _spoken_at(path: str) -> Dialect:
    return spoken_at(canonical(path.partition("?")[0]))


def _unreadable(error: BaseException | None, message: str | None) -> Refusal:
    if isinstance(error, LineTooLong):
        return refusals.head_too_large(LONGEST_HEADER)
    return refusals.unreadable((message or "").partition("\n")[0].rstrip(": "))


class PublicServer(web.Server):
    """Makes them. handler_cancellation: a client that goes away ends its request, held or in flight, at once. Nothing
    is unpacked before it is known whose it is, and within bounds."""

    def __init__(self, door: FrontDoor, peers: Peers) -> None:
        super().__init__(door.answer, handler_cancellation=True)
        self._door = door
        self._peers = peers

    def __call__(self) -> Connection:
        """A new one."""
        return Connection(self, self._door, self._peers)

"""The server side of HTTP: connections, and what is said on one of which a request cannot even be read."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus

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
# Of a request that comes in pieces, as much is kept to see whose words it is in.
_BEGUN = 256
_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"PATCH ", b"OPTIONS ")


class Connection(web.RequestHandler):
    """One connection; what goes wrong on it is told in the words of whoever is on the other side."""

    def __init__(self, server: web.Server, peers: Peers) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # none, as in AppRunner
            auto_decompress=False,
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_HEADER,
            keepalive_timeout=peers.limits.idle_s,
        )
        self._peers = peers
        self._begun = b""
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
        """Of a head that cannot be read, its first line is all that tells whose words those are."""
        if data.startswith(_METHODS):
            self._begun = data[:_BEGUN]
        elif self._waits and len(self._begun) < _BEGUN:
            self._begun += data[:_BEGUN]
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
            self._begun, self._waits = b"", True
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
            answer = respond(_spoken_at(request.path).refused(refusals.failed()))
        else:
            answer = respond(self._spoken().refused(_unreadable(exc, message)))
        answer.headers[hdrs.CONNECTION] = "close"
        answer.force_close()
        return answer

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
        if self._begun.strip() and transport is not None:
            self._peers.turn_away("slow_head", f"The headers of a request of {self._host} did not come.")
            said = self._spoken().refused(refusals.slow_head(limits.head_s))
            head = (
                f"HTTP/1.1 {said.status} {HTTPStatus(said.status).phrase}\r\nContent-Type: {said.content_type}\r\n"
                f"Content-Length: {len(said.body)}\r\nConnection: close\r\n\r\n"
            )
            transport.write(head.encode() + said.body)
        self.force_close()

    @property
    def _host(self) -> str:
        return self.peername[0] if self.peername else "?"

    def _spoken(self) -> Dialect:
        """Whose words the request that has begun is in."""
        first = self._begun.lstrip()
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
        self._peers = peers

    def __call__(self) -> Connection:
        """A new one."""
        return Connection(self, self._peers)

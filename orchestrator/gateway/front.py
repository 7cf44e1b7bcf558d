"""The front door: which paths there are, and who answers each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus

from aiohttp import HttpVersion11, hdrs, web

from orchestrator.core.gateway_status import Phase
from orchestrator.gateway import cors, metrics, refusals
from orchestrator.gateway.bodies import Body, Ledger, check_head
from orchestrator.gateway.dialects import spoken_at
from orchestrator.gateway.dialects.base import Dialect, Endpoint, Said, Visit
from orchestrator.gateway.early import Early
from orchestrator.gateway.keys import CREDENTIALS, Keys
from orchestrator.gateway.limits import Limits
from orchestrator.gateway.origins import Allowed, parse_host, parse_origin, parse_patterns
from orchestrator.gateway.places import Places
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.relay import Arrival, Behind, Clients, relay, respond
from orchestrator.gateway.succession import Succession
from orchestrator.gateway.switchboard import Switchboard

log = logging.getLogger("orchestrator.gateway")

HEALTH = "/health"
METRICS = "/metrics"
_READ = ("GET", "HEAD")
# What a client is refused for that takes too much, or too long.
_OF_LIMITS = ("slow_body", "rate_limit_exceeded", "too_many_requests", "too_much_held")


def canonical(path: str) -> str:
    """`path` without double and trailing slashes."""
    return "/" + "/".join(part for part in path.split("/") if part)


@dataclass
class Terms:
    """Who may come in, and how much of the gateway they may take: its `limits`.

    Where `keys` are demanded, nothing but /health is answered without one of them, and whoever shows one may come from
    any page and under any name. Else `allowed` says which; the gateway listens on loopback then.
    """

    keys: Keys
    allowed: Allowed
    limits: Limits

    def let_in(self, origins: Iterable[str]) -> None:
        """From now on pages of these besides the gateway's own; nothing changes where one of them cannot be read."""
        try:
            self.allowed = replace(self.allowed, added=parse_patterns(origins))
        except ValueError as error:
            log.warning("The origins that were added before stay: %s.", error)

    def shut_out(self, headers: Mapping[str, str]) -> Refusal | None:
        """Why a gateway without keys does not serve whoever asks with these headers."""
        host, origin = headers.get(hdrs.HOST, ""), headers.get(hdrs.ORIGIN)
        if not self.allowed.host(host):
            return refusals.foreign_host(host, named=parse_host(host) is not None)
        if origin is not None and not self.allowed.origin(origin, host):
            return refusals.foreign_origin(origin, named=parse_origin(origin) is not None)
        return None

    def has_or_brings_key(self, headers: Mapping[str, str]) -> bool:
        """Whether one of the keys is shown, or a preflight says that one will be: it never has one itself."""
        return self.keys.admit(headers) or (len(self.keys) > 0 and cors.announces(headers, CREDENTIALS))

    def reader(self, headers: Mapping[str, str]) -> str:
        """Whose pages may read the answer to a request with these headers: an origin, or all; "" for none."""
        host, origin = headers.get(hdrs.HOST, ""), headers.get(hdrs.ORIGIN)
        if origin is None:
            return ""
        if self.keys.demanded or self.allowed.everybody:
            return cors.ANYBODY
        # A page is not the gateway's own for asking it under a name that is not the gateway's.
        may = self.allowed.origin(origin, host if self.allowed.host(host) else "")
        return origin if may or self.has_or_brings_key(headers) else ""


class FrontDoor:
    """Answers everything that comes in at the public address."""

    def __init__(self, board: Switchboard, clients: Clients, terms: Terms, succession: Succession) -> None:
        self._board = board
        self._clients = clients
        self._terms = terms
        self._succession = succession
        self._ledger = Ledger()
        self._places = Places(terms.limits)
        self._started = int(time.time())
        # When a request came, on the loop's clock.
        self.last_at = time.monotonic()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = canonical(request.path)
        dialect = spoken_at(path)
        self.last_at = asyncio.get_running_loop().time()
        try:
            answer = await self._answered(request, path, dialect)
        except Refusal as refusal:
            if refusal.code in _OF_LIMITS:
                self._board.turned_away[refusal.code] += 1
            answer = respond(dialect.refused(refusal))
            if request.can_read_body:
                # What is left of the body is not wanted, so nothing can follow it on this connection.
                answer.force_close()
        if not answer.prepared:
            self._see_off(request, answer)
        return answer

    def let_read(self, answer: web.StreamResponse, headers: Mapping[str, str]) -> None:
        """Let the page that has asked with these headers read an answer, if it is one that may."""
        if reader := self._terms.reader(headers):
            cors.let_read(answer, reader)

    async def _answered(self, request: web.BaseRequest, path: str, dialect: Dialect) -> web.StreamResponse:
        """Raises Refusal."""
        if cors.is_preflight(request.method, request.headers):
            self._admit_preflight(request.headers)
            return web.Response(status=HTTPStatus.NO_CONTENT, headers=cors.permission(request.headers))
        endpoint = self._admitted(request, path, dialect)
        if hdrs.EXPECT in request.headers:
            await self._go_on(request)
        if path == HEALTH:
            return respond(Said(b'{"status": "ok"}'))
        if path == METRICS:
            traffic, measured = await self._succession.traffic(), self._board.measures.snapshot()
            wanted = request.headers.get(hdrs.ACCEPT, "")
            # In a thread: the library behind it is imported by whoever asks first.
            text, kind = await asyncio.to_thread(metrics.render, traffic, measured, wanted)
            return respond(Said(text, content_type=kind))
        if endpoint.relayed:
            return await self._relayed(request, path, dialect, endpoint)
        with Body(self._ledger, self._terms.limits.body_s) as body:
            if endpoint.reads:
                await body.read(request)
            return respond(
                await dialect.tell(
                    Visit(
                        request.method,
                        path,
                        body.data,
                        self._board.table,
                        self._started,
                        lambda route: Behind(route, self._clients, self._board.table),
                    )
                )
            )

    async def _relayed(
        self, request: web.BaseRequest, path: str, dialect: Dialect, endpoint: Endpoint
    ) -> web.StreamResponse:
        """The answer of an engine, where there is a place for one more; raises Refusal."""
        keys = self._terms.keys
        whose = keys.name_of(request.headers) if self._terms.limits.requests_per_key else ""
        self._places.take(whose)
        try:
            with Body(self._ledger, self._terms.limits.body_s) as body:
                await body.read(request)
                see_off, own = partial(self._see_off, request), keys.shows_issued(request.headers)
                early = Early(request, dialect, see_off, self._terms.limits.held_head_s)
                arrival = Arrival(request, path, dialect, endpoint, body, see_off, early, own)
                return await relay(arrival, self._board, self._clients)
        finally:
            self._places.give_back(whose)

    def _admitted(self, request: web.BaseRequest, path: str, dialect: Dialect) -> Endpoint:
        """Everything that a request's head decides; raises Refusal. Who is not admitted learns nothing else."""
        self._admit(request, path)
        endpoint = Endpoint() if path in (HEALTH, METRICS) else dialect.endpoint(path)
        if endpoint is None:
            raise refusals.unknown_path(request.method, request.path)
        if request.method not in endpoint.methods:
            raise refusals.wrong_method(request.path, request.method, ", ".join(endpoint.methods))
        if endpoint.relayed or endpoint.reads:
            check_head(request)
        return endpoint

    def _admit(self, request: web.BaseRequest, path: str) -> None:
        headers, keys = request.headers, self._terms.keys
        if keys.admit(headers):
            return
        if keys.demanded:
            if not (path == HEALTH and request.method in _READ):
                raise refusals.unauthorized()
            return
        if (refusal := self._terms.shut_out(headers)) is not None:
            raise refusal

    def _admit_preflight(self, headers: Mapping[str, str]) -> None:
        if self._terms.keys.demanded or self._terms.has_or_brings_key(headers):
            return
        if (refusal := self._terms.shut_out(headers)) is not None:
            raise refusal

    async def _go_on(self, request: web.BaseRequest) -> None:
        """Answer an Expect header: a client that waits with its body is not asked for it in vain. Raises Refusal."""
        if request.version != HttpVersion11:
            return
        if request.headers[hdrs.EXPECT].lower() != "100-continue":
            raise refusals.unknown_expectation()
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the head of the answer itself is still to come

    def _see_off(self, request: web.BaseRequest, answer: web.StreamResponse) -> None:
        """What each answer's head is given last. Clients of a gateway that was replaced come again on a new connection,
        which is its successor's."""
        self.let_read(answer, request.headers)
        if self._succession.phase is Phase.LEAVING:
            answer.force_close()
            answer.headers[hdrs.CONNECTION] = "close"

"""The front door: which paths there are, and who answers each."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from aiohttp import HttpVersion11, hdrs, web

from orchestrator.core.gateway_status import Phase
from orchestrator.gateway import metrics, openai, refusals
from orchestrator.gateway.answers import refuse
from orchestrator.gateway.bodies import PATIENCE_S, Body, Ledger, check_head
from orchestrator.gateway.keys import Keys
from orchestrator.gateway.origins import Allowed, parse_host, parse_origin
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.relay import Clients, relay
from orchestrator.gateway.succession import Succession
from orchestrator.gateway.switchboard import Switchboard

HEALTH = "/health"
METRICS = "/metrics"
_READ = ("GET", "HEAD")


def canonical(path: str) -> str:
    """`path` without double and trailing slashes."""
    return "/" + "/".join(part for part in path.split("/") if part)


@dataclass(frozen=True)
class Terms:
    """Who may come in, and how long for.

    Where `keys` are demanded, nothing but /health is answered without one of them, and whoever shows one may come from
    any page and under any name. Else `allowed` says which; the gateway listens on loopback then. A body of which
    nothing more comes for `patience_s` seconds is given up.
    """

    keys: Keys
    allowed: Allowed
    patience_s: float = PATIENCE_S


class FrontDoor:
    """Answers everything that comes in at the public address."""

    def __init__(self, board: Switchboard, clients: Clients, terms: Terms, succession: Succession) -> None:
        self._board = board
        self._clients = clients
        self._terms = terms
        self._succession = succession
        self._ledger = Ledger()
        self._started = int(time.time())
        # When a request came, on the loop's clock.
        self.last_at = time.monotonic()

    def application(self) -> web.Application:
        """One catch-all: the allow-list is here, not in a router that would answer in its own shape."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer, expect_handler=self._go_on)
        app.on_response_prepare.append(self._say_goodbye)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        path = canonical(request.path)
        self.last_at = asyncio.get_running_loop().time()
        try:
            self._check(request, path)
            if path not in openai.RELAYED:
                return await self._read(path)
            with Body(self._ledger, self._terms.patience_s) as body:
                await body.read(request)
                return await relay(request, path, body, self._board, self._clients)
        except Refusal as refusal:
            return refuse(request, path, refusal)

    def _check(self, request: web.Request, path: str) -> None:
        """Everything that a request's head decides; raises Refusal. Who is not admitted learns nothing else."""
        self._admit(request, path)
        if path in openai.RELAYED:
            if request.method != "POST":
                raise refusals.wrong_method(request.path, request.method, "POST")
            check_head(request)
        elif path in (HEALTH, METRICS, openai.MODELS) or path.startswith(openai.MODELS + "/"):
            if request.method not in _READ:
                raise refusals.wrong_method(request.path, request.method, ", ".join(_READ))
        else:
            raise refusals.unknown_path(request.method, request.path)

    def _admit(self, request: web.Request, path: str) -> None:
        headers, keys, allowed = request.headers, self._terms.keys, self._terms.allowed
        if keys.admit(headers):
            return
        if keys.demanded:
            if not (path == HEALTH and request.method in _READ):
                raise refusals.unauthorized()
            return
        host, origin = headers.get(hdrs.HOST, ""), headers.get(hdrs.ORIGIN)
        if not allowed.host(host):
            raise refusals.foreign_host(host, named=parse_host(host) is not None)
        if origin is not None and not allowed.origin(origin, host):
            raise refusals.foreign_origin(origin, named=parse_origin(origin) is not None)

    async def _go_on(self, request: web.Request) -> web.StreamResponse | None:
        """Answer an Expect header: a client that waits with its body is not asked for it in vain."""
        path = canonical(request.path)
        try:
            self._check(request, path)
            if request.version == HttpVersion11:
                if request.headers[hdrs.EXPECT].lower() != "100-continue":
                    raise refusals.unknown_expectation()
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0  # the head of the answer itself is still to come
        except Refusal as refusal:
            return refuse(request, path, refusal)
        return None

    async def _say_goodbye(self, _: web.Request, answer: web.StreamResponse) -> None:
        """Clients of a gateway that was replaced come again on a new connection, which is its successor's."""
        if self._succession.phase is Phase.LEAVING:
            answer.force_close()
            answer.headers[hdrs.CONNECTION] = "close"

    async def _read(self, path: str) -> web.Response:
        table = self._board.table
        if path == HEALTH:
            return web.json_response({"status": "ok"})
        if path == METRICS:
            text = metrics.render(await self._succession.traffic())
            return web.Response(text=text, headers={"Content-Type": metrics.CONTENT_TYPE})
        if path == openai.MODELS:
            return openai.model_list(table, self._started)
        return openai.one_model(path.removeprefix(openai.MODELS + "/"), table, self._started)

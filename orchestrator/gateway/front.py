"""The front door: which paths there are, and who answers each."""

from __future__ import annotations

import time

from aiohttp import HttpVersion11, hdrs, web

from orchestrator.gateway import metrics, openai
from orchestrator.gateway.keys import Keys
from orchestrator.gateway.relay import Clients, relay
from orchestrator.gateway.switchboard import Switchboard

LARGEST_BODY = 64 << 20


def canonical(path: str) -> str:
    """`path` without double and trailing slashes."""
    return "/" + "/".join(part for part in path.split("/") if part)


class FrontDoor:
    """Answers everything that comes in at the public address; with `keys`, nothing but /health without one of them."""

    def __init__(self, board: Switchboard, clients: Clients, keys: Keys | None) -> None:
        self._board = board
        self._clients = clients
        self._keys = keys
        self._started = int(time.time())

    def application(self) -> web.Application:
        """One catch-all: the allow-list is here, not in a router that would answer in its own shape."""
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_route("*", "/{path:.*}", self.answer, expect_handler=self._go_on)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        path = canonical(request.path)
        if not self._admits(request, path):
            return _refused(request)
        if path in openai.RELAYED:
            return await self._relay(request, path) if request.method == "POST" else _wrong_method(request, "POST")
        if path in ("/health", "/metrics", openai.MODELS) or path.startswith(openai.MODELS + "/"):
            return self._read(path) if request.method in ("GET", "HEAD") else _wrong_method(request, "GET, HEAD")
        return openai.error_answer(404, f"There is nothing at {request.method} {request.path}.", "unknown_path")

    def _admits(self, request: web.Request, path: str) -> bool:
        if self._keys is None or (path == "/health" and request.method in ("GET", "HEAD")):
            return True
        return self._keys.admit(request.headers)

    async def _go_on(self, request: web.Request) -> web.StreamResponse | None:
        """Answer an Expect header: a client that waits with its body is not asked for it in vain."""
        if not self._admits(request, canonical(request.path)):
            return _refused(request)
        if request.version == HttpVersion11:
            if request.headers[hdrs.EXPECT].lower() != "100-continue":
                return openai.error_answer(417, "Only `Expect: 100-continue` can be met.", "unknown_expectation")
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the head of the answer itself is still to come
        return None

    def _read(self, path: str) -> web.Response:
        table = self._board.table
        if path == "/health":
            return web.json_response({"status": "ok"})
        if path == "/metrics":
            return web.Response(text=metrics.render(self._board), headers={"Content-Type": metrics.CONTENT_TYPE})
        if path == openai.MODELS:
            return openai.model_list(table, self._started)
        return openai.one_model(path.removeprefix(openai.MODELS + "/"), table, self._started)

    async def _relay(self, request: web.Request, path: str) -> web.StreamResponse:
        try:
            if (request.content_length or 0) > LARGEST_BODY:
                return _too_large()
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _too_large()
        except web.RequestPayloadError as error:
            return openai.error_answer(400, f"The body cannot be read: {error}.", "invalid_body")
        return await relay(request, path, body, self._board, self._clients)


def _refused(request: web.Request) -> web.Response:
    answer = openai.unauthorized()
    if request.can_read_body:
        # The body is not wanted, so nothing can follow it on this connection.
        answer.force_close()
    return answer


def _too_large() -> web.Response:
    answer = openai.error_answer(413, f"The body is larger than {LARGEST_BODY >> 20} MiB.", "body_too_large")
    # What is left of the body is not worth reading.
    answer.force_close()
    return answer


def _wrong_method(request: web.Request, allowed: str) -> web.Response:
    answer = openai.error_answer(405, f"{request.path} is for {allowed}, not {request.method}.", "wrong_method")
    answer.headers["Allow"] = allowed
    return answer

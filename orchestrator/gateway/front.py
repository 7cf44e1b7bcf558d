"""The front door: which paths there are, and who answers each."""

from __future__ import annotations

import time

from aiohttp import web

from orchestrator.gateway import metrics, openai
from orchestrator.gateway.relay import Clients, relay
from orchestrator.gateway.switchboard import Switchboard

LARGEST_BODY = 64 << 20


def canonical(path: str) -> str:
    """`path` without double and trailing slashes."""
    return "/" + "/".join(part for part in path.split("/") if part)


class FrontDoor:
    """Answers everything that comes in at the public address."""

    def __init__(self, board: Switchboard, clients: Clients) -> None:
        self._board = board
        self._clients = clients
        self._started = int(time.time())

    def application(self) -> web.Application:
        """One catch-all: the allow-list is here, not in a router that would answer in its own shape."""
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_route("*", "/{path:.*}", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        path = canonical(request.path)
        if path in openai.RELAYED:
            return await self._relay(request, path) if request.method == "POST" else _wrong_method(request, "POST")
        if path in ("/health", "/metrics", openai.MODELS) or path.startswith(openai.MODELS + "/"):
            return self._read(path) if request.method in ("GET", "HEAD") else _wrong_method(request, "GET, HEAD")
        return openai.error_answer(404, f"There is nothing at {request.method} {request.path}.", "unknown_path")

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


def _too_large() -> web.Response:
    answer = openai.error_answer(413, f"The body is larger than {LARGEST_BODY >> 20} MiB.", "body_too_large")
    # What is left of the body is not worth reading.
    answer.force_close()
    return answer


def _wrong_method(request: web.Request, allowed: str) -> web.Response:
    answer = openai.error_answer(405, f"{request.path} is for {allowed}, not {request.method}.", "wrong_method")
    answer.headers["Allow"] = allowed
    return answer

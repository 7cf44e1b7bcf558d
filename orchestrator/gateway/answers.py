"""The answers that the gateway makes by itself, in the shape of the API that was spoken."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from orchestrator.gateway import anthropic, openai
from orchestrator.gateway.refusals import Refusal


class Shape(Protocol):
    """How one API says that something is wrong."""

    def error_body(self, refusal: Refusal, /) -> bytes:
        """The JSON of a whole answer."""
        ...

    def stream_error(self, refusal: Refusal, /) -> bytes:
        """The last event of a stream that broke."""
        ...


def shape_of(path: str) -> Shape:
    """The shape that clients of a path read."""
    return anthropic if f"{path}/".startswith(f"{anthropic.MESSAGES}/") else openai


def refuse(request: web.Request, path: str, refusal: Refusal) -> web.Response:
    """The whole answer to a request for `path`."""
    body = shape_of(path).error_body(refusal)
    answer = web.Response(
        status=refusal.status, body=body, content_type="application/json", headers=dict(refusal.headers)
    )
    if request.can_read_body:
        # What is left of the body is not wanted, so nothing can follow it on this connection.
        answer.force_close()
    return answer

"""The OpenAI dialect: its paths, where a request names the model, the shape of its errors and lists."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from aiohttp import web

from orchestrator.core.routes import Route, RouteTable

# What is passed on to an engine. Anything that is not named here, such as an engine's admin verbs, is out of reach.
RELAYED = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"},
)
MODELS = "/v1/models"


class BodyError(Exception):
    """The body is not something that a model can be found in; the text says why."""


@dataclass(frozen=True)
class Call:
    """One request body: its bytes as they came, parsed, and the public name it asks for."""

    body: bytes
    document: dict[str, object]
    name: str

    @classmethod
    def parse(cls, body: bytes) -> Call:
        """Find the model's name; raises BodyError."""
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise BodyError(f"The body is not valid JSON: {error}.") from error
        if not isinstance(document, dict):
            raise BodyError("The body must be a JSON object.")
        name = document.get("model")
        if not isinstance(name, str) or not name:
            raise BodyError("The field `model` is missing or is not a string.")
        return cls(body, document, name)

    @property
    def streams(self) -> bool:
        """Whether a stream of events was asked for."""
        return self.document.get("stream") is True

    def body_for(self, route: Route) -> bytes:
        """What the engine is sent: the bytes as they came, unless the route renames, patches or fills in."""
        if route.upstream is None and not route.patch and not route.defaults:
            return self.body
        return orjson.dumps({**route.defaults, **self.document, "model": route.upstream or self.name, **route.patch})


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """`{"error": {message, type, param, code}}`."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_answer(status: int, message: str, code: str | None = None, param: str | None = None) -> web.Response:
    """A whole error answer."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return web.Response(status=status, body=error_body(message, kind, code, param), content_type="application/json")


def unknown_name(name: str, table: RouteTable) -> web.Response:
    """404 that names the valid ones."""
    valid = f"Valid names: {', '.join(table.names)}." if len(table) else "Nothing is deployed: run `orch up`."
    return error_answer(404, f"The model `{name}` does not exist. {valid}", "model_not_found", "model")


def unauthorized() -> web.Response:
    """401 that says what is needed, and nothing of what was given."""
    answer = error_answer(
        401, "A valid API key is needed, as `Authorization: Bearer KEY` or `X-Api-Key: KEY`.", "invalid_api_key"
    )
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def unavailable(message: str) -> web.Response:
    """503 that asks to come again."""
    answer = error_answer(503, message, "backend_unavailable")
    answer.headers["Retry-After"] = "2"
    return answer


def stream_error(message: str) -> bytes:
    """The last event of a stream that broke. No `data: [DONE]` follows it."""
    return b"data: " + error_body(message, "server_error", "stream_interrupted") + b"\n\n"


def model_entry(route: Route, created: int) -> dict[str, object]:
    """One entry of the model list; `created` is in Unix seconds."""
    return {"id": route.name, "object": "model", "created": created, "owned_by": route.owner}


def model_list(table: RouteTable, created: int) -> web.Response:
    """GET /v1/models."""
    entries = [model_entry(route, created) for route in table]
    return web.Response(body=orjson.dumps({"object": "list", "data": entries}), content_type="application/json")


def one_model(name: str, table: RouteTable, created: int) -> web.Response:
    """GET /v1/models/NAME."""
    route = table.find(name)
    if route is None:
        return unknown_name(name, table)
    return web.Response(body=orjson.dumps(model_entry(route, created)), content_type="application/json")

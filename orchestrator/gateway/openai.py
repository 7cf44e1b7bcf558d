"""The OpenAI dialect: its paths, where a request names the model, the shape of its errors and lists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec
import orjson
from aiohttp import web

from orchestrator.core.routes import Route, RouteTable
from orchestrator.gateway import refusals
from orchestrator.gateway.refusals import Refusal

# What is passed on to an engine. Anything that is not named here, such as an engine's admin verbs, is out of reach.
RELAYED = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"},
)
MODELS = "/v1/models"
# Of the top level of a body that is rewritten: far more than any API has.
MOST_FIELDS = 1000


class _Named(msgspec.Struct):
    """What the gateway reads of a body. All else is skipped: read in full, 64 MiB can become gigabytes."""

    model: str
    stream: msgspec.Raw = msgspec.Raw()


# A body whose top level is rewritten; its values stay the bytes that they are.
_NAMED = msgspec.json.Decoder(_Named)
_FIELDS = msgspec.json.Decoder(Annotated[dict[str, msgspec.Raw], msgspec.Meta(max_length=MOST_FIELDS)])


@dataclass(frozen=True)
class Call:
    """What a request body asks for: the public name, and whether a stream of events is wanted."""

    name: str
    streams: bool

    @classmethod
    def parse(cls, body: bytes) -> Call:
        """Find the model's name; raises Refusal."""
        try:
            found = _NAMED.decode(body)
        except msgspec.ValidationError as error:
            raise refusals.invalid_body("The body must be a JSON object with a string as its field `model`.") from error
        except RecursionError as error:
            raise refusals.invalid_body("The body is nested too deeply.") from error
        # UnicodeDecodeError is a ValueError.
        except (msgspec.DecodeError, ValueError) as error:
            raise refusals.invalid_body(f"The body is not valid JSON: {error}.") from error
        if not found.model:
            raise refusals.invalid_body("The field `model` is empty.")
        return cls(found.model, bytes(found.stream) == b"true")

    def body_for(self, route: Route, body: bytes) -> bytes:
        """What the engine is sent: the bytes as they came, unless the route renames, patches or fills in; raises
        Refusal."""
        if route.upstream is None and not route.patch and not route.defaults:
            return body
        try:
            fields = _FIELDS.decode(body)
        except ValueError as error:
            raise refusals.invalid_body(f"The body cannot be read: {error}.") from error
        return msgspec.json.encode({**route.defaults, **fields, "model": route.upstream or self.name, **route.patch})


def error_body(refusal: Refusal) -> bytes:
    """`{"error": {message, type, param, code}}`."""
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    return orjson.dumps({"error": error})


def stream_error(refusal: Refusal) -> bytes:
    """The last event of a stream that broke. No `data: [DONE]` follows it."""
    return b"data: " + error_body(refusal) + b"\n\n"


def model_entry(route: Route, created: int) -> dict[str, object]:
    """One entry of the model list; `created` is in Unix seconds."""
    return {"id": route.name, "object": "model", "created": created, "owned_by": route.owner}


def model_list(table: RouteTable, created: int) -> web.Response:
    """GET /v1/models."""
    entries = [model_entry(route, created) for route in table]
    return web.Response(body=orjson.dumps({"object": "list", "data": entries}), content_type="application/json")


def one_model(name: str, table: RouteTable, created: int) -> web.Response:
    """GET /v1/models/NAME; raises Refusal."""
    route = table.find(name)
    if route is None:
        raise refusals.unknown_name(name, table)
    return web.Response(body=orjson.dumps(model_entry(route, created)), content_type="application/json")

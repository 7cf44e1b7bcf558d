"""Anthropic's API: passed on to engines that know it, under its own errors."""

from __future__ import annotations

import orjson

from orchestrator.core.routes import Route, RouteTable
from orchestrator.gateway import refusals
from orchestrator.gateway.dialects.base import Call, Endpoint, Engine, Question, Said, Visit
from orchestrator.gateway.dialects.named import Passing, body_for, call_of
from orchestrator.gateway.dialects.openai import COMPLETIONS, end_of_event
from orchestrator.gateway.refusals import Refusal

MESSAGES = "/v1/messages"

_MESSAGES = Endpoint(("POST",), relayed=True, instead_of_chats=COMPLETIONS)
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}
_ENDS = (b'"type":"message_stop"', b'"type": "message_stop"', b"event: error")


class Anthropic:
    """See Dialect."""

    def endpoint(self, path: str) -> Endpoint | None:
        return _MESSAGES if path == MESSAGES else None

    def parse(self, path: str, body: bytes) -> Call:
        return call_of(body)

    def find(self, table: RouteTable, name: str) -> Route | None:
        return table.find(name)

    async def question(self, call: Call, path: str, body: bytes, engine: Engine) -> Question:
        route = engine.route
        reply = Passing(_ENDS, call.name if route.answers_as_another else "")
        return Question(path, body_for(route, call.name, body), reply)

    async def tell(self, visit: Visit) -> Said:
        raise refusals.unknown_path(visit.method, visit.path)

    def unknown_name(self, name: str, path: str, table: RouteTable) -> Refusal:
        return refusals.unknown_name(name, table)

    def refused(self, refusal: Refusal) -> Said:
        """`{"type": "error", "error": {type, message}}`."""
        return Said(_error(refusal), refusal.status, headers=refusal.headers)

    def broken(self, refusal: Refusal, sent: bytes) -> bytes:
        """An event that is called error: clients go by the name."""
        return end_of_event(sent) + b"event: error\ndata: " + _error(refusal) + b"\n\n"


def _error(refusal: Refusal) -> bytes:
    kind = _KINDS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": refusal.message}})

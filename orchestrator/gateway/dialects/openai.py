"""OpenAI's API, which all engines know."""

from __future__ import annotations

import orjson

from orchestrator.core.routes import Route
from orchestrator.gateway.dialects.base import Endpoint, Said, Visit
from orchestrator.gateway.dialects.named import ByName
from orchestrator.gateway.refusals import Refusal

MODELS = "/v1/models"
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"

# What is passed on to an engine. Anything that is not named here, such as an engine's admin verbs, is out of reach.
_ENDPOINTS = {
    CHAT: Endpoint(("POST",), relayed=True, instead_of_chats=COMPLETIONS),
    COMPLETIONS: Endpoint(("POST",), relayed=True),
    RESPONSES: Endpoint(("POST",), relayed=True, instead_of_chats=COMPLETIONS),
    "/v1/embeddings": Endpoint(("POST",), relayed=True),
    MODELS: Endpoint(),
}
RELAYED = frozenset(path for path, endpoint in _ENDPOINTS.items() if endpoint.relayed)
_DONE = (b"\ndata: [DONE]",)
# What a whole stream has at its end.
_ENDS = {
    CHAT: _DONE,
    COMPLETIONS: _DONE,
    RESPONSES: (b'"type":"response.completed"', b'"type":"response.incomplete"', b'"type":"response.failed"'),
}


class OpenAI(ByName):
    """See Dialect. It is spoken wherever no other dialect is."""

    ends = _ENDS

    def endpoint(self, path: str) -> Endpoint | None:
        if path.startswith(MODELS + "/"):
            return _ENDPOINTS[MODELS]
        return _ENDPOINTS.get(path)

    async def tell(self, visit: Visit) -> Said:
        if visit.path == MODELS:
            entries = [_entry(route, visit.started) for route in visit.table]
            return Said(orjson.dumps({"object": "list", "data": entries}))
        name = visit.path.removeprefix(MODELS + "/")
        route = self.find(visit.table, name)
        if route is None:
            raise self.unknown_name(name, visit.path, visit.table)
        return Said(orjson.dumps(_entry(route, visit.started)))

    def refused(self, refusal: Refusal) -> Said:
        """`{"error": {message, type, param, code}}`."""
        return Said(_error(refusal), refusal.status, headers=refusal.headers)

    def broken(self, refusal: Refusal, sent: bytes) -> bytes:
        """An event with an error. No `data: [DONE]` follows it."""
        return end_of_event(sent) + b"data: " + _error(refusal) + b"\n\n"


def end_of_event(sent: bytes) -> bytes:
    """What ends the event that was begun with these bytes, if one was."""
    return b"" if not sent or sent.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"


def _error(refusal: Refusal) -> bytes:
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    return orjson.dumps({"error": error})


def _entry(route: Route, created: int) -> dict[str, object]:
    """One entry of the model list; `created` is in Unix seconds."""
    return {"id": route.name, "object": "model", "created": created, "owned_by": route.owner}

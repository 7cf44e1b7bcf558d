"""Anthropic's API: passed on to engines that know it, under its own errors."""

from __future__ import annotations

import orjson

from orchestrator.gateway import refusals
from orchestrator.gateway.dialects.base import Endpoint, Said, Visit
from orchestrator.gateway.dialects.named import ByName
from orchestrator.gateway.dialects.openai import end_of_event
from orchestrator.gateway.dialects.openai.asked import COMPLETIONS
from orchestrator.gateway.refusals import Refusal

MESSAGES = "/v1/messages"

_MESSAGES = Endpoint(("POST",), relayed=True, instead_of_chats=COMPLETIONS)
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_ENDS = {MESSAGES: (b'"type":"message_stop"', b'"type": "message_stop"', b"event: error")}


class Anthropic(ByName):
    """See Dialect."""

    ends = _ENDS

    def endpoint(self, path: str) -> Endpoint | None:
        return _MESSAGES if path == MESSAGES else None

    async def tell(self, visit: Visit) -> Said:
        raise refusals.unknown_path(visit.method, visit.path)

    def refused(self, refusal: Refusal) -> Said:
        """`{"type": "error", "error": {type, message}}`."""
        return Said(_error(refusal), refusal.status, headers=refusal.headers)

    def broken(self, refusal: Refusal, sent: bytes) -> bytes:
        """An event that is called error: clients go by the name."""
        return end_of_event(sent) + b"event: error\ndata: " + _error(refusal) + b"\n\n"


def _error(refusal: Refusal) -> bytes:
    kind = _KINDS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": refusal.message}})

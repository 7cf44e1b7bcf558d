"""The Anthropic dialect: its path, and the shape of its errors."""

from __future__ import annotations

import orjson

from orchestrator.gateway.refusals import Refusal

MESSAGES = "/v1/messages"

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}


def error_body(refusal: Refusal) -> bytes:
    """`{"type": "error", "error": {type, message}}`."""
    kind = _KINDS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": refusal.message}})


def stream_error(refusal: Refusal) -> bytes:
    """The last event of a stream that broke; clients go by its name."""
    return b"event: error\ndata: " + error_body(refusal) + b"\n\n"

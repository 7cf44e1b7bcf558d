"""What Anthropic's API calls its errors and events, and how they are written."""

from __future__ import annotations

import secrets

import orjson

from orchestrator.gateway.dialects.base import Said
from orchestrator.gateway.refusals import Refusal

INVALID = "invalid_request_error"
_KINDS = {
    400: INVALID,
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_RANDOM_BYTES = 12


def error(status: int, message: str) -> bytes:
    """`{"type": "error", "error": {type, message}}`."""
    kind = _KINDS.get(status, INVALID if status < 500 else "api_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})


def event(name: str, **more: object) -> bytes:
    """An event of a stream: clients go by its name, or by the type in it."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **more}))


def error_event(status: int, message: str) -> bytes:
    """The event that is an error."""
    return b"event: error\ndata: " + error(status, message) + b"\n\n"


def invalid(message: str, param: str | None = None) -> Refusal:
    """400 for a request that is not as it must be."""
    return Refusal(400, "invalid_request", message, param)


def too_long(tokens: int, most: int) -> Refusal:
    """400 in the words by which clients see that they have to shorten a conversation."""
    return Refusal(400, "context_length_exceeded", f"prompt is too long: {tokens} tokens > {most} maximum", "messages")


def refused(refusal: Refusal) -> Said:
    """The whole answer to a request that is refused."""
    return Said(error(refusal.status, refusal.message), refusal.status, headers=refusal.headers)


def new_id(kind: str) -> str:
    """A name for a message ("msg") or a call of a tool ("toolu")."""
    return f"{kind}_{secrets.token_hex(_RANDOM_BYTES)}"

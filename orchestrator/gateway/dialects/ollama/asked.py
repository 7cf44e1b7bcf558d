"""What a request in Ollama's API asks for, by Go's rules: names of fields in any case, the last one counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from orchestrator.gateway import refusals
from orchestrator.gateway.dialects.base import Call
from orchestrator.gateway.dialects.ollama import words
from orchestrator.gateway.refusals import Refusal

# Names of fields in a body, at all depths.
MOST_NAMES = 50_000
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRUCTS = {
    "/api/chat": "ChatRequest",
    "/api/generate": "GenerateRequest",
    "/api/embed": "EmbedRequest",
    "/api/embeddings": "EmbeddingRequest",
    "/api/show": "ShowRequest",
    "/api/pull": "PullRequest",
}


def fields_of(path: str, body: bytes) -> dict[str, msgspec.Raw]:
    """The top level of a body by names in lower case; raises Refusal in Go's words."""
    if not body or body.isspace():
        raise words.fault(400, "missing request body")
    if (names := body.count(b'":')) > MOST_NAMES and names - body.count(b'\\":') > MOST_NAMES:
        raise refusals.too_intricate(MOST_NAMES)
    try:
        found = _FIELDS.decode(body)
    except msgspec.ValidationError as error:
        raise words.fault(
            400, f"json: cannot unmarshal {_kind(body)} into Go value of type api.{_STRUCTS[path]}"
        ) from error
    except RecursionError as error:
        raise words.fault(400, "exceeded max depth") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise _malformed(str(error), body) from error
    return {name.lower(): value for name, value in found.items()}


def text_of(fields: dict[str, msgspec.Raw], path: str, name: str) -> str:
    """A string, "" where it is not there or null; raises Refusal."""
    value = bytes(fields.get(name, b"null"))
    if value == b"null":
        return ""
    if not value.startswith(b'"'):
        raise wrong_type(path, name, value, "string")
    return str(msgspec.json.decode(value))


def truth_of(fields: dict[str, msgspec.Raw], path: str, name: str, default: bool) -> bool:
    """A truth; raises Refusal."""
    value = bytes(fields.get(name, b"null"))
    if value not in (b"null", b"true", b"false"):
        raise wrong_type(path, name, value, "bool")
    return default if value == b"null" else value == b"true"


def call_of(path: str, body: bytes) -> Call:
    """The model and whether a stream is wanted; raises Refusal."""
    fields = fields_of(path, body)
    streams = path in ("/api/chat", "/api/generate") and truth_of(fields, path, "stream", default=True)
    return Call(text_of(fields, path, "model"), streams)


def wrong_type(path: str, name: str, value: bytes, wanted: str) -> Refusal:
    """400 as Go's decoder says it."""
    return words.fault(
        400, f"json: cannot unmarshal {_kind(value)} into Go struct field {_STRUCTS[path]}.{name} of type {wanted}"
    )


def _kind(value: bytes) -> str:
    first = value.lstrip()[:1]
    return {b'"': "string", b"[": "array", b"{": "object", b"t": "bool", b"f": "bool"}.get(first, "number")


def _malformed(message: str, body: bytes) -> Refusal:
    """What Go says of JSON that is none."""
    place = message.rpartition("(byte ")[2].rstrip(")")
    if "truncated" in message or not place.isdigit() or int(place) >= len(body):
        return words.fault(400, "unexpected EOF")
    letter = body[int(place) :].decode("utf-8", "replace")[0]
    return words.fault(400, f"invalid character '{letter}' looking for beginning of value")


@dataclass(frozen=True)
class Asked:
    """TO BE DONE."""

    fields: dict[str, Any]

    @classmethod
    def read(cls, path: str, body: bytes) -> Asked:
        """The whole of it; raises Refusal."""
        return cls(dict(fields_of(path, body)))

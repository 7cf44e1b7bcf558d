"""How Go writes JSON, times and errors, and what Ollama says with them."""

from __future__ import annotations

import functools
import json
import re
import time
from datetime import UTC, datetime

import orjson

from orchestrator.gateway.dialects.base import Said
from orchestrator.gateway.refusals import Refusal

GO_JSON = "application/json; charset=utf-8"
LINES = "application/x-ndjson"
_PLAIN = {"unknown_path": b"404 page not found", "wrong_method": b"405 method not allowed"}
# What Go's encoder escapes in strings, so that JSON may stand in HTML.
_ESCAPES = {
    b"<": rb"\u003c",
    b">": rb"\u003e",
    b"&": rb"\u0026",
    "\u2028".encode(): rb"\u2028",
    "\u2029".encode(): rb"\u2029",
}
_ESCAPED = re.compile(b"|".join(_ESCAPES))


def go_json(value: object) -> bytes:
    """JSON as Go's encoder writes it: compact, HTML-safe. Those characters can stand only in strings."""
    return _ESCAPED.sub(lambda found: _ESCAPES[found[0]], orjson.dumps(value))


def quoted(text: str) -> str:
    """A text in quotes, as Go's %q writes it."""
    return json.dumps(text, ensure_ascii=False)


@functools.lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def timestamp(nanoseconds: int) -> str:
    """A moment since 1970 as Go writes it in UTC, without zeros at the end of its fraction."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    digits = f"{fraction:09d}".rstrip("0")
    return f"{_second(seconds)}.{digits}Z" if digits else f"{_second(seconds)}Z"


def now() -> str:
    """This moment."""
    return timestamp(time.time_ns())


def of_modelfile(text: str) -> str:
    """A value as it stands in a Modelfile: in quotes only where it would else be read otherwise."""
    if "\n" in text:
        return f'"""{text}"""'
    return f'"{text}"' if text != text.strip() else text


def error(text: str) -> bytes:
    """`{"error": text}`."""
    return go_json({"error": text})


def fault(status: int, text: str) -> Refusal:
    """A refusal in Ollama's own words."""
    return Refusal(status, "ollama", text)


def full_name(name: str) -> str:
    """A model's name as Ollama keeps it: with a host, a namespace and a tag."""
    start, _, last = name.rpartition("/")
    parts = [*start.split("/")] if start else []
    whole = [*("registry.ollama.ai", "library")[: max(0, 2 - len(parts))], *parts]
    return "/".join([*whole, last if ":" in last else f"{last}:latest"])


def unknown_name(name: str) -> Refusal:
    """404 for a model that is not served."""
    return fault(404, f"model '{name}' not found")


def refused(refusal: Refusal) -> Said:
    """The whole answer to a request that is refused."""
    if refusal.code in _PLAIN:
        return Said(_PLAIN[refusal.code], refusal.status, "text/plain", refusal.headers)
    return Said(error(refusal.message), refusal.status, GO_JSON, refusal.headers)

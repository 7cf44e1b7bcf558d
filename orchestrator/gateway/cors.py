"""What browsers are told of pages and answers: CORS, the same on every path and in front of every engine.

Before a page sends what a plain form could not, its browser asks whether it may (a preflight: OPTIONS, without the key
that is to follow); and it keeps every answer from the page that does not name it. Neither lets anybody in: whoever
comes after a preflight is judged by its own Origin, Host and key. Browsers are never told that a page may use what they
keep for this address themselves (cookies, passwords): there is no Access-Control-Allow-Credentials.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import islice

from aiohttp import hdrs, web

ANYBODY = "*"
# Ollama's: all of them, on every path, and for twelve hours (Chromium remembers two of them).
_METHODS = "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
_MAX_AGE_S = 12 * 3600
# For pages of public sites, and a gateway on the user's own machine. Chromium 156 asks its user instead.
_ASKS_FOR_PRIVATE_NETWORK = "Access-Control-Request-Private-Network"
_ALLOW_PRIVATE_NETWORK = "Access-Control-Allow-Private-Network"

_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]{1,100}", re.ASCII)
# Ollama names its clients' headers one by one; here all are good that a page has a use for.
_MOST_NAMES = 100


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a browser asks for a page whether it may ask."""
    return method == hdrs.METH_OPTIONS and hdrs.ORIGIN in headers and hdrs.ACCESS_CONTROL_REQUEST_METHOD in headers


def announces(headers: Mapping[str, str], names: Collection[str]) -> bool:
    """Whether a preflight says that one of these headers (lower case) is to follow."""
    return any(name.lower() in names for name in _asked_for(headers))


def permission(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of the answer to a preflight whose page may ask: all that it has asked for."""
    given: dict[str, str] = {hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS, hdrs.ACCESS_CONTROL_MAX_AGE: f"{_MAX_AGE_S}"}
    if names := _asked_for(headers):
        given[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = ", ".join(names)
    if headers.get(_ASKS_FOR_PRIVATE_NETWORK, "").lower() == "true":
        given[_ALLOW_PRIVATE_NETWORK] = "true"
    return given


def let_read(answer: web.StreamResponse, reader: str) -> None:
    """Let pages of an origin (or ANYBODY) read an answer, with all of its headers."""
    head = answer.headers
    head[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = reader
    head[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "*"
    if reader != ANYBODY:
        # No cache may give it to another page.
        head.add(hdrs.VARY, hdrs.ORIGIN)


def _asked_for(headers: Mapping[str, str]) -> list[str]:
    words = headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "").split(",")
    return list(islice((name for word in words if _NAME.fullmatch(name := word.strip())), _MOST_NAMES))

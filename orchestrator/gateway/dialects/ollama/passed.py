"""Ollama's API in front of Ollama itself: it passes, but for the names that models have in it."""

from __future__ import annotations

import re

import msgspec

from orchestrator.core.routes import Route
from orchestrator.gateway.dialects.base import Said
from orchestrator.gateway.dialects.named import Passing
from orchestrator.gateway.dialects.ollama.words import GO_JSON, full_name

# A line with an error is an end, too.
_ERROR = b'{"error":'
_ENDS = (b'"done":true', _ERROR)


def body_for(route: Route, body: bytes) -> bytes:
    """The same, for the model as the engine knows it: of fields whose names differ in case only, Go takes the last."""
    added = msgspec.json.encode({"model": route.upstream or route.name})
    return b"".join((memoryview(body.rstrip(b" \t\r\n"))[:-1], b",", memoryview(added)[1:]))


class Passed(Passing):
    """See Reply: under the name that was asked for, in errors too."""

    def __init__(self, route: Route, name: str) -> None:
        super().__init__(_ENDS, name)
        theirs = route.upstream or route.name
        # Errors have a name as it was asked for, or whole; it may be a part of other words, "tiny" of "destiny" too.
        self._ours = {theirs.encode(): name.encode(), full_name(theirs).encode(): full_name(name).encode()}
        either = b"|".join(map(re.escape, sorted(self._ours, key=len, reverse=True)))
        self._theirs = re.compile(rb"(?<![\w./:-])(?:" + either + rb")(?![\w/:-]|\.\w)")

    async def whole(self, status: int, body: bytes) -> Said:
        """See Reply."""
        return Said(self.rewritten(body), status, GO_JSON)

    def rewritten(self, text: bytes) -> bytes:
        if _ERROR not in text:
            return super().rewritten(text)
        return b"".join(map(self._line, text.splitlines(keepends=True)))

    def _line(self, line: bytes) -> bytes:
        if line.startswith(_ERROR):
            return self._theirs.sub(lambda found: self._ours[found[0]], line)
        return super().rewritten(line)

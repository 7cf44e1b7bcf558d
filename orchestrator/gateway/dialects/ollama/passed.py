"""Ollama's API in front of Ollama itself: it passes, but for the names that models have in it."""

from __future__ import annotations

import msgspec

from orchestrator.core.routes import Route
from orchestrator.gateway.dialects.base import Said
from orchestrator.gateway.dialects.named import Passing
from orchestrator.gateway.dialects.ollama.words import GO_JSON

# A line with an error is an end, too.
_ENDS = (b'"done":true', b'{"error":')


def body_for(route: Route, body: bytes) -> bytes:
    """The same, for the model as the engine knows it: of fields whose names differ in case only, Go takes the last."""
    added = msgspec.json.encode({"model": route.upstream or route.name})
    return b"".join((memoryview(body.rstrip(b" \t\r\n"))[:-1], b",", memoryview(added)[1:]))


class Passed(Passing):
    """See Reply: under the name that was asked for, in errors too."""

    def __init__(self, route: Route, name: str) -> None:
        super().__init__(_ENDS, name)
        self._theirs = (route.upstream or route.name).encode()
        self._ours = name.encode()

    async def whole(self, status: int, body: bytes) -> Said:
        """See Reply."""
        return Said(self._renamed(body), status, GO_JSON)

    def _renamed(self, text: bytes) -> bytes:
        if text.startswith(b'{"error":'):
            return text.replace(self._theirs, self._ours)
        return super()._renamed(text)

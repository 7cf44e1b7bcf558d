"""Ollama's API, in front of every engine: in front of Ollama itself it passes, elsewhere it is translated.

Answers are those of a recorded Ollama 0.33 to the byte, but for what only it can know. words: how Go writes and what it
says; asked: what a request means; translated: the same for an engine that knows OpenAI's API, and its answer back;
library: lists and descriptions.
"""

from __future__ import annotations

import asyncio

from orchestrator.core.routes import OLLAMA, Route, RouteTable
from orchestrator.gateway.dialects.base import Call, Endpoint, Engine, Question, Said, Visit
from orchestrator.gateway.dialects.ollama import library, words
from orchestrator.gateway.dialects.ollama.asked import Asked, call_of
from orchestrator.gateway.dialects.ollama.passed import Passed, body_for
from orchestrator.gateway.dialects.ollama.translated import translated
from orchestrator.gateway.refusals import Refusal

CHAT, GENERATE = "/api/chat", "/api/generate"
EMBED, EMBEDDINGS = "/api/embed", "/api/embeddings"
# Of these one asks for a model, and what comes back is the answer of the engine behind it.
_EMBEDDED = Endpoint(("POST",), relayed=True, operation="embeddings")
_LARGE = 64 << 10
_ENDPOINTS = {
    CHAT: Endpoint(("POST",), relayed=True, instead_of_chats=GENERATE),
    GENERATE: Endpoint(("POST",), relayed=True, operation="text_completion"),
    EMBED: _EMBEDDED,
    EMBEDDINGS: _EMBEDDED,
}


class Ollama:
    """See Dialect."""

    # Every line is an answer.
    has_comments = False

    def endpoint(self, path: str) -> Endpoint | None:
        return _ENDPOINTS.get(path) or library.endpoint(path)

    def parse(self, path: str, body: bytes) -> Call:
        return call_of(path, body)

    def find(self, table: RouteTable, name: str) -> Route | None:
        return library.find(table, name)

    async def question(self, call: Call, path: str, body: bytes, engine: Engine) -> Question | Said:
        route = engine.route
        if OLLAMA in route.speaks:
            return Question(path, body_for(route, body), Passed(route, call.name))
        # A large one takes a while, in which others are to be answered.
        asked = Asked.read(path, body) if len(body) < _LARGE else await asyncio.to_thread(Asked.read, path, body)
        return await translated(asked, path, engine)

    async def tell(self, visit: Visit) -> Said:
        return await library.tell(visit)

    def unknown_name(self, name: str, path: str, table: RouteTable) -> Refusal:
        return words.unknown_name(name)

    def refused(self, refusal: Refusal) -> Said:
        """`{"error": "text"}`; where there is nothing to be found, plain text."""
        return words.refused(refusal)

    def broken(self, refusal: Refusal, sent: bytes) -> bytes:
        """A last line with an error."""
        return (b"" if not sent or sent.endswith(b"\n") else b"\n") + words.error(refusal.message) + b"\n"

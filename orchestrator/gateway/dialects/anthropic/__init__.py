"""Anthropic's API, in front of every engine: in front of Ollama it passes, elsewhere it is translated to chats.

llama.cpp and vLLM know it, too, and each differently, so that a program would see another API after a migration.
llama.cpp loses what a route adds (adapters), `thinking`, documents, and which tool is to be called, and ends all blocks
of a stream at its end; vLLM refuses a `max_tokens` above the context and any small budget, and has other errors. words:
errors and events; asked: what a request means; translated: the same as a chat, and how many tokens it has; blocks and
answers: a chat's answer back.
"""

from __future__ import annotations

import asyncio

from orchestrator.core.routes import OLLAMA, Route, RouteTable
from orchestrator.gateway import refusals
from orchestrator.gateway.dialects.anthropic import words
from orchestrator.gateway.dialects.anthropic.asked import Asked
from orchestrator.gateway.dialects.anthropic.passed import counted_by_ollama, passed
from orchestrator.gateway.dialects.anthropic.translated import counted, translated
from orchestrator.gateway.dialects.base import Call, Endpoint, Engine, Question, Said, Visit
from orchestrator.gateway.dialects.named import call_of
from orchestrator.gateway.dialects.openai import end_of_event
from orchestrator.gateway.dialects.openai.asked import COMPLETIONS
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.servers import server_of

MESSAGES = "/v1/messages"
COUNT_TOKENS = "/v1/messages/count_tokens"

_ENDPOINTS = {
    MESSAGES: Endpoint(("POST",), relayed=True, instead_of_chats=COMPLETIONS),
    COUNT_TOKENS: Endpoint(("POST",), relayed=True, instead_of_chats=COMPLETIONS, operation="count_tokens"),
}
_LARGE = 64 << 10


class Anthropic:
    """See Dialect."""

    has_comments = True

    def endpoint(self, path: str) -> Endpoint | None:
        return _ENDPOINTS.get(path)

    def parse(self, path: str, body: bytes) -> Call:
        return call_of(body)

    def find(self, table: RouteTable, name: str) -> Route | None:
        return table.find(name)

    async def question(self, call: Call, path: str, body: bytes, engine: Engine) -> Question | Said:
        route = engine.route
        server = server_of(route)
        if server is None and (path == MESSAGES or OLLAMA not in route.speaks):
            return passed(route, call, path, body, engine.card)
        # A large one takes a while, in which others are to be answered.
        wanted = path == MESSAGES
        asked = Asked.read(body, wanted) if len(body) < _LARGE else await asyncio.to_thread(Asked.read, body, wanted)
        if server is None:
            return await counted_by_ollama(asked, engine)
        if path == COUNT_TOKENS:
            return await counted(asked, engine, server)
        return await translated(asked, engine, server)

    async def tell(self, visit: Visit) -> Said:
        raise refusals.unknown_path(visit.method, visit.path)

    def unknown_name(self, name: str, path: str, table: RouteTable) -> Refusal:
        return refusals.unknown_name(name, table)

    def refused(self, refusal: Refusal) -> Said:
        """`{"type": "error", "error": {type, message}}`."""
        return words.refused(refusal)

    def broken(self, refusal: Refusal, sent: bytes) -> bytes:
        """An event that is called error: clients go by the name."""
        return end_of_event(sent) + words.error_event(refusal.status, refusal.message)

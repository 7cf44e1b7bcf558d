"""OpenAI's API, which all engines know, each in its own way: it is spoken wherever no other dialect is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import orjson

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import Route, RouteTable
from orchestrator.gateway import refusals
from orchestrator.gateway.dialects.base import Call, Endpoint, Engine, Question, Said, Visit
from orchestrator.gateway.dialects.named import Passing, body_for
from orchestrator.gateway.dialects.openai import counted, unasked
from orchestrator.gateway.dialects.openai.answers import Answer, error_of
from orchestrator.gateway.dialects.openai.asked import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    INPUT_TOKENS,
    RESPONSES,
    Asked,
    Responses,
    read,
)
from orchestrator.gateway.dialects.openai.fitted import Fitting, check, fitting_of
from orchestrator.gateway.refusals import Refusal

MODELS = "/v1/models"

# What is passed on to an engine. Anything that is not named here, such as an engine's admin verbs, is out of reach.
_ENDPOINTS = {
    CHAT: Endpoint(("POST",), relayed=True, instead_of_chats=COMPLETIONS),
    COMPLETIONS: Endpoint(("POST",), relayed=True, operation="text_completion"),
    RESPONSES: Endpoint(("POST",), relayed=True, instead_of_chats=COMPLETIONS),
    INPUT_TOKENS: Endpoint(("POST",), relayed=True, instead_of_chats=COMPLETIONS, operation="count_tokens"),
    EMBEDDINGS: Endpoint(("POST",), relayed=True, operation="embeddings"),
    MODELS: Endpoint(),
}
# Tokens are counted here, by what engines have for it.
RELAYED = frozenset(path for path, endpoint in _ENDPOINTS.items() if endpoint.relayed) - {INPUT_TOKENS}
_DONE = (b"\ndata: [DONE]",)
# What a whole stream has at its end.
_ENDS: dict[str, tuple[bytes, ...]] = {
    CHAT: _DONE,
    COMPLETIONS: _DONE,
    RESPONSES: (b'"type":"response.completed"', b'"type":"response.incomplete"', b'"type":"response.failed"'),
}
# What is before it says only that there will be an answer.
_BEGINS = {RESPONSES: b'.delta"'}


class OpenAI:
    """See Dialect."""

    has_comments = True

    def endpoint(self, path: str) -> Endpoint | None:
        if path.startswith(MODELS + "/"):
            return _ENDPOINTS[MODELS]
        return _ENDPOINTS.get(path)

    def parse(self, path: str, body: bytes) -> Call:
        return read(path, body)

    def find(self, table: RouteTable, name: str) -> Route | None:
        return table.find(name)

    async def question(self, call: Call, path: str, body: bytes, engine: Engine) -> Question | Said:
        assert isinstance(call, Asked)
        route, question = engine.route, call.question
        name = call.name if route.answers_as_another else ""
        fitting = fitting_of(route)
        if fitting is None:
            passing = Passing(_ENDS.get(path, ()), name)
            return Question(path, body_for(route, call.name, body), passing, _BEGINS.get(path, b""))
        check(question)
        if path == INPUT_TOKENS:
            assert isinstance(question, Responses)
            return await counted.told(question, engine)
        fit = fitting(engine.card, body)
        changes, longest = fit.changes(question) | await fit.room(question, engine), fit.longest(question)
        asking = partial(_asking, call, path, body, route, fit, changes)
        return asking({}, partial(asking, longest) if longest is not None else None)

    async def tell(self, visit: Visit) -> Said:
        if visit.path == MODELS:
            entries = [_entry(route, visit.table.card_of(route), visit.started) for route in visit.table]
            return Said(orjson.dumps({"object": "list", "data": entries}))
        name = visit.path.removeprefix(MODELS + "/")
        route = self.find(visit.table, name)
        if route is None:
            raise self.unknown_name(name, visit.path, visit.table)
        return Said(orjson.dumps(_entry(route, visit.table.card_of(route), visit.started)))

    def unknown_name(self, name: str, path: str, table: RouteTable) -> Refusal:
        return refusals.unknown_name(name, table)

    def refused(self, refusal: Refusal) -> Said:
        """`{"error": {message, type, param, code}}`."""
        return Said(error_of(refusal), refusal.status, headers=refusal.headers)

    def broken(self, refusal: Refusal, sent: bytes) -> bytes:
        """An event with an error. No `data: [DONE]` follows it."""
        return end_of_event(sent) + b"data: " + error_of(refusal) + b"\n\n"


def _asking(
    call: Asked,
    path: str,
    body: bytes,
    route: Route,
    fit: Fitting,
    changes: Mapping[str, object],
    more: Mapping[str, object],
    instead: Callable[[], Question] | None = None,
    figures: bool = True,
) -> Question:
    """What an engine whose server is known is sent, with the changes that it fits by and `more`; without the wish for
    `figures` where it does not know of them.

    No closure: one that named itself would keep the body until a garbage collection.
    """
    options = unasked.options(call.question) if figures else None
    taken_out = fit.unasked(call.question) if options is not None else None
    plain, sent = None, {**changes, **more}
    if taken_out is not None:
        plain = partial(_asking, call, path, body, route, fit, changes, more, instead, figures=False)
        sent["stream_options"] = options
    name = call.name if route.answers_as_another else ""
    answer = Answer(path, _ENDS.get(path, ()), name, fit.context, instead, taken_out, plain)
    return Question(path, body_for(route, call.name, body, sent), answer, _BEGINS.get(path, b""))


def end_of_event(sent: bytes) -> bytes:
    """What ends the event that was begun with these bytes, if one was."""
    return b"" if not sent or sent.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"


def _entry(route: Route, card: ModelCard | None, created: int) -> dict[str, object]:
    """One entry of the model list; `created` is in Unix seconds."""
    known = {"max_model_len": card.context} if card is not None and card.context else {}
    return {"id": route.name, "object": "model", "created": created, "owned_by": route.owner, **known}

"""Anthropic's API in front of Ollama, and of engines that nothing else is known of: what they say of it passes."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
import orjson

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import OLLAMA, Route
from orchestrator.gateway.dialects.anthropic.asked import Asked
from orchestrator.gateway.dialects.base import Call, Engine, Question, Said
from orchestrator.gateway.dialects.named import Passing, body_for
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.servers import reason_in

Json = dict[str, Any]
_ENDS = (b'"type":"message_stop"', b'"type": "message_stop"', b"event: error")
# What is before it says only that there will be an answer.
_BEGINS = b"content_block_delta"
_NO_THOUGHTS = b',"thinking":{"type":"disabled"}}'


class _Counted(msgspec.Struct):
    prompt_eval_count: int = 0


class _TooLong(msgspec.Struct):
    n_prompt_tokens: int


class _TooLongSaid(msgspec.Struct):
    error: _TooLong


class _Refused(msgspec.Struct):
    """What llama.cpp's server said, as a text."""

    error: str


def passed(route: Route, call: Call, path: str, body: bytes, card: ModelCard | None) -> Question:
    """The same question."""
    if OLLAMA in route.speaks and card is not None and not card.thinks:
        # It refuses to have a model think that cannot; elsewhere that is asked for in vain.
        body = body.rstrip(b" \t\r\n")[:-1] + _NO_THOUGHTS
    reply = Passing(_ENDS, call.name if route.answers_as_another else "")
    return Question(path, body_for(route, call.name, body), reply, _BEGINS)


async def counted_by_ollama(asked: Asked, engine: Engine) -> Said:
    """How many tokens a prompt has. Ollama tells no other way than by reading it, for an answer of one token; a prompt
    that is too long it refuses with its count. Raises Refusal."""
    options = {"num_predict": 1}
    body: Json = {"messages": list(map(_message, asked.messages)), "stream": False, "truncate": False}
    body |= {"options": options, "tools": asked.tools}
    if asked.thinks is not None and (engine.card is None or engine.card.thinks):
        body["think"] = asked.thinks
    status, answer = await engine.ask("POST", "/api/chat", msgspec.json.encode(engine.route.filled(body)))
    try:
        if status == HTTPStatus.OK:
            tokens = msgspec.json.decode(answer, type=_Counted).prompt_eval_count
        else:
            said = msgspec.json.decode(answer, type=_Refused).error
            tokens = msgspec.json.decode(said, type=_TooLongSaid).error.n_prompt_tokens
    except (msgspec.DecodeError, ValueError) as error:
        raise Refusal(min(status, 500) if status >= 400 else 500, "engine_refused", reason_in(answer)) from error
    return Said(orjson.dumps({"input_tokens": tokens}))


def _message(message: Json) -> Json:
    """One in Ollama's own words."""
    told: Json = {name: message[name] for name in ("role", "content", "tool_call_id") if name in message}
    if "reasoning" in message:
        told["thinking"] = message["reasoning"]
    calls = [
        {
            "id": call["id"],
            "function": call["function"] | {"arguments": msgspec.Raw(call["function"]["arguments"].encode())},
        }
        for call in message.get("tool_calls", ())
    ]
    return told | ({"tool_calls": calls} if calls else {})

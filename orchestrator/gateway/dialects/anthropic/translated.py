"""Anthropic's questions for an engine that knows OpenAI's API."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from orchestrator.gateway.dialects.anthropic import words
from orchestrator.gateway.dialects.anthropic.answers import Answer
from orchestrator.gateway.dialects.anthropic.asked import Asked
from orchestrator.gateway.dialects.anthropic.blocks import Blocks
from orchestrator.gateway.dialects.base import Engine, NoAnswerError, Question, Said
from orchestrator.gateway.dialects.openai.asked import CHAT
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.servers import Server

Json = dict[str, Any]
# Bytes that a template may put around a message, beside the text that it has itself.
_FRAME = 64
# vLLM tells with each event how many tokens there are by then where it is asked the first, llama.cpp the second.
_COUNTED = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "timings_per_token": True,
}


async def translated(asked: Asked, engine: Engine, server: Server) -> Question:
    """What to ask the engine; raises Refusal."""
    return await _Translation(asked, engine, server).question()


async def counted(asked: Asked, engine: Engine, server: Server) -> Said:
    """How many tokens a prompt has, as the engine would read it; raises Refusal."""
    tokens = await _Translation(asked, engine, server).tokens()
    return Said(orjson.dumps({"input_tokens": tokens}))


class _Translation:
    """One question for one engine."""

    def __init__(self, asked: Asked, engine: Engine, server: Server) -> None:
        self.asked = asked
        self.engine = engine
        self.server = server
        self.card = engine.card
        self.served = self.card.context if self.card is not None else 0
        if asked.tools and self.card is not None and not self.card.takes_tools:
            raise words.invalid(
                f"tools: `{asked.model}` takes none, because its chat template has no place for them", "tools"
            )
        if asked.goes_on and asked.thinks:
            raise words.invalid(
                "messages: the last one is the assistant's, and an answer that is begun has no thoughts; disable "
                "`thinking`, or end with a message of the user's",
                "messages",
            )

    async def question(self) -> Question:
        """What to ask; raises Refusal."""
        asked, server = self.asked, self.server
        chat = self._chat()
        body = server.sampling(asked.sampling, self.served) | chat
        if asked.tools:
            body |= {"tool_choice": "required" if asked.must_call else "auto", "parallel_tool_calls": asked.parallel}
        if asked.form is not None:
            body |= server.form(asked.form, chats=True)
        if not self._surely_fits():
            await self._fit(body)
        # What ends it is looked for here: llama.cpp does not tell which it was, and engines look into thoughts, too.
        if asked.streams or asked.stops:
            body |= _COUNTED
        beginning = asked.messages[-1]["content"] if asked.goes_on and server.repeats and not asked.stops else ""
        told = Blocks(asked.stops, bool(asked.tools), asked.parallel, beginning)
        too_long = None if self._prompt_surely_fits() else self._too_long
        answer = Answer(asked.model, asked.streams, told, too_long)
        return Question(CHAT, msgspec.json.encode(self.engine.route.filled(body)), answer)

    async def tokens(self) -> int:
        """How many the prompt has; raises Refusal."""
        return len(await self.server.prompt(self.engine, self._chat()))

    def _chat(self) -> Json:
        """What makes the prompt."""
        asked = self.asked
        chat: Json = {"messages": list(asked.messages)}
        if asked.tools:
            chat["tools"] = list(asked.tools)
        thinks = False if asked.goes_on else asked.thinks
        if thinks is not None and (self.card is None or self.card.thinks):
            chat["chat_template_kwargs"] = {"enable_thinking": thinks}
        return chat | (self.server.going_on() if asked.goes_on else {})

    def _most(self) -> int:
        """Tokens that a prompt may have: one is left for the answer."""
        return self.served - 1

    def _bytes(self) -> int:
        """More than the tokens of the prompt: none is less than a byte, and JSON is not shorter than what it says."""
        template = len(self.card.template) if self.card is not None else 0
        return self.asked.size + _FRAME * len(self.asked.messages) + template

    def _prompt_surely_fits(self) -> bool:
        return not self.served or self._bytes() <= self._most()

    def _surely_fits(self) -> bool:
        """Whether the server will take it, answer and all."""
        wanted = self.asked.sampling.max_tokens or 0
        return not (self.served and self.server.counts_ahead) or self._bytes() + wanted <= self.served

    async def _fit(self, body: Json) -> None:
        """Has the answer end where the context does, as it does on a server that does not count ahead."""
        tokens = await self.tokens()
        if tokens > self._most():
            raise words.too_long(tokens, self._most())
        body["max_tokens"] = min(body["max_tokens"], self.served - tokens)

    async def _too_long(self) -> Refusal | None:
        try:
            tokens = await self.tokens()
        except (NoAnswerError, Refusal):
            return None
        return words.too_long(tokens, self._most()) if tokens > self._most() else None

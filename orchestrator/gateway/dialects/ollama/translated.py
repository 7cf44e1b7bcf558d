"""Ollama's questions for an engine that knows OpenAI's API, and its answers back."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from orchestrator.core.model_card import ModelCard
from orchestrator.gateway.dialects.base import Engine, Question, Said
from orchestrator.gateway.dialects.ollama import words
from orchestrator.gateway.dialects.ollama.answers import Answer, Reading, loaded
from orchestrator.gateway.dialects.ollama.asked import Asked
from orchestrator.gateway.dialects.ollama.go_template import Template, TemplateError
from orchestrator.gateway.dialects.ollama.options import Options, tell
from orchestrator.gateway.dialects.ollama.splitters import OPEN
from orchestrator.gateway.dialects.ollama.words import GO_JSON, go_json
from orchestrator.gateway.servers import Json, Server, server_of

_CHAT, _COMPLETION = "/v1/chat/completions", "/v1/completions"
_NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
_NO_IMAGES = "Multimodal data provided, but model does not support multimodal requests."
# Bytes that a template may put around a message, beside the text that it has itself.
_FRAME = 64
# The least that Ollama makes of num_ctx, and what it leaves at the beginning of a prompt that it cuts.
_LEAST_CONTEXT, _KEPT = 4, 4
# Tokens at a prompt's end that show whether it ends within a thought.
_ENDING = 8
_MOST_TOKEN = 2**31 - 1
_ANY_OBJECT = msgspec.Raw(b'{"type":"object"}')
# What messages have for templates. Of a request with a template there are only texts.
_OF_MESSAGES = ("Role", "Content", "Thinking", "Images", "ToolCalls", "ToolName", "ToolCallID")


async def translated(asked: Asked, path: str, engine: Engine) -> Question | Said:
    """What to ask the engine, or the answer where that is known without; raises Refusal."""
    server = server_of(engine.route)
    if server is None:
        raise words.fault(501, f"{path} is not translated for the engine of {engine.route.name}")
    if path in ("/api/embed", "/api/embeddings"):
        return _embedded(asked)
    began = time.monotonic_ns()
    empty = not (asked.messages if asked.chats else asked.prompt)
    if empty and asked.keep_alive == 0:
        return loaded(asked.model, asked.chats, unloads=True)
    card = engine.card
    _check(asked, card)
    options = asked.options
    if empty:
        return loaded(asked.model, asked.chats, unloads=False)
    if asked.images:
        raise words.fault(400, _nested(400, _NO_IMAGES, "invalid_request_error"))
    return await _Translation(asked, options, engine, server, began).question()


def _embedded(asked: Asked) -> Said:
    """No model that is served here embeds: only what asks for nothing has an answer."""
    one = asked.path == "/api/embeddings"
    given = asked.prompt if one else asked.input
    texts = given if isinstance(given, list) else [given or ""]
    if not all(isinstance(text, str) for text in texts):
        raise words.fault(400, "invalid input type")
    if given:
        raise words.fault(501, _NO_EMBEDDINGS)
    nothing: Json = {"embedding": []} if one else {"model": asked.model, "embeddings": []}
    return Said(go_json(nothing), content_type=GO_JSON)


def _check(asked: Asked, card: ModelCard | None) -> None:
    """Whether the model can do what is asked for at all."""
    if asked.raw and (asked.template or asked.system or asked.context):
        raise words.fault(400, "raw mode does not support template, system, or context")
    if card is not None and asked.think and not card.thinks:
        raise words.fault(400, f"{words.quoted(asked.model)} does not support thinking")
    if asked.context and not 0 <= min(asked.context) <= max(asked.context) <= _MOST_TOKEN:
        raise words.fault(400, "context: there is no such token")
    lacks = "tools" if card is not None and asked.tools and not card.takes_tools else ""
    lacks = "insert" if asked.suffix else lacks
    if lacks:
        raise words.fault(400, f"{words.full_name(asked.model)} does not support {lacks}")


def _nested(status: int, message: str, kind: str, **more: int) -> str:
    """An error of llama.cpp's server as Ollama hands it on: JSON in a string."""
    return go_json({"error": {"code": status, "message": message, "type": kind, **more}}).decode()


class _Translation:
    """One question for one engine."""

    def __init__(self, asked: Asked, options: Options, engine: Engine, server: Server, began: int) -> None:
        self.asked = asked
        self.options = options
        self.engine = engine
        self.server = server
        self.began = began
        self.card = engine.card
        self.served = self.card.context if self.card is not None else 0
        self.room = _room(options.context, self.served)
        self.fields = server.sampling(options.sampling, self.served)
        self.thinks = asked.think is not False and (self.card is None or self.card.thinks)

    async def question(self) -> Question:
        """What to ask; raises Refusal."""
        asked = self.asked
        schema = _schema(asked.form) if asked.form is not None else None
        if asked.raw:
            return await self._completion(asked.prompt, schema, told=False)
        if asked.template:
            return await self._completion(self._rendered(), schema, before=asked.context or ())
        if not self.engine.route.chats:
            if asked.system:
                raise words.fault(
                    400, f"{words.quoted(asked.model)} has no template, so there is no place for `system`"
                )
            return await self._completion(asked.prompt, schema, before=asked.context or ())
        return await self._chat(schema)

    async def _chat(self, schema: msgspec.Raw | None) -> Question:
        asked, server = self.asked, self.server
        chat: Json = {"messages": list(asked.messages) if asked.chats else self._turn()}
        if asked.tools:
            chat["tools"] = asked.tools
        if kwargs := self._template_kwargs(schema):
            chat["chat_template_kwargs"] = kwargs
        last = chat["messages"][-1]
        goes_on = last["role"] == "assistant" and "tool_calls" not in last
        if goes_on:
            chat |= server.going_on()
        tokens = await self._fitted(chat)
        if tokens is not None and (asked.context or len(tokens) > self._most()):
            return await self._completion([*(asked.context or ()), *tokens], schema)
        body = self.fields | chat | await server.chat_fields(self.engine, bool(asked.tools), self.thinks)
        if schema is not None:
            body |= server.form(schema, chats=True)
        if asked.logprobs:
            body |= {"logprobs": True, "top_logprobs": max(1, asked.top_logprobs)}
        if tokens is not None:
            self._limit(body, len(tokens))
        leaves = not server.parses
        reading = Reading(
            thinks=leaves and self.thinks,
            calls=leaves and body.get("tool_choice") == "none",
            tops=asked.top_logprobs if asked.logprobs else None,
            tokens=self._all_tokens(tokens if tokens is not None else chat),
            beginning=last["content"] if goes_on and server.repeats else "",
        )
        return self._asking(_CHAT, body, reading)

    def _turn(self) -> list[Json]:
        asked = self.asked
        system = [{"role": "system", "content": asked.system}] if asked.system else []
        return [*system, {"role": "user", "content": asked.prompt}]

    def _template_kwargs(self, schema: msgspec.Raw | None) -> Json:
        think = self.asked.think
        if self.card is not None and not self.card.thinks:
            return {}
        if think is None:
            # Where the engine leaves thoughts to the gateway, it would hold them to the form, too.
            return {"enable_thinking": False} if schema is not None and not self.server.parses and self.thinks else {}
        effort = {"reasoning_effort": "high" if think == "max" else think} if isinstance(think, str) else {}
        return {"enable_thinking": bool(think), **effort}

    async def _completion(
        self, prompt: str | list[int], schema: msgspec.Raw | None, before: tuple[int, ...] = (), told: bool = True
    ) -> Question:
        """The question for a prompt that is written already; `told`: its tokens are told at the end."""
        asked, server = self.asked, self.server
        if isinstance(prompt, str) and (before or not self._surely_fits(len(prompt.encode()), always=True)):
            prompt = [*before, *await server.tokens(self.engine, prompt, begins=not before)]
        if not isinstance(prompt, str):
            prompt = self._cut(prompt)
        body = self.fields | {"prompt": prompt}
        if not isinstance(prompt, str):
            self._limit(body, len(prompt), always=True)
        if schema is not None:
            body |= server.form(schema, chats=False)
        if asked.logprobs:
            body["logprobs"] = max(1, asked.top_logprobs)
        reading = Reading(
            thinks=self.thinks and not asked.raw,
            begun=await self._begun(prompt),
            calls=bool(asked.tools),
            tops=asked.top_logprobs if asked.logprobs else None,
            tokens=self._all_tokens(prompt) if told else None,
        )
        return self._asking(_COMPLETION, body, reading)

    def _rendered(self) -> str:
        """The prompt as the request's own template writes it."""
        asked = self.asked
        try:
            template = Template(asked.template)
            values: Json = {"System": asked.system, "Prompt": asked.prompt, "Response": "", "Suffix": ""}
            values |= {"Think": bool(asked.think), "ThinkLevel": asked.think if isinstance(asked.think, str) else ""}
            values |= {"IsThinkSet": asked.think is not None, "Tools": None}
            messages = [{"Role": one["role"], "Content": one["content"]} for one in self._turn()]
            if unknown := sorted(template.fields - {*values, "Messages", *_OF_MESSAGES}):
                raise TemplateError(f"there is no .{unknown[0]}")
            if "Messages" in template.fields:
                return template.run(values | {"Messages": messages})
            return template.cut().run(values)
        except TemplateError as error:
            raise words.fault(400, f"template: {error}") from error
        except RecursionError as error:
            raise words.fault(400, "template: it is nested too deeply") from error

    async def _begun(self, prompt: str | list[int]) -> bool:
        """Whether a prompt ends within a thought."""
        if not self.thinks or self.asked.raw:
            return False
        if not isinstance(prompt, str):
            prompt = await self.server.text(self.engine, prompt[-_ENDING:])
        return prompt.rstrip().endswith(OPEN)

    def _most(self) -> int:
        """Tokens that a prompt may have: where all of the context is used, one is left for the answer."""
        return min(self.room, self.served - 1) if self.served else 0

    def _surely_fits(self, size: int, always: bool = False) -> bool:
        """Whether a prompt of so many bytes fits with the answer, without a look at its tokens: none is less than a
        byte. `always`: the server wants to be told a limit."""
        if not self.served:
            return True
        wanted = self.options.sampling.max_tokens
        if self.server.counts_ahead and (wanted is not None or always):
            return wanted is not None and size + wanted <= self.served and size <= self._most()
        return size <= self._most()

    def _limit(self, body: Json, prompt: int, always: bool = False) -> None:
        """Has the answer fit behind the prompt, where the server would refuse it."""
        if not (self.server.counts_ahead and self.served):
            return
        wanted, left = body.get("max_tokens"), max(1, self.served - prompt)
        if wanted is None and always:
            body["max_tokens"] = left
        elif wanted is not None and wanted > left:
            tell(f"num_predict was more than there is room for with {self.engine.route.name}: it is what is left.")
            body["max_tokens"] = left

    async def _fitted(self, chat: Json) -> list[int] | None:
        """Leaves out old messages until it fits, by Ollama's rules; the tokens, if they had to be looked at, which are
        more than there is room for where one message is too long."""
        asked, messages = self.asked, chat["messages"]
        # What is written in JSON is not shorter than what it says.
        size = asked.size + _FRAME * len(messages) + self._template_size()
        if not asked.context and self._surely_fits(size):
            return None
        tokens = await self._prompt(chat)
        if not asked.truncate:
            return self._cut(tokens)
        if not self.served or len(tokens) + len(asked.context or ()) <= self._most():
            return tokens
        # The first place to start from at which it fits. It only gets shorter, so half of them need not be tried.
        low, high = 1, len(messages) - 1
        kept, tried = chat, tokens
        while low <= high:
            middle = (low + high) // 2
            shorter = chat | {"messages": _from(messages, middle)}
            counted = await self._prompt(shorter)
            if len(counted) <= self._most():
                kept, tried, high = shorter, counted, middle - 1
            else:
                low = middle + 1
        if kept is chat and len(messages) > 1:
            kept = chat | {"messages": _from(messages, len(messages) - 1)}
            tried = await self._prompt(kept)
        chat["messages"] = kept["messages"]
        return tried

    def _template_size(self) -> int:
        return len(self.card.template) if self.card is not None else 0

    async def _prompt(self, chat: Json) -> list[int]:
        return await self.server.prompt(self.engine, chat)

    def _cut(self, tokens: list[int]) -> list[int]:
        """The tokens of a prompt without its middle, where it is too long, as Ollama cuts it; raises Refusal."""
        if not self.served or len(tokens) <= self._most():
            return tokens
        if not self.asked.truncate:
            told = {"n_prompt_tokens": len(tokens), "n_ctx": self.room}
            message = (
                f"request ({len(tokens)} tokens) exceeds the available context size ({self.room} tokens), "
                "try increasing it"
            )
            raise words.fault(400, _nested(400, message, "exceed_context_size_error", **told))
        keep = self.options.keep if self.options.keep is not None else _KEPT
        keep = min(keep if keep >= 0 else len(tokens), self.room - 1)
        limit = min((self.room - keep) // 2 + keep, self._most())
        tell(f"A prompt for {self.engine.route.name} was too long, and was cut as Ollama does it.")
        return [*tokens[: min(keep, limit)], *tokens[len(tokens) - max(0, limit - keep) :]]

    def _all_tokens(self, prompt: str | list[int] | Json) -> Callable[[str], Awaitable[list[int]]] | None:
        """What tells the tokens of prompt and answer at the end of /api/generate."""
        if self.asked.chats:
            return None

        async def tokens(said: str) -> list[int]:
            if isinstance(prompt, str):
                return await self.server.tokens(self.engine, prompt + said)
            known = prompt if isinstance(prompt, list) else await self._prompt(prompt)
            return [*known, *(await self.server.tokens(self.engine, said, begins=False) if said else [])]

        return tokens

    def _asking(self, path: str, body: Json, reading: Reading) -> Question:
        streams = {"stream": True, "stream_options": {"include_usage": True}} if self.asked.streams else {}
        sent = self.engine.route.filled(body | streams)
        answer = Answer(self.asked.model, self.asked.chats, self.began, reading)
        return Question(path, msgspec.json.encode(sent), answer)


def _schema(form: msgspec.Raw) -> msgspec.Raw:
    """The JSON schema that a request asks for."""
    raw = bytes(form)
    if raw == b'"json"':
        return _ANY_OBJECT
    if raw.startswith(b"{"):
        return form
    shown = words.quoted(raw.decode("utf-8", "replace"))
    raise words.fault(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


def _room(wanted: int | None, served: int) -> int:
    """Tokens of the context that a request may use."""
    if wanted is None or not served:
        return served
    if wanted > served:
        tell(f"num_ctx {wanted} is more than the {served} tokens that are served: it is {served}.")
    return min(served, max(_LEAST_CONTEXT, wanted))


def _from(messages: list[Any], start: int) -> list[Any]:
    """A chat from one message on, with all that the system said before; what a tool said stays with its call."""
    start = _call_of(messages, start)
    return [*(one for one in messages[:start] if one["role"] == "system"), *messages[start:]]


def _call_of(messages: list[Any], place: int) -> int:
    """The place of the call that a tool's result at a place belongs to, or the place."""
    before = place
    while before > 0 and messages[before]["role"] == "tool":
        before -= 1
    calls = messages[before]["role"] == "assistant" and messages[before].get("tool_calls")
    return before if calls else place

"""A question in OpenAI's API as each engine takes it: what one refuses, or drops, and another serves, is made equal
where that can be done, else refused.

What is changed is added at the end of the body; all else goes on as the bytes that it is. To add a server: a class with
what it wants otherwise, and a line in SERVERS with the word for it in a route's `speaks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import LLAMA_SERVER, OLLAMA, VLLM, Route
from orchestrator.gateway import refusals, servers
from orchestrator.gateway.dialects.base import Engine
from orchestrator.gateway.dialects.openai.asked import (
    NOTHING,
    PARTS,
    TEXT,
    Chat,
    Completion,
    Embeddings,
    Question,
    Responses,
    Sampled,
    decoded,
    kind_of,
)
from orchestrator.gateway.dialects.openai.unasked import Unasked
from orchestrator.gateway.servers import Json, Sampling

_FORMS = ("text", "json_object", "json_schema")
# Parts of a message that are text, and where that is; all others are pictures, sounds, files.
_TEXTS = {"text": "text", "refusal": "refusal", "input_text": "text", "output_text": "text"}
# The last of 2**32 is "any" to llama.cpp.
_SEEDS = 2**32 - 1


def check(question: Question) -> None:
    """Raises Refusal for what can be had of no engine that is known here."""
    for name in ("messages", "prompt", "input"):
        if not getattr(question, name, name):
            raise refusals.invalid_value(name, "it is missing, or empty")
    if isinstance(question, Embeddings):
        raise refusals.not_supported("model", "it completes texts, and embeds none")
    if isinstance(question, Responses):
        _check_responses(question)
        return
    _check_form(question.response_format)
    if isinstance(question, Completion):
        if question.suffix:
            raise refusals.not_supported("suffix", "no engine here fills in the middle; leave it out")
        _check_prompt(question.prompt)
        return
    if question.top_logprobs is not None and not question.logprobs:
        raise refusals.invalid_value("top_logprobs", "`logprobs` has to be true with it")
    if isinstance(question.tool_choice, dict) and question.tools and not _chosen(question):
        raise refusals.invalid_value("tool_choice", "there is no such function among the tools")
    if {kind for _, kind in question.kinds} - {TEXT, *NOTHING}:
        for place, message in enumerate(question.turns):
            _check_parts(f"messages[{place}].content", message.content)


def _check_prompt(prompt: str | list[str | int | list[int]] | None) -> None:
    if isinstance(prompt, list) and len({type(one) for one in prompt}) > 1:
        raise refusals.invalid_value("prompt", "it has to be a text or tokens, or a list of one or the other")


def _check_form(form: Mapping[str, msgspec.Raw] | None) -> None:
    if form is None:
        return
    kind = decoded(form.get("type"))
    if kind not in _FORMS:
        raise refusals.invalid_value("response_format.type", f"it has to be one of {', '.join(_FORMS)}")
    if kind == "json_schema":
        described = decoded(form.get("json_schema"))
        if not (isinstance(described, dict) and isinstance(described.get("schema"), dict)):
            raise refusals.invalid_value("response_format.json_schema.schema", "it has to be a JSON schema")


def _check_parts(place: str, content: msgspec.Raw) -> None:
    kind = kind_of(content)
    if kind != PARTS:
        if kind != TEXT and kind not in NOTHING:
            raise refusals.invalid_value(place, "it has to be a string, or a list of parts")
        return
    for number, part in enumerate(decoded(content)):
        said = part.get("type") if isinstance(part, dict) else None
        if said not in _TEXTS:
            raise refusals.not_supported(f"{place}[{number}].type", "the model reads text, no images, sounds or files")
        if not isinstance(part.get(_TEXTS[said]), str):
            raise refusals.invalid_value(f"{place}[{number}].{_TEXTS[said]}", "it has to be a string")


def _check_responses(question: Responses) -> None:
    if question.previous_response_id or bytes(question.conversation) not in (b"", b"null"):
        name = "previous_response_id" if question.previous_response_id else "conversation"
        raise refusals.not_supported(name, "no answers are kept here; send the whole conversation as `input`")
    if question.background:
        raise refusals.not_supported("background", "an answer is made while its client waits; leave it out")
    for number, tool in enumerate(question.tools or ()):
        if decoded(tool.get("type")) != "function":
            raise refusals.not_supported(f"tools[{number}].type", "only functions can be called")
    for number, item in enumerate(question.input if isinstance(question.input, list) else ()):
        if "content" in item:
            _check_parts(f"input[{number}].content", item["content"])


def _chosen(chat: Chat) -> list[Any]:
    """The tools that a choice by name leaves."""
    choice = decoded(chat.tool_choice)
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, dict) else None
    return [tool for tool in decoded(chat.tools) if isinstance(tool.get("function"), dict)
            and tool["function"].get("name") == name]  # fmt: skip


class Fitting:
    """What is sent instead of what a client says, for any server; `card` says what is served."""

    def __init__(self, card: ModelCard | None, body: bytes) -> None:
        self.card = card
        self.context = card.context if card is not None else 0
        self._body = body

    @property
    def thinks(self) -> bool:
        """Whether the model can be told to think, or not to."""
        return self.card is not None and self.card.thinks

    def changes(self, question: Question) -> Json:
        """The fields that are added; raises Refusal."""
        if isinstance(question, Chat):
            return self.chat(question)
        if isinstance(question, Completion):
            return self.completion(question)
        return self.responses(question) if isinstance(question, Responses) else {}

    def chat(self, chat: Chat) -> Json:
        """See `changes`."""
        found = self.sampled(chat)
        if not chat.tools and (chat.tools is not None or chat.tool_choice is not None):
            found |= {"tools": None, "tool_choice": None}
        if self.plain(chat):
            found["messages"] = [_plain(one) for one in self.whole("messages")]
        return found

    def plain(self, chat: Chat) -> bool:
        """Whether the messages have to be written anew."""
        return any(role == "developer" or (role != "assistant" and kind in NOTHING) for role, kind in chat.kinds)

    def completion(self, completion: Completion) -> Json:
        """See `changes`."""
        return self.sampled(completion)

    def responses(self, responses: Responses) -> Json:
        """See `changes`."""
        empty = responses.tools is not None and not responses.tools
        return {"tools": None, "tool_choice": None} if empty else {}

    def takes_tools(self, asked: Chat | Responses) -> None:
        """Refuses those that the model would not be told of: llama.cpp leaves them out without a word."""
        if asked.tools and asked.tool_choice != "none" and self.card is not None and not self.card.takes_tools:
            raise refusals.not_supported("tools", "the model's chat template has no place for them; leave them out")

    def sampled(self, asked: Sampled) -> Json:
        """What chats and completions have in common."""
        found: Json = {}
        if asked.stream_options is not None and not asked.stream:
            found["stream_options"] = None
        if asked.seed is not None and not (isinstance(asked.seed, int) and 0 <= asked.seed < _SEEDS):
            found["seed"] = None if asked.seed == -1 else int(asked.seed) % _SEEDS
        if asked.stop is not None and not all([asked.stop] if isinstance(asked.stop, str) else asked.stop):
            found["stop"] = [text for text in asked.stop if text] or None
        vocabulary = self.card.sizes.get("vocab_size") if self.card is not None else None
        if vocabulary and any(not 0 <= token < vocabulary for token in asked.logit_bias or ()):
            raise refusals.invalid_value("logit_bias", f"the model's tokens are 0 to {vocabulary - 1:.0f}")
        return found

    def longest(self, question: Question) -> Json | None:
        """What has an answer be as long as there is room for, where the server refuses one that may be longer."""
        return None

    def unasked(self, question: Question) -> Unasked | None:
        """What takes the figures out of a stream, where the server has to be asked for them, and can be without a
        trace. llama.cpp's tells them in the last event anyway."""
        return None

    async def room(self, question: Question, engine: Engine) -> Json:
        """What is added besides, where the engine has to be asked for it; raises Refusal."""
        return {}

    def whole(self, name: str) -> Any:
        """A field as it came, all of it."""
        return decoded(msgspec.json.decode(self._body, type=dict[str, msgspec.Raw])[name])


class ForLlamaServer(Fitting):
    """llama.cpp's."""

    def sampled(self, asked: Sampled) -> Json:
        found = super().sampled(asked)
        if asked.limits and asked.limit is None:
            found |= {"max_tokens": -1, "max_completion_tokens": None}
        if asked.repetition_penalty is not None and asked.repeat_penalty is None:
            found["repeat_penalty"] = asked.repetition_penalty
        return found

    def chat(self, chat: Chat) -> Json:
        found = super().chat(chat)
        self.takes_tools(chat)
        if chat.tools and isinstance(chat.tool_choice, dict):
            # It does not look at the name.
            found |= {"tools": _chosen(chat), "tool_choice": "required"}
        if chat.top_logprobs == 0:
            # None of one is none of all to it.
            found["top_logprobs"] = None
        if chat.reasoning_effort == "none" and self.thinks:
            kwargs = decoded(chat.chat_template_kwargs or {})
            found["chat_template_kwargs"] = {"enable_thinking": False, **kwargs}
        return found

    def completion(self, completion: Completion) -> Json:
        found = super().completion(completion)
        if completion.echo:
            raise refusals.not_supported("echo", "the engine of this model does not repeat prompts; leave it out")
        if completion.logprobs == 0:
            found["logprobs"] = 1
        return found

    def responses(self, responses: Responses) -> Json:
        found = super().responses(responses)
        self.takes_tools(responses)
        return found | ({"max_output_tokens": -1} if responses.limits and responses.limit is None else {})


class ForVllm(Fitting):
    """vLLM's: it refuses what it could not do to the letter."""

    def sampled(self, asked: Sampled) -> Json:
        found = super().sampled(asked) | self._limited(asked, "max_tokens")
        names = ("temperature", "top_p", "top_k", "min_p")
        said = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
        fit = servers.VLLM_SERVER.sampling(Sampling(**said), self.context)
        found |= {name: fit.get(name) for name in names if fit.get(name) != said.get(name)}
        if asked.repeat_penalty is not None and asked.repetition_penalty is None:
            found["repetition_penalty"] = asked.repeat_penalty
        if (asked.n or 1) > 1 and not self._temperature(asked):
            # Several of the only one: that is refused, but not with the best of all tokens alone to choose from.
            found |= {"temperature": 1.0, "top_k": 1}
        form = asked.response_format or {}
        if "json_schema" in form and "name" not in (described := decoded(form["json_schema"])):
            found["response_format"] = decoded(form) | {"json_schema": {"name": "answer", **described}}
        return found

    def longest(self, question: Question) -> Json | None:
        if isinstance(question, Embeddings) or question.limit is None:
            return None
        return dict.fromkeys(question.limits)

    def unasked(self, question: Question) -> Unasked | None:
        # With several choices each has a last event, and only one of them the figures behind it.
        alone = isinstance(question, Sampled) and (question.n or 1) == 1
        several = isinstance(question, Completion) and len(_prompts(question)) > 1
        return Unasked(moves=True) if alone and not several else None

    def _temperature(self, asked: Sampled) -> float:
        default = self.card.sampling.get("temperature", 1.0) if self.card is not None else 1.0
        return max(0.0, default if asked.temperature is None else asked.temperature)

    def _limited(self, asked: Sampled | Responses, name: str) -> Json:
        """An answer ends where the context does: what would be more is as if nobody had said so."""
        if not asked.limits:
            return {}
        limit = asked.limit
        if limit is None or (self.context and limit >= self.context):
            return dict.fromkeys(asked.limits)
        wanted = {name: max(1, limit)}
        return {} if asked.limits == wanted else dict.fromkeys(asked.limits) | wanted

    def completion(self, completion: Completion) -> Json:
        found = super().completion(completion)
        return found | ({"suffix": None} if completion.suffix is not None else {})

    async def room(self, question: Question, engine: Engine) -> Json:
        """A completion without a limit has 16 tokens there, and so has one whose limit is null."""
        if not isinstance(question, Completion) or not self.context:
            return {}
        if not question.limits and "max_tokens" in engine.route.defaults:
            return {}
        prompts, limit = _prompts(question), question.limit
        # A token is a byte at the least.
        if limit is not None and limit + max(map(_most_tokens, prompts), default=0) <= self.context:
            return {}
        counts = [
            len(await servers.VLLM_SERVER.tokens(engine, one) if isinstance(one, str) else one) for one in prompts
        ]
        room = self.context - max(counts, default=0)
        # What leaves no room is refused in the engine's own words.
        return {"max_tokens": min(room, room if limit is None else limit)} if room > 0 else {}

    def chat(self, chat: Chat) -> Json:
        self.takes_tools(chat)
        return super().chat(chat)

    def responses(self, responses: Responses) -> Json:
        self.takes_tools(responses)
        return super().responses(responses) | self._limited(responses, "max_output_tokens")


def _prompts(completion: Completion) -> list[str | list[int]]:
    """Each of them, as a text or as tokens."""
    prompt = completion.prompt
    if not isinstance(prompt, list):
        return [] if prompt is None else [prompt]
    tokens = [one for one in prompt if isinstance(one, int)]
    return [tokens] if tokens else [one for one in prompt if not isinstance(one, int)]


def _most_tokens(prompt: str | list[int]) -> int:
    return len(prompt.encode()) + 1 if isinstance(prompt, str) else len(prompt)


class ForOllama(Fitting):
    """Ollama's: what it does not know it does not look at."""

    def sampled(self, asked: Sampled) -> Json:
        found = super().sampled(asked)
        if asked.limits and self.context:
            # Past the context it would go on, without the beginning.
            limit = self.context if asked.limit is None else min(self.context, max(1, asked.limit))
            found |= {"max_tokens": limit, "max_completion_tokens": None}
        elif asked.max_completion_tokens is not None:
            found["max_tokens"] = max(1, asked.limit) if asked.limit is not None else None
        if asked.top_k == 1:
            # The likeliest of all.
            found["temperature"] = 0.0
        dropped = [name for name, most in _DROPPED.items() if (getattr(asked, name) or 0) > most]
        dropped += [name for name, neutral in _DROPPED_IF_NOT.items() if getattr(asked, name) not in neutral]
        if dropped:
            raise refusals.not_supported(dropped[0], "the engine of this model has no such setting; leave it out")
        return found

    def chat(self, chat: Chat) -> Json:
        if chat.tools and (isinstance(chat.tool_choice, dict) or chat.tool_choice == "required"):
            raise refusals.not_supported("tool_choice", "the engine of this model leaves that to it; say auto, or none")
        found = super().chat(chat)
        if chat.reasoning_effort is not None and not self.thinks:
            found["reasoning_effort"] = None
        return found

    def unasked(self, question: Question) -> Unasked | None:
        return Unasked(each=isinstance(question, Completion))

    def plain(self, chat: Chat) -> bool:
        # It makes a message of each part.
        return super().plain(chat) or any(kind == PARTS for _, kind in chat.kinds)

    def completion(self, completion: Completion) -> Json:
        prompt = completion.prompt
        if isinstance(prompt, list):
            if len(prompt) > 1 or not isinstance(prompt[0], str):
                raise refusals.not_supported("prompt", "the engine of this model takes one text")
            return super().completion(completion) | {"prompt": prompt[0]}
        if completion.echo:
            raise refusals.not_supported("echo", "the engine of this model does not repeat prompts; leave it out")
        return super().completion(completion)


# What Ollama would drop without a word, and the most that changes nothing.
_DROPPED = {"n": 1, "top_k": 1, "min_p": 0}
_DROPPED_IF_NOT = {"repeat_penalty": (None, 1), "repetition_penalty": (None, 1), "logit_bias": (None, {})}
SERVERS: Mapping[str, type[Fitting]] = {LLAMA_SERVER: ForLlamaServer, VLLM: ForVllm, OLLAMA: ForOllama}


def fitting_of(route: Route) -> type[Fitting] | None:
    """What the server behind a route wants; None where nobody knows, and it is for that to say."""
    return next((SERVERS[one] for one in route.speaks if one in SERVERS), None)


def _plain(message: Any) -> Any:
    """A message in words that all templates know, its parts as one text."""
    if not isinstance(message, dict):
        return message
    role = "system" if message.get("role") == "developer" else message.get("role")
    content = message.get("content")
    if content is None and role != "assistant":
        content = ""
    if isinstance(content, list):
        content = "\n".join(part.get(_TEXTS[part["type"]]) for part in content)
    return {**message, "role": role, "content": content}

"""What an engine's server has of its own beside OpenAI's API, for dialects that are translated.

To add one: a class here, and a line in SERVERS with the word for it in a route's `speaks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from orchestrator.core.routes import LLAMA_SERVER, VLLM, Route
from orchestrator.gateway.refusals import Refusal

if TYPE_CHECKING:
    from orchestrator.gateway.dialects.base import Engine

Json = dict[str, Any]
# The numbers of seeds that llama.cpp knows.
_SEEDS = 2**32
# What a request that says nothing of it has, in Ollama and llama.cpp: tokens that a penalty looks back on.
_LOOK_BACK = 64
# Penalties, and what each is where there is none.
_PENALTIES = {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
# Of how many engines it is kept what they can.
_MOST_KNOWN = 256


@dataclass(frozen=True)
class Sampling:
    """How tokens are to be chosen, in llama.cpp's words; None where a request does not say."""

    max_tokens: int | None = None
    seed: int | None = None
    top_k: int | None = None
    repeat_last_n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] = ()

    @property
    def said(self) -> Json:
        """What there is, by these names."""
        return {name: value for name, value in vars(self).items() if value is not None and value != ()}


class Server(Protocol):
    """An engine's server. `counts_ahead`: it refuses an answer's limit that would not fit behind the prompt. `parses`:
    of a chat's answer it takes apart by itself what is thought, said and called. `repeats`: a whole answer that goes on
    with a message has its beginning, too."""

    counts_ahead: bool
    parses: bool
    repeats: bool

    def sampling(self, wanted: Sampling, context: int) -> Json:
        """The fields of a request that say so, of `context` tokens at most (0: nobody knows); raises Refusal for what
        cannot be done there."""
        ...

    def form(self, schema: msgspec.Raw, chats: bool) -> Json:
        """The fields that have an answer be JSON of a schema."""
        ...

    def going_on(self) -> Json:
        """What is added to a chat whose last message is the model's own, and is to be gone on with."""
        ...

    async def chat_fields(self, engine: Engine, calls: bool, thinks: bool) -> Json:
        """What is added to a chat with tools, or with a model that thinks."""
        ...

    async def tokens(self, engine: Engine, text: str, begins: bool = True) -> list[int]:
        """Those of a text, with what is put before every prompt where it `begins` one; raises Refusal."""
        ...

    async def text(self, engine: Engine, tokens: list[int]) -> str:
        """The text of some tokens; raises Refusal."""
        ...

    async def prompt(self, engine: Engine, chat: Json) -> list[int]:
        """The tokens of a chat (messages, tools, chat_template_kwargs) as its model's template writes it."""
        ...


class LlamaServer:
    """See Server: llama.cpp's."""

    counts_ahead = False
    parses = True
    repeats = True

    def sampling(self, wanted: Sampling, context: int) -> Json:
        said = wanted.said
        if "seed" in said:
            said["seed"] %= _SEEDS
        last = said.get("repeat_last_n", 0)
        if last < 0 or last > (context or last):
            # The whole context, which it takes as a number only, and has room made for.
            said["repeat_last_n"] = context or _LOOK_BACK
        return said

    def form(self, schema: msgspec.Raw, chats: bool) -> Json:
        return {"response_format": _schema(schema)} if chats else {"json_schema": schema}

    def going_on(self) -> Json:
        return {}

    async def chat_fields(self, engine: Engine, calls: bool, thinks: bool) -> Json:
        return {}

    async def tokens(self, engine: Engine, text: str, begins: bool = True) -> list[int]:
        asked = {"content": text, "add_special": begins, "parse_special": True}
        return (await _asked(engine, "/tokenize", asked, _Tokens)).tokens

    async def text(self, engine: Engine, tokens: list[int]) -> str:
        return (await _asked(engine, "/detokenize", {"tokens": tokens}, _Content)).content

    async def prompt(self, engine: Engine, chat: Json) -> list[int]:
        return await self.tokens(engine, (await _asked(engine, "/apply-template", chat, _Prompt)).prompt)


class Vllm:
    """See Server: vLLM's."""

    counts_ahead = True
    parses = False
    repeats = False

    def __init__(self) -> None:
        # Whether it was started with a parser for calls of tools, by instance and address.
        self._parse_calls: dict[tuple[str, str], bool] = {}

    def sampling(self, wanted: Sampling, context: int) -> Json:
        said = wanted.said
        last = said.pop("repeat_last_n", _LOOK_BACK)
        penalties = {name: said.pop(name) for name in _PENALTIES if name in said}
        if last == 0:
            penalties = dict(_PENALTIES)
        elif last not in (_LOOK_BACK, -1) and any(value != _PENALTIES[name] for name, value in penalties.items()):
            # It looks back on all tokens.
            raise _not_there(
                "repeat_last_n", "a penalty looks back on the whole context there; leave it out, or say -1"
            )
        if "repeat_penalty" in penalties:
            said["repetition_penalty"] = penalties.pop("repeat_penalty")
        said |= penalties
        typical = said.pop("typical_p", 1.0)
        if typical < 1:
            raise _not_there("typical_p", "leave it out, or say 1")
        if said.get("top_k", 0) < 0:
            said["top_k"] = 0
        if said.get("top_p", 1) <= 0:
            # One token is left of it.
            del said["top_p"]
            said["top_k"] = 1
        if said.get("top_p", 1) > 1:
            said["top_p"] = 1.0
        if "max_tokens" in said:
            # As llama.cpp does it: one token there always is.
            said["max_tokens"] = max(1, said["max_tokens"])
        if "min_p" in said:
            said["min_p"] = min(1.0, max(0.0, said["min_p"]))
        if said.get("temperature", 0) < 0:
            said["temperature"] = 0.0
        return said

    def form(self, schema: msgspec.Raw, chats: bool) -> Json:
        return {"response_format": _schema(schema)}

    def going_on(self) -> Json:
        return {"continue_final_message": True, "add_generation_prompt": False}

    async def chat_fields(self, engine: Engine, calls: bool, thinks: bool) -> Json:
        fields: Json = {"return_prompt_text": True} if thinks else {}
        # Without a parser it refuses to look for calls, but it still tells the model of the tools.
        if calls and not await self._looks_for_calls(engine):
            fields["tool_choice"] = "none"
        return fields

    async def tokens(self, engine: Engine, text: str, begins: bool = True) -> list[int]:
        asked = {"model": _name(engine), "prompt": text, "add_special_tokens": begins}
        return (await _asked(engine, "/tokenize", asked, _Tokens)).tokens

    async def text(self, engine: Engine, tokens: list[int]) -> str:
        asked = {"model": _name(engine), "tokens": tokens}
        return (await _asked(engine, "/detokenize", asked, _Prompt)).prompt

    async def prompt(self, engine: Engine, chat: Json) -> list[int]:
        return (await _asked(engine, "/tokenize", {"model": _name(engine), **chat}, _Tokens)).tokens

    async def _looks_for_calls(self, engine: Engine) -> bool:
        """Asked for one token, once: it says so nowhere."""
        backend = engine.route.backend
        key = backend.instance, backend.url
        if key not in self._parse_calls:
            tool = {"type": "function", "function": {"name": "none", "parameters": {"type": "object"}}}
            asked = {"messages": [{"role": "user", "content": "."}], "tools": [tool], "max_tokens": 1}
            body = msgspec.json.encode({**asked, "model": _name(engine), "tool_choice": "auto"})
            status, answer = await engine.ask("POST", "/v1/chat/completions", body)
            if status != HTTPStatus.OK and b"tool-call-parser" not in answer:
                return False
            if len(self._parse_calls) >= _MOST_KNOWN:
                self._parse_calls.clear()
            self._parse_calls[key] = status == HTTPStatus.OK
        return self._parse_calls[key]


VLLM_SERVER = Vllm()
SERVERS: dict[str, Server] = {LLAMA_SERVER: LlamaServer(), VLLM: VLLM_SERVER}


def server_of(route: Route) -> Server | None:
    """The one behind a route, if it is known here."""
    return next((SERVERS[one] for one in route.speaks if one in SERVERS), None)


def reason_in(body: bytes) -> str:
    """What an engine's error says."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return body.decode("utf-8", "replace").strip() or "the engine gave no reason"
    for name in ("error", "message", "detail"):
        if isinstance(said, dict) and said.get(name):
            said = said[name]
    if isinstance(said, str):
        # Ollama hands its runner's errors on as they are.
        return reason_in(said.encode()) if said.startswith('{"error":') else said
    return msgspec.json.encode(said).decode()


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Content(msgspec.Struct):
    content: str


class _Prompt(msgspec.Struct):
    prompt: str


_Answer = TypeVar("_Answer", _Tokens, _Content, _Prompt)


async def _asked(engine: Engine, path: str, body: Json, kind: type[_Answer]) -> _Answer:
    status, answer = await engine.ask("POST", path, msgspec.json.encode(body))
    if status != HTTPStatus.OK:
        raise Refusal(min(status, 500), "engine_refused", reason_in(answer))
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise Refusal(500, "engine_unreadable", f"The engine's answer to {path} cannot be read: {error}.") from error


def _name(engine: Engine) -> str:
    return engine.route.upstream or engine.route.name


def _schema(schema: msgspec.Raw) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def _not_there(option: str, instead: str) -> Refusal:
    return Refusal(
        400, "unsupported_option", f'option "{option}" is not supported by the engine of this model: {instead}'
    )

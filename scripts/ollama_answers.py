"""Questions to a runner, and its answers in Ollama's own dialect and in OpenAI's, streamed or whole."""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
from ollama_runners import Runner, Runners
from ollama_store import CHATML, RAW, Model
from ollama_words import ApiError, Json, Settings, log, quoted, timestamp

_INTEGERS = (
    "num_ctx",
    "num_predict",
    "top_k",
    "seed",
    "repeat_last_n",
    "num_keep",
    "num_batch",
    "num_gpu",
    "num_thread",
)
_FLOATS = ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
_DEFAULTS: Json = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "typical_p": 1.0}
_DEFAULTS |= {"repeat_last_n": 64, "repeat_penalty": 1.0}
# Names that a model's parameters or a request may give, and llama.cpp's server knows as well.
_SAME = (*_DEFAULTS, "presence_penalty", "frequency_penalty", "stop")
_DEFAULT_CONTEXT, _DEFAULT_CONTEXT_GPU = 4096, 32768
# Tokens at a prompt's beginning that stay when it is cut.
_KEPT = 4
_DIED = "an error was encountered while running the model: unexpected EOF"


@dataclass(frozen=True)
class Piece:
    """Some of an answer's text; `thinking` is what the model says to itself."""

    text: str
    thinking: str = ""


@dataclass(frozen=True)
class End:
    """How an answer ended; times in nanoseconds, counts in tokens. `context`: the tokens of both sides, or None."""

    reason: str
    total: int
    load: int
    prompt_count: int
    prompt: int
    count: int
    eval: int
    context: tuple[int, ...] | None = None

    @property
    def figures(self) -> Json:
        known: Json = {"done_reason": self.reason}
        if self.context is not None:
            known["context"] = list(self.context)
        known |= {"total_duration": self.total, "load_duration": self.load, "prompt_eval_count": self.prompt_count}
        return known | {"prompt_eval_duration": self.prompt, "eval_count": self.count, "eval_duration": self.eval}

    @property
    def usage(self) -> Json:
        both = {"prompt_tokens": self.prompt_count, "completion_tokens": self.count}
        return both | {"total_tokens": self.prompt_count + self.count}


@dataclass(frozen=True)
class Question:
    """What is to be answered: `messages`, or the text `raw` as it is. `options` are the request's own."""

    model: Model
    messages: tuple[Json, ...] = ()
    raw: str | None = None
    options: Json = field(default_factory=dict)
    keep_alive_s: float | None = None
    think: bool | None = None
    format: Any = None
    wants_context: bool = False
    truncate: bool = True


class Dialect(Protocol):
    """How an answer is written. `frame` makes bytes of what `part` and `last` give; `closing` comes after them."""

    content_type: str
    closing: bytes

    def frame(self, value: str) -> bytes: ...
    def part(self, piece: Piece) -> Json: ...
    def last(self, end: End) -> list[Json]: ...
    def whole(self, piece: Piece, end: End) -> Json: ...
    def error(self, error: ApiError) -> Json: ...


class Native:
    """/api/chat and /api/generate: one JSON object a line."""

    content_type = "application/x-ndjson"
    closing = b""

    def __init__(self, asked_for: str, chat: bool) -> None:
        self.asked_for = asked_for
        self.chat = chat

    def frame(self, value: str) -> bytes:
        return f"{value}\n".encode()

    def part(self, piece: Piece) -> Json:
        return self._line(piece) | {"done": False}

    def last(self, end: End) -> list[Json]:
        return [self.whole(Piece(""), end)]

    def whole(self, piece: Piece, end: End) -> Json:
        return self._line(piece) | {"done": True} | end.figures

    def empty(self, reason: str) -> Json:
        """The answer to a request that asks for nothing but a load or an unload."""
        return self._line(Piece("")) | {"done": True, "done_reason": reason}

    def error(self, error: ApiError) -> Json:
        return {"error": error.text}

    def _line(self, piece: Piece) -> Json:
        head: Json = {"model": self.asked_for, "created_at": timestamp()}
        thinking = {"thinking": piece.thinking} if piece.thinking else {}
        if self.chat:
            return head | {"message": {"role": "assistant", "content": piece.text} | thinking}
        return head | {"response": piece.text} | thinking


class OpenAi:
    """/v1/chat/completions and /v1/completions: server-sent events. What goes wrong after the first is not told."""

    content_type = "text/event-stream"
    closing = b"data: [DONE]\n\n"

    def __init__(self, asked_for: str, chat: bool, with_usage: bool = False) -> None:
        self.asked_for = asked_for
        self.chat = chat
        self.with_usage = with_usage
        self.first = True
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{random.randrange(1000)}"

    def frame(self, value: str) -> bytes:
        return f"data: {value}\n\n".encode()

    def part(self, piece: Piece) -> Json:
        if not self.chat:
            return self._head(stream=True, choices=[{"text": piece.text, "index": 0, "finish_reason": None}])
        delta: Json = {"role": "assistant"} if self.first else {}
        self.first = False
        delta |= {"content": piece.text} | ({"reasoning": piece.thinking} if piece.thinking else {})
        return self._head(stream=True, choices=[{"index": 0, "delta": delta, "finish_reason": None}])

    def last(self, end: End) -> list[Json]:
        choice = {"index": 0, "delta": {}} if self.chat else {"text": "", "index": 0}
        chunks = [self._head(stream=True, choices=[choice | {"finish_reason": end.reason}])]
        if self.with_usage:
            chunks.append(self._head(stream=True, choices=[]) | {"usage": end.usage})
        return chunks

    def whole(self, piece: Piece, end: End) -> Json:
        said: Json = {"role": "assistant", "content": piece.text}
        said |= {"reasoning": piece.thinking} if piece.thinking else {}
        choice = {"index": 0, "message": said} if self.chat else {"text": piece.text, "index": 0}
        return self._head(stream=False, choices=[choice | {"finish_reason": end.reason}]) | {"usage": end.usage}

    def error(self, error: ApiError) -> Json:
        return openai_error(error)

    def _head(self, stream: bool, choices: list[Json]) -> Json:
        kind = ("chat.completion.chunk" if stream else "chat.completion") if self.chat else "text_completion"
        head: Json = {"id": self.id, "object": kind, "created": int(time.time()), "model": self.asked_for}
        return head | {"system_fingerprint": "fp_ollama", "choices": choices}


def openai_error(error: ApiError) -> Json:
    """An error in OpenAI's shape."""
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(error.status, "api_error")
    return {"error": {"message": error.text, "type": kind, "param": None, "code": None}}


def checked_options(options: Json) -> Json:
    """The options that Ollama knows, with Go's conversions. ApiError (500) for a wrong type."""
    known: Json = {}
    for name, value in options.items():
        if name in _INTEGERS or name in _FLOATS:
            if isinstance(value, bool) or not isinstance(value, int | float):
                wanted = "integer" if name in _INTEGERS else "float32"
                raise ApiError(500, f"option {quoted(name)} must be of type {wanted}")
            known[name] = int(value) if name in _INTEGERS else float(value)
        elif name == "stop":
            if not isinstance(value, list):
                raise ApiError(500, f"option {quoted(name)} must be of type array")
            known[name] = [str(item) for item in value]
        else:
            log("WARN", "types.go:1007", "invalid option provided", option=name)
    return known


def context_of(model: Model, options: Json, settings: Settings) -> int:
    """Tokens of one request's context: asked for, stored, set or the default, but not above what it was trained for."""
    wanted = options.get("num_ctx") or settings.context or (_DEFAULT_CONTEXT_GPU if settings.gpu else _DEFAULT_CONTEXT)
    trained = model.gguf.size_of("context_length")
    if trained and wanted > trained:
        message = "requested context size too large for model"
        log("WARN", "server.go:114", message, num_ctx=wanted, n_ctx_train=trained)
        return trained
    return max(4, int(wanted))


class Answers:
    """Asks the runners."""

    def __init__(self, settings: Settings, runners: Runners, session: aiohttp.ClientSession) -> None:
        self.settings = settings
        self.runners = runners
        self._session = session

    async def load(self, question: Question) -> None:
        """Loads the model, and no more. ApiError."""
        options = checked_options(question.model.parameters | question.options)
        context = context_of(question.model, options, self.settings)
        async with self.runners.lease(question.model, context, question.keep_alive_s):
            pass

    async def ask(self, question: Question) -> AsyncIterator[Piece | End]:
        """Pieces, then one End. ApiError, at the beginning or in between."""
        began = time.monotonic_ns()
        options = checked_options(question.model.parameters | question.options)
        body = _body(question, options)
        context = context_of(question.model, options, self.settings)
        async with self.runners.lease(question.model, context, question.keep_alive_s) as runner:
            loaded = time.monotonic_ns() - began
            if question.truncate:
                body = await self._fitted(question.model, runner, body)
            # What a form is asked of goes through the GGUF's own template.
            prompt = self._rendered(question.model, body.get("messages", ())) if not question.format else None
            if prompt is not None:
                body = {name: value for name, value in body.items() if name != "messages"} | {"prompt": prompt}
            said, reason = "", "stop"
            final: Json = {}
            async for event in self._events(runner, body | {"lora": runner.lora} if runner.lora else body):
                final |= {key: event[key] for key in ("usage", "timings") if event.get(key)}
                for choice in event.get("choices", ()):
                    piece = _piece(choice)
                    said += piece.text
                    reason = choice.get("finish_reason") or reason
                    if piece.text or piece.thinking:
                        yield piece
            tokens = await self._context(runner, question, said) if question.wants_context else None
            yield _end(reason, time.monotonic_ns() - began, loaded, final, tokens)

    async def _events(self, runner: Runner, body: Json) -> AsyncIterator[Json]:
        path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
        try:
            async with self._session.post(runner.url + path, json=body) as answer:
                if answer.status != 200:
                    raise ApiError(answer.status, (await answer.text()).strip())
                async for line in answer.content:
                    data = line.decode().removeprefix("data: ").strip()
                    if data == "[DONE]":
                        return
                    if data and "error" in (event := json.loads(data)):
                        raise ApiError(500, str(event["error"].get("message", event["error"])))
                    if data:
                        yield event
        except aiohttp.ClientError:
            raise ApiError(500, _DIED) from None
        raise ApiError(500, _DIED)

    async def _fitted(self, model: Model, runner: Runner, body: Json) -> Json:
        """The request with a prompt that fits: old messages are left out, then the middle of the text, in silence."""
        room = runner.num_ctx
        if len(json.dumps(body.get("messages") or body["prompt"])) < room // 2:
            return body  # a token has at least one character, and a template's frame is short
        messages = list(body.get("messages", ()))
        tokens = await self._tokens(model, runner, messages, body.get("prompt", ""))
        while len(tokens) > room and len(messages) > 1:
            oldest = next((at for at, message in enumerate(messages[:-1]) if message["role"] != "system"), 0)
            del messages[oldest]
            tokens = await self._tokens(model, runner, messages, "")
        if len(tokens) <= room:
            return body | ({"messages": messages} if messages else {})
        limit = (room - _KEPT) // 2 + _KEPT
        fields = {"limit": limit, "prompt": len(tokens), "keep": _KEPT, "new": limit}
        log("WARN", "llama_server.go:317", "truncating input prompt", **fields)
        cut = [*tokens[:_KEPT], *tokens[len(tokens) - limit + _KEPT :]]
        return {name: value for name, value in body.items() if name != "messages"} | {"prompt": cut}

    def _rendered(self, model: Model, messages: Sequence[Json]) -> str | None:
        """What one of the Go templates that are known here makes of a chat; None where the GGUF's own template does."""
        template = model.text("template") if self.settings.go_template and messages else ""
        if template == RAW:
            return str(messages[-1]["content"])
        if template == CHATML:
            turns = (f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages)
            return f"{''.join(turns)}<|im_start|>assistant\n"
        return None

    async def _tokens(self, model: Model, runner: Runner, messages: list[Json], prompt: str) -> list[int]:
        if messages and (rendered := self._rendered(model, messages)) is not None:
            prompt = rendered
        elif messages:
            prompt = (await self._call(runner, "/apply-template", {"messages": messages}))["prompt"]
        answer = await self._call(runner, "/tokenize", {"content": prompt, "parse_special": True})
        return list(answer["tokens"])

    async def _context(self, runner: Runner, question: Question, said: str) -> tuple[int, ...]:
        """The tokens of the prompt as the template makes it, and of the answer."""
        prompt = await self._tokens(question.model, runner, list(question.messages), "")
        return (*prompt, *(await self._tokens(question.model, runner, [], said)))

    async def _call(self, runner: Runner, path: str, body: Json) -> Json:
        try:
            async with self._session.post(runner.url + path, json=body) as answer:
                return dict(await answer.json())
        except aiohttp.ClientError:
            raise ApiError(500, _DIED) from None


def _body(question: Question, options: Json) -> Json:
    """The request to llama.cpp's server, without the adapters."""
    body: Json = _DEFAULTS | {name: options[name] for name in _SAME if name in options}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    if options.get("num_predict", -1) >= 0:
        body["max_tokens"] = options["num_predict"]
    if options.get("seed", -1) >= 0:
        body["seed"] = options["seed"]
    if question.format:
        body["response_format"] = _response_format(question.format)
    if question.think is not None:
        body["chat_template_kwargs"] = {"enable_thinking": question.think}
    return body | ({"messages": list(question.messages)} if question.raw is None else {"prompt": question.raw})


def _response_format(wanted: Any) -> Json:
    if wanted == "json":
        return {"type": "json_object"}
    if isinstance(wanted, dict):
        return {"type": "json_schema", "json_schema": {"name": "format", "schema": wanted}}
    shown = json.dumps(json.dumps(wanted))
    raise ApiError(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


def _piece(choice: Json) -> Piece:
    if "text" in choice:
        return Piece(choice["text"] or "")
    delta = choice.get("delta") or {}
    return Piece(delta.get("content") or "", delta.get("reasoning_content") or "")


def _end(reason: str, total: int, load: int, final: Json, context: tuple[int, ...] | None) -> End:
    usage, timings = final.get("usage") or {}, final.get("timings") or {}
    prompt, spent = (int(timings.get(name, 0) * 1e6) for name in ("prompt_ms", "predicted_ms"))
    counts = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    return End(reason, total, load, counts[0], prompt, counts[1], spent, context)

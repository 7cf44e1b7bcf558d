"""Answers in OpenAI's API as Ollama gives them: one object, or a line for each event of a stream."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import repeat
from typing import Annotated, Any

import msgspec

from orchestrator.gateway.dialects.base import EndedEarlyError, Said
from orchestrator.gateway.dialects.named import Lines
from orchestrator.gateway.dialects.ollama import words
from orchestrator.gateway.dialects.ollama.asked import call_id
from orchestrator.gateway.dialects.ollama.splitters import OPEN, Calls, Thoughts, ToolCall, object_in
from orchestrator.gateway.dialects.ollama.words import GO_JSON, LINES, go_json
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.servers import reason_in

log = logging.getLogger("orchestrator.gateway")

Json = dict[str, Any]
_MS = 1_000_000
# What Go has room for.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Token(msgspec.Struct):
    token: str = ""
    logprob: float | None = None
    bytes: list[_Count] | None = None
    top_logprobs: list[_Token] | None = None


class _Logprobs(msgspec.Struct):
    """Those of chats, and those of completions in vLLM."""

    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count = 0
    completion_tokens: _Count | None = 0


class _Timings(msgspec.Struct):
    prompt_ms: _Milliseconds | None = None
    predicted_ms: _Milliseconds | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    prompt_text: str | None = None
    error: msgspec.Raw = msgspec.Raw()


_EVENT = msgspec.json.Decoder(_Event)
_NOTHING = _Message()


@dataclass(frozen=True)
class Reading:
    """How an answer is to be read. `thinks`, `calls`: the engine leaves it to the gateway to take apart what is
    thought, and what tools are called with; `begun`: the prompt ends within a thought. `tops`: how many other tokens
    are told for each, None where no token is. `tokens` finds the tokens of prompt and answer at the end, where they
    are told. `beginning` is what a whole answer repeats of the last message."""

    thinks: bool = False
    begun: bool = False
    calls: bool = False
    tops: int | None = None
    tokens: Callable[[str], Awaitable[list[int]]] | None = None
    beginning: str = ""


@dataclass
class Piece:
    """A part of an answer."""

    text: str = ""
    thought: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.text or self.thought or self.calls or self.logprobs)


class Answer:
    """A Reply to /api/chat or /api/generate (not `chats`), for a `model` by the name that it was asked for under.

    `began` is when the request came, in nanoseconds of the monotonic clock; what passed until now it took to ask.
    """

    passes = gathers = done = False
    counts = None
    stream_type = LINES

    def __init__(self, model: str, chats: bool, began: int, reading: Reading) -> None:
        self._chats = chats
        self._reading = reading
        self._began = began
        self._asked = time.monotonic_ns()
        self._first = 0
        self._head = b'{"model":%b,"created_at":"' % go_json(model)
        self._middle = b'","message":{"role":"assistant","content":' if chats else b'","response":'
        self._tail = b'},"done":false}\n' if chats else b',"done":false}\n'
        self._lines = Lines()
        self._plain = not (reading.thinks or reading.calls or reading.tops is not None)
        self._thoughts = Thoughts(reading.begun) if reading.thinks else None
        self._calls = Calls() if reading.calls else None
        self._thinks = self._trims = False
        self._gathered = _Gathered()
        self._told = 0
        self._said: list[str] = []
        self._thought: list[str] = []
        self._reason = ""
        self._usage = _Usage()
        self._timings = _Timings()
        self._done = False
        self._failed = False

    def part(self, data: bytes) -> bytes:
        """See Reply."""
        whole = self._lines.take(data)
        if not whole:
            return b""
        lines: list[bytes] = []
        for line in whole.split(b"\n"):
            if line.startswith(b"data:"):
                self._read(line[5:].strip(), lines)
            elif line.startswith(b"error:"):
                self._fail(reason_in(line[6:].strip()), lines)
        return b"".join(lines)

    async def end(self) -> bytes:
        """See Reply: a last line with the figures."""
        if self._failed:
            return b""
        if not self._done and self._lines.last().removeprefix(b"data:").strip() != b"[DONE]":
            raise EndedEarlyError
        lines: list[bytes] = []
        if piece := self._rest():
            lines += self._written(piece)
        lines.append(self._last(Piece(), await self._tokens()) + b"\n")
        return b"".join(lines)

    async def whole(self, status: int, body: bytes) -> Said:
        """See Reply."""
        if status >= HTTPStatus.BAD_REQUEST:
            return refused(status, body)
        try:
            event = _EVENT.decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            return Said(words.error(f"the engine's answer cannot be read: {error}"), 500, GO_JSON)
        if event.error:
            return refused(HTTPStatus.INTERNAL_SERVER_ERROR, body)
        piece = self._taken(event)
        rest = self._rest()
        text = (piece.text + rest.text).removeprefix(self._reading.beginning)
        piece = Piece(text, piece.thought + rest.thought, piece.calls + rest.calls, piece.logprobs)
        self._first = 0
        return Said(self._last(piece, await self._tokens()), HTTPStatus.OK, GO_JSON)

    def _read(self, data: bytes, lines: list[bytes]) -> None:
        if self._failed:
            return
        if data == b"[DONE]":
            self._done = True
            return
        try:
            event = _EVENT.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            self._fail(f"the engine's answer cannot be read: {error}", lines)
            return
        if event.error:
            self._fail(reason_in(data), lines)
            return
        if self._plain and event.choices and event.usage is None:
            # What nearly all events are.
            choice = event.choices[0]
            delta = choice.delta or _NOTHING
            text = choice.text or delta.content
            if text and not (delta.reasoning_content or delta.reasoning or delta.tool_calls or choice.finish_reason):
                if not self._first:
                    self._first = time.monotonic_ns()
                if self._reading.tokens is not None:
                    self._said.append(text)
                if not self._gathered.waiting:
                    now = words.now().encode()
                    lines += (self._head, now, self._middle, go_json(text), self._tail)
                    return
                lines += self._written(Piece(text, calls=self._gathered.finished()))
                return
        if piece := self._taken(event):
            if not self._first:
                self._first = time.monotonic_ns()
            lines += self._written(piece)

    def _fail(self, reason: str, lines: list[bytes]) -> None:
        if not self._failed:
            self._failed = True
            lines.append(words.error(reason) + b"\n")

    def _taken(self, event: _Event) -> Piece:
        """What an event, or a whole answer, adds."""
        if event.usage is not None:
            self._usage = event.usage
        if event.timings is not None:
            self._timings = event.timings
        if event.prompt_text and self._thoughts is not None and event.prompt_text.rstrip().endswith(OPEN):
            self._thoughts = Thoughts(begun=True)
        if not event.choices:
            return Piece()
        choice = event.choices[0]
        said = choice.delta or choice.message or _NOTHING
        text, thought = choice.text or said.content or "", said.reasoning_content or said.reasoning or ""
        if thought:
            # The engine takes it apart after all, but may leave the blanks around it.
            self._thoughts = None
            thought = thought if self._thinks else thought.lstrip()
            self._thinks, self._trims = self._thinks or bool(thought), True
        if text and self._trims:
            text = text.lstrip()
            self._trims = not text
        piece = self._apart(text, thought)
        for call in said.tool_calls or ():
            piece.calls += self._gathered.take(call)
        if choice.finish_reason:
            self._reason = choice.finish_reason
            piece.calls += self._gathered.finished()
        piece.text += self._gathered.failed()
        if choice.logprobs is not None and self._reading.tops is not None:
            piece.logprobs = _logprobs(choice.logprobs, self._reading.tops)
        if self._reading.tokens is not None:
            self._said.append(piece.text)
            self._thought.append(piece.thought)
        return piece

    def _apart(self, text: str, thought: str) -> Piece:
        if self._thoughts is not None and text:
            thought, text = self._thoughts.take(text)
        calls: list[ToolCall] = []
        if self._calls is not None and text:
            text, calls = self._calls.take(text)
        return Piece(text, thought, calls)

    def _rest(self) -> Piece:
        """What was held back."""
        thought, text, calls = "", "", self._gathered.finished()
        if self._thoughts is not None:
            thought, text = self._thoughts.rest()
        if self._calls is not None:
            text, more = self._calls.take(text)
            calls += more
            text += self._calls.rest()
        text += self._gathered.failed()
        if self._reading.tokens is not None:
            self._said.append(text)
            self._thought.append(thought)
        return Piece(text, thought, calls)

    def _written(self, piece: Piece) -> Iterable[bytes]:
        """Lines: one for what is thought and said, and one for each call."""
        lines = []
        if piece.text or piece.thought or (piece.logprobs and not piece.calls):
            lines.append(self._line(piece.text, piece.thought, [], piece.logprobs))
            piece.logprobs = []
        for call in piece.calls:
            lines.append(self._line("", "", [call], piece.logprobs))
            piece.logprobs = []
        return [line + b"\n" for line in lines]

    def _line(self, text: str, thought: str, calls: list[ToolCall], logprobs: list[Json]) -> bytes:
        told = (b',"logprobs":', go_json(logprobs)) if logprobs else ()
        return b"".join((self._begin(text, thought, calls), b',"done":false', *told, b"}"))

    def _begin(self, text: str, thought: str, calls: list[ToolCall]) -> bytes:
        """An object up to what was said, without an end."""
        parts = [self._head, words.now().encode(), self._middle, go_json(text)]
        if thought:
            parts += (b',"thinking":', go_json(thought))
        if calls and self._chats:
            parts += (b',"tool_calls":', go_json([self._call(call) for call in calls]))
        if self._chats:
            parts.append(b"}")
        return b"".join(parts)

    def _call(self, call: ToolCall) -> Json:
        index = self._told
        self._told += 1
        function = {"index": index, "name": call.name, "arguments": call.arguments}
        return {"id": call.id or call_id(), "function": function}

    def _last(self, piece: Piece, tokens: list[int] | None) -> bytes:
        """The object that is the end of an answer, or the whole."""
        ended = time.monotonic_ns()
        figures: Json = {"done": True, "done_reason": "length" if self._reason == "length" else "stop"}
        prompt, answer = self._usage.prompt_tokens, self._usage.completion_tokens or 0
        reading, writing = self._durations(ended, prompt, answer)
        counted = {
            "context": tokens,
            "total_duration": ended - self._began,
            "load_duration": self._asked - self._began,
            "prompt_eval_count": prompt,
            "prompt_eval_duration": reading,
            "eval_count": answer,
            "eval_duration": writing,
            "logprobs": piece.logprobs,
        }
        figures |= {name: value for name, value in counted.items() if value}
        begin = self._begin(piece.text, piece.thought, piece.calls)
        return b"".join((begin, b",", memoryview(go_json(figures))[1:]))

    def _durations(self, ended: int, prompt: int, answer: int) -> tuple[int, int]:
        """How long the prompt was read, and the answer written: as the engine says it, or as it was seen. Of a whole
        answer only both together are seen, so each token counts alike."""
        if self._timings.prompt_ms is not None and self._timings.predicted_ms is not None:
            return int(self._timings.prompt_ms * _MS), int(self._timings.predicted_ms * _MS)
        if self._first:
            return self._first - self._asked, ended - self._first
        both = ended - self._asked
        reading = both * prompt // max(1, prompt + answer)
        return reading, both - reading

    async def _tokens(self) -> list[int] | None:
        if self._reading.tokens is None:
            return None
        thought, said = "".join(self._thought), "".join(self._said)
        if thought:
            said = f"<think>\n{thought}\n</think>\n\n{said}"
        try:
            return await self._reading.tokens(said)
        except Refusal as refusal:
            log.warning("The tokens of an answer are not known: %s", refusal.message)
            return None


class _Gathered:
    """Calls of tools as OpenAI's API streams them: in pieces, one call after the other."""

    def __init__(self) -> None:
        self.waiting = False
        self._at: int | None = None
        self._id = ""
        self._name = ""
        self._arguments: list[str] = []
        self._failed = ""

    def take(self, piece: _Call) -> list[ToolCall]:
        """Adds a piece; returns the call before, which it ends, if it is another one's."""
        ended: list[ToolCall] = []
        if self.waiting and (piece.index != self._at or (piece.id and self._id and piece.id != self._id)):
            ended = self.finished()
        self.waiting, self._at = True, piece.index
        self._id = self._id or piece.id or ""
        if piece.function is not None:
            self._name = self._name or piece.function.name or ""
            self._arguments.append(piece.function.arguments or "")
        return ended

    def finished(self) -> list[ToolCall]:
        """The call that is there, if one is."""
        if not self.waiting:
            return []
        text = "".join(self._arguments)
        arguments = object_in(text)
        call = ToolCall(self._name, arguments or {}, self._id)
        if arguments is None:
            # Half a call, where the answer was too long: as Ollama, what the model wrote.
            self._failed += go_json({"name": self._name, "arguments": text}).decode()
        self.waiting, self._id, self._name, self._arguments = False, "", "", []
        return [] if arguments is None else [call]

    def failed(self) -> str:
        """What was no call after all."""
        text, self._failed = self._failed, ""
        return text


def refused(status: int, body: bytes) -> Said:
    """An engine's error in Ollama's shape and with its status."""
    known = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    if status in known:
        status = HTTPStatus.SERVICE_UNAVAILABLE
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
    else:
        status = HTTPStatus.BAD_REQUEST
    return Said(words.error(reason_in(body)), int(status), GO_JSON)


def loaded(model: str, chats: bool, unloads: bool) -> Said:
    """The answer to a request that asks for nothing but a load, or an unload."""
    said: Json = {"message": {"role": "assistant", "content": ""}} if chats else {"response": ""}
    reason = "unload" if unloads else "load"
    answer = {"model": model, "created_at": words.now(), **said, "done": True, "done_reason": reason}
    return Said(go_json(answer), content_type=GO_JSON)


def _logprobs(given: _Logprobs, tops: int) -> list[Json]:
    tokens = given.content
    if tokens is None:
        both = zip(given.tokens or (), given.token_logprobs or (), given.top_logprobs or repeat(None), strict=False)
        tokens = [
            _Token(token, logprob, top_logprobs=[_Token(*one) for one in (others or {}).items()])
            for token, logprob, others in both
        ]
    return [_token(one) | _others(one, tops) for one in tokens]


def _others(one: _Token, tops: int) -> Json:
    return {"top_logprobs": [_token(other) for other in one.top_logprobs[:tops]]} if one.top_logprobs and tops else {}


def _token(one: _Token) -> Json:
    spelled = list(one.token.encode("utf-8", "replace")) if one.bytes is None else one.bytes
    return {"token": one.token, "logprob": one.logprob, **({"bytes": spelled} if spelled else {})}

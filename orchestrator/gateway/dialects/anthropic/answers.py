"""Answers to chats as Anthropic's API gives them: one message, or its events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Annotated, Any

import msgspec

from orchestrator.gateway.dialects.anthropic import blocks, words
from orchestrator.gateway.dialects.anthropic.blocks import Blocks, Step, folded
from orchestrator.gateway.dialects.base import EVENTS, EndedEarlyError, Said
from orchestrator.gateway.dialects.named import Lines
from orchestrator.gateway.dialects.openai.answers import refusal_of
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.servers import reason_in

Json = dict[str, Any]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Choice(msgspec.Struct):
    delta: blocks.Said | None = None
    message: blocks.Said | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = 0
    completion_tokens: _Count | None = 0


class _Timings(msgspec.Struct):
    """What llama.cpp's server counts while it answers: tokens of the prompt that it read, and that it had read
    before."""

    prompt_n: int | None = None
    cache_n: int | None = None
    predicted_n: int | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: msgspec.Raw = msgspec.Raw()


_EVENT = msgspec.json.Decoder(_Event)
_NOTHING = blocks.Said()


class Answer:
    """A Reply to a message, for a `model` by the name that it was asked for under.

    `streams`: the client wants events; else it is told one message, whether the engine streams or not. `too_long` asks
    whether the prompt was, where the engine refuses it and it may be that.
    """

    passes = False
    counts = None
    stream_type = f"{EVENTS}; charset=utf-8"

    def __init__(
        self,
        model: str,
        streams: bool,
        told: Blocks,
        too_long: Callable[[], Awaitable[Refusal | None]] | None = None,
    ) -> None:
        self.gathers = not streams
        self.done = False
        self._blocks = told
        self._too_long = too_long
        self._message: Json = {"id": words.new_id("msg"), "type": "message", "role": "assistant", "model": model}
        self._lines = Lines()
        self._steps: list[Step] = []
        self._events: list[bytes] = []
        self._begun = self._ended = False
        self._failure: Refusal | None = None
        self._index = 0
        self._reason = ""
        self._prompt = self._answer = 0

    def part(self, data: bytes) -> bytes:
        """See Reply."""
        for line in self._lines.take(data).split(b"\n"):
            self._line(line)
        events, self._events = b"".join(self._events), []
        return events

    async def end(self) -> bytes:
        """See Reply; where it gathers, the message. Raises Refusal as well, where it cannot be told within a stream."""
        self._line(self._lines.last())
        if self._failure is not None and self.gathers:
            raise self._failure
        if not (self._ended or self._failure):
            raise EndedEarlyError
        if self.gathers:
            return self._whole(self._steps)
        return b"".join(self._events)

    async def whole(self, status: int, body: bytes) -> Said:
        """See Reply."""
        if status >= HTTPStatus.BAD_REQUEST:
            return words.refused(await self._refusal(status, body))
        try:
            event = _EVENT.decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            return words.refused(_unreadable(error))
        if event.error or not event.choices:
            return words.refused(Refusal(500, "engine_failed", reason_in(body)))
        choice = event.choices[0]
        self._count(event)
        self._reason = choice.finish_reason or ""
        steps = [*self._blocks.take(choice.message or _NOTHING), *self._blocks.end()]
        return Said(self._whole(steps))

    async def _refusal(self, status: int, body: bytes) -> Refusal:
        if status == HTTPStatus.BAD_REQUEST and self._too_long is not None and (refusal := await self._too_long()):
            return refusal
        said = refusal_of(status, body, 0)
        return Refusal(_STATUSES.get(said.status, 400 if said.status < 500 else 500), said.code, said.message)

    def _line(self, line: bytes) -> None:
        if self._ended or self._failure is not None:
            return
        if line.startswith(b"data:"):
            self._read(line[5:].strip())
        elif line.startswith(b"error:"):
            self._fail(Refusal(500, "engine_failed", reason_in(line[6:].strip())))

    def _read(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._finish()
            return
        try:
            event = _EVENT.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            self._fail(_unreadable(error))
            return
        if event.error:
            self._fail(Refusal(500, "engine_failed", reason_in(data)))
            return
        self._count(event)
        if not event.choices:
            return
        choice = event.choices[0]
        for step in self._blocks.take(choice.delta or _NOTHING):
            self._tell(step)
        if self._blocks.stops.found is not None:
            # The engine knows of no end, and need not go on.
            self.done = True
            self._finish()
        self._reason = choice.finish_reason or self._reason

    def _count(self, event: _Event) -> None:
        if event.usage is not None:
            self._prompt = event.usage.prompt_tokens or self._prompt
            self._answer = event.usage.completion_tokens or self._answer
        elif (timings := event.timings) is not None:
            self._prompt = max(0, timings.prompt_n or 0) + max(0, timings.cache_n or 0) or self._prompt
            self._answer = max(self._answer, timings.predicted_n or 0)

    def _fail(self, refusal: Refusal) -> None:
        self._failure, self.done = refusal, True
        self._events.append(words.error_event(refusal.status, refusal.message))

    def _finish(self) -> None:
        for step in self._blocks.end():
            self._tell(step)
        self._ended = True
        if not self.gathers:
            self._events.append(words.event("message_delta", delta=self._end(), usage=self._usage(self._answer)))
            self._events.append(words.event("message_stop"))

    def _tell(self, step: Step) -> None:
        if self.gathers:
            self._steps.append(step)
            return
        if not self._begun:
            self._begun = True
            nothing: Json = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": self._usage(0)}
            self._events.append(words.event("message_start", message=self._message | nothing))
            self._events.append(words.event("ping"))
        kind, said = step
        named = {blocks.Begin: {"content_block": said}, blocks.Add: {"delta": said}}.get(kind, {})
        self._events.append(words.event(kind, index=self._index, **named))
        self._index += kind == blocks.End

    def _end(self) -> Json:
        """Why it ended. A call that is whole by then is to be done, whatever would have followed."""
        found = self._blocks.stops.found
        reason = "end_turn"
        if self._reason == "length":
            reason = "max_tokens"
        elif found is not None:
            reason = "stop_sequence"
        elif self._blocks.calls:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": found}

    def _usage(self, answer: int) -> Json:
        """No engine here has a cache that is paid for by itself: all of a prompt is read."""
        cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        return {"input_tokens": self._prompt, **cached, "output_tokens": answer}

    def _whole(self, steps: Iterable[Step]) -> bytes:
        content = folded(steps)
        return msgspec.json.encode(
            {**self._message, "content": content, **self._end(), "usage": self._usage(self._answer)}
        )


_STATUSES = {status: status for status in (404, 413, 429, 503)}


def _unreadable(error: Exception) -> Refusal:
    return Refusal(500, "engine_unreadable", f"The engine's answer cannot be read: {error}.")

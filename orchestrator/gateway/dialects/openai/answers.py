"""What engines answer in OpenAI's API, the same from each of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from itertools import accumulate

import msgspec
import orjson

from orchestrator.gateway.dialects.base import Question, Said
from orchestrator.gateway.dialects.named import Passing
from orchestrator.gateway.dialects.openai.asked import CHAT, COMPLETIONS
from orchestrator.gateway.dialects.openai.unasked import Unasked
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.servers import reason_in

# A thought has one name with llama.cpp, another with vLLM and Ollama, and clients look for either.
_THOUGHT = re.compile(rb'"reasoning(?:_content)?":(null|"[^"\\]*(?:\\.[^"\\]*)*")')
_TWICE = rb'"reasoning":\1,"reasoning_content":\1'
_EITHER, _ONE, _OTHER = b'"reasoning', b'"reasoning":', b'"reasoning_content":'
# What llama.cpp begins a stream for several prompts with.
_EMPTY = b"data: null\n"
_AS_IN_CHATS = b'"logprobs":{"content":['
# What an engine says of the wish for figures that it does not know.
_OF_FIGURES = b"stream_options"
_REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
# What engines say of a prompt that does not fit; the last is Ollama's.
_TOO_LONG = re.compile(r"maximum context length|exceeds? the (?:available )?context|exceeds the available context size")
# What llama.cpp's server calls a fault of its own, and is the question's.
_OF_THE_QUESTION = re.compile(r"Failed to parse|is not supported|Missing ")


class Answer(Passing):
    """See Reply. `context`, in tokens, is what there is (0: nobody knows); `instead` what to ask where the engine says
    that so long an answer has no room in it. `unasked` takes out the figures that only the gateway wants; `plain` is
    what to ask where the engine does not know of them."""

    def __init__(
        self,
        path: str,
        ends: tuple[bytes, ...],
        name: str,
        context: int,
        instead: Callable[[], Question] | None,
        unasked: Unasked | None = None,
        plain: Callable[[], Question] | None = None,
    ) -> None:
        self._path = path
        # Of each choice the characters whose probabilities were told.
        self._lengths: dict[int, int] = {}
        super().__init__(ends, name, rewrites=True)
        self._context = context
        self._instead = instead
        self._unasked = unasked
        self._plain = plain

    @property
    def passes(self) -> bool:
        """An error may be in it."""
        return False

    async def whole(self, status: int, body: bytes) -> Said | Question:
        """See Reply."""
        if status < HTTPStatus.BAD_REQUEST:
            return Said(self.rewritten(body), status)
        if self._plain is not None and status in _REFUSED and _OF_FIGURES in body:
            return self._plain()
        refusal = refusal_of(status, body, self._context)
        if self._instead is not None and refusal.code == TOO_LONG:
            return self._instead()
        return Said(error_of(refusal), refusal.status)

    @property
    def counts(self) -> tuple[int | None, int | None] | None:
        """See Reply."""
        return self._unasked.counts if self._unasked is not None else None

    def part(self, data: bytes) -> bytes:
        """See Reply."""
        text = Passing.part(self, data)
        return text if self._unasked is None else self._unasked.take(text)

    async def end(self) -> bytes:
        """See Reply."""
        rest = await super().end()
        return rest if self._unasked is None else self._unasked.take(rest) + self._unasked.rest()

    def rewritten(self, text: bytes) -> bytes:
        """Under the client's name for the model, with thoughts under both of theirs."""
        text = super().rewritten(text)
        if self._path == CHAT and _EITHER in text and not (_ONE in text and _OTHER in text):
            return _THOUGHT.sub(_TWICE, text)
        if self._path == COMPLETIONS:
            text = text.replace(_EMPTY, b"")
            if _AS_IN_CHATS in text:
                return b"".join(map(self._as_in_completions, text.splitlines(keepends=True)))
        return text

    def _as_in_completions(self, line: bytes) -> bytes:
        """A line whose probabilities are written as those of chats, in the words that completions have for them."""
        if _AS_IN_CHATS not in line:
            return line
        before, brace, rest = line.partition(b"{")
        said = msgspec.json.decode(brace + rest)
        for choice in said["choices"]:
            known = choice.get("logprobs")
            if not known or "content" not in known:
                continue
            start = self._lengths.get(choice["index"], 0)
            offsets = list(accumulate((len(one["token"]) for one in known["content"]), initial=start))
            self._lengths[choice["index"]] = offsets.pop()
            choice["logprobs"] = {
                "tokens": [one["token"] for one in known["content"]],
                "token_logprobs": [one["logprob"] for one in known["content"]],
                "top_logprobs": [
                    {other["token"]: other["logprob"] for other in one["top_logprobs"]} for one in known["content"]
                ],
                "text_offset": offsets,
            }
        return before + msgspec.json.encode(said) + rest[len(rest.rstrip()) :]


TOO_LONG = "context_length_exceeded"


def refusal_of(status: int, body: bytes, context: int) -> Refusal:
    """What an engine's error says, of a `context` in tokens (0: nobody knows)."""
    reason = reason_in(body)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR and _TOO_LONG.search(reason):
        most = f"of {context} tokens " if context else ""
        message = f"The context {most}has no room for this prompt and an answer. The engine says: {reason}"
        return Refusal(HTTPStatus.BAD_REQUEST, TOO_LONG, message)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and _OF_THE_QUESTION.search(reason):
        status = HTTPStatus.BAD_REQUEST
    return Refusal(status, "engine_refused", reason, _param_in(body))


def _param_in(body: bytes) -> str | None:
    try:
        param = msgspec.json.decode(body)["error"]["param"]
    except (msgspec.DecodeError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return param if isinstance(param, str) else None


def error_of(refusal: Refusal) -> bytes:
    """`{"error": {message, type, param, code}}`."""
    kind = "invalid_request_error" if refusal.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    error = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    return orjson.dumps({"error": error})

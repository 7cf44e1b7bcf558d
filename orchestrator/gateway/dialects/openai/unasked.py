"""Figures at the end of a stream that the gateway has asked an engine for, and its client has not: taken out again, so
that the client reads what it would have read without.

What each engine says otherwise where it is asked for them was seen on it: vLLM 0.32 has its `system_fingerprint` in the
event with the figures, else in the last one of the choice; Ollama 0.33 has empty figures in every event of a
completion.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from orchestrator.gateway.dialects.openai.asked import Chat, Completion, Question
from orchestrator.gateway.tokens import counts_in

INCLUDE = "include_usage"
# Where it is true, figures come with every event.
_EACH = "continuous_usage_stats"
_UNSAID = (b"", b"null", b"false")
_FIGURES = b'"usage":{'
_REASON = b'"finish_reason":"'
_NO_REASON = b'"finish_reason":null'
_FINGERPRINT = b'"system_fingerprint":'
_EMPTY_FIGURES = b',"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'


class _Event(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    system_fingerprint: msgspec.Raw = msgspec.Raw()


_EVENT = msgspec.json.Decoder(_Event)


def options(question: Question) -> Mapping[str, object] | None:
    """The stream_options that ask for the figures, with what the client says there; None where it asks for them
    itself, or for no stream of its own."""
    if not (isinstance(question, Chat | Completion) and question.stream):
        return None
    said = question.stream_options or {}
    if bytes(said.get(INCLUDE, b"")) not in _UNSAID:
        return None
    return {**{name: value for name, value in said.items() if name != _EACH}, INCLUDE: True}


class Unasked:
    """Takes the figures out of a stream, line by line, and has the `counts` of tokens that they told.

    `moves`: the engine tells its fingerprint with the figures, in place of the event before, which waits for it.
    `each`: it has empty ones in each event.
    """

    def __init__(self, moves: bool = False, each: bool = False) -> None:
        self._moves = moves
        self._each = each
        self._held = b""
        # The blank line behind an event that was taken out goes with it.
        self._drops = False
        # Nothing is held, and nothing is to be dropped.
        self._calm = not each
        self.counts: tuple[int | None, int | None] = (None, None)

    def take(self, text: bytes) -> bytes:
        """What the client is told of some whole lines."""
        # Where the last event is one of many, so are all before it.
        if self._calm and text.find(_NO_REASON, text.rfind(b"\ndata:") + 1) >= 0:
            return text
        told = b"".join(map(self._line, text.splitlines(keepends=True)))
        self._calm = not (self._held or self._drops or self._each)
        return told

    def rest(self) -> bytes:
        """What was held, for figures that did not come."""
        held, self._held = self._held, b""
        return held

    def _line(self, line: bytes) -> bytes:
        if not line.strip():
            if self._drops:
                self._drops = False
                return b""
            if self._held:
                self._held += line
                return b""
            return line
        self._drops = False
        if self._each:
            line = line.replace(_EMPTY_FIGURES, b"")
        if _FIGURES in line:
            event = _read(line)
            if event is not None and event.choices == [] and bytes(event.usage).startswith(b"{"):
                self._drops, self.counts = True, counts_in(line)
                return _with(bytes(event.system_fingerprint), self.rest())
        before = self.rest()
        if self._moves and _REASON in line:
            self._held = line
            return before
        return before + line


def _read(line: bytes) -> _Event | None:
    try:
        return _EVENT.decode(line.partition(b":")[2])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _with(fingerprint: bytes, event: bytes) -> bytes:
    """The event that the figures came behind, if one was held, as it is where nobody asks for them."""
    end = event.rfind(b"}")
    if end < 0 or fingerprint in (b"", b"null") or _FINGERPRINT in event:
        return event
    return b"".join((event[:end], b",", _FINGERPRINT, fingerprint, event[end:]))

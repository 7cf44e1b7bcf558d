"""A chat's answer as the blocks of a message, in the steps in which Anthropic's API streams them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from orchestrator.gateway.dialects.anthropic import words

Json = dict[str, Any]
# A block begins (with its fields so far), something is added to it, or it ends (nothing).
Begin, Add, End = "content_block_start", "content_block_delta", "content_block_stop"
Step = tuple[str, Json]
_THINKING, _TEXT, _TOOL = "thinking", "text", "tool_use"


class Function(msgspec.Struct):
    """A tool's name, and the arguments as JSON, or a piece of either."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A call of a tool, or a piece of one."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Said(msgspec.Struct):
    """What a chat's answer says, or a piece of it. Thoughts have two names: vLLM's, and what most others took up."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class Stops:
    """Finds the sequences that end an answer in a text that comes cut anywhere: the one that is whole first."""

    def __init__(self, sequences: tuple[str, ...]) -> None:
        self.found: str | None = None
        self._sequences = sequences
        self._held = ""

    def take(self, text: str) -> str:
        """What some more of the text adds to what is before the first of them, as far as that is certain."""
        if not self._sequences:
            return text
        text = self._held + text
        ends = [(at + len(one), at, one) for one in self._sequences if (at := text.find(one)) >= 0]
        if ends:
            _, start, self.found = min(ends)
            self._held = ""
            return text[:start]
        kept = max(self._begun(text, one) for one in self._sequences)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def rest(self) -> str:
        """What was held back, and was none of them."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _begun(text: str, sequence: str) -> int:
        """Characters at a text's end with which the sequence begins."""
        longest = min(len(text), len(sequence) - 1)
        return next((n for n in range(longest, 0, -1) if text.endswith(sequence[:n])), 0)


class Blocks:
    """Takes what an engine says piece by piece, and gives the steps that tell it.

    Engines leave blanks around thoughts and calls, each in its own way: blanks after a thought, and those of a text
    where calls `may_follow`, are told once more of it comes. A message without any block has an empty text. Without
    `parallel` the first call is the only one. `beginning` is what a whole answer repeats of the last message.
    """

    def __init__(
        self, stops: tuple[str, ...] = (), may_follow: bool = True, parallel: bool = True, beginning: str = ""
    ) -> None:
        self.stops = Stops(stops)
        self.calls = False
        self._may_follow = may_follow
        self._parallel = parallel
        self._beginning = beginning
        self._open = ""
        self._any = False
        self._blanks = ""
        self._thought = hashlib.sha256()
        self._call: int | None = None
        self._id: str | None = None
        self._ended_calls: set[int | None] = set()
        # What is said beside a call whose pieces still come.
        self._beside = ""

    def take(self, said: Said) -> Iterator[Step]:
        """The steps that a piece, or the whole, adds. Nothing follows a sequence that ends it."""
        if self.stops.found is not None:
            return
        if thought := said.reasoning_content or said.reasoning:
            yield from self._think(thought)
        if said.content:
            text = self.stops.take(self._without_beginning(said.content))
            if self._open == _TOOL:
                self._beside += text
            else:
                yield from self._say(text)
        if self.stops.found is None:
            for call in said.tool_calls or ():
                yield from self._called(call)

    def end(self) -> Iterator[Step]:
        """The last ones."""
        rest = self.stops.rest()
        if self._open == _TOOL:
            self._beside += rest
            yield from self._closed()
        else:
            yield from self._say(rest)
        if self._blanks and self._open != _THINKING and not self.calls:
            yield from self._write(_TEXT, self._blanks)
        if not self._any:
            yield from self._begin({"type": _TEXT, "text": ""})
        yield from self._closed()

    def _without_beginning(self, text: str) -> str:
        if self._beginning:
            text, self._beginning = text.removeprefix(self._beginning), ""
        return text

    def _think(self, thought: str) -> Iterator[Step]:
        yield from self._written(_THINKING, thought, strip=self._open != _THINKING)

    def _say(self, text: str) -> Iterator[Step]:
        if text:
            yield from self._written(_TEXT, text, strip=self._open == _THINKING or self.calls)

    def _written(self, kind: str, text: str, strip: bool) -> Iterator[Step]:
        """A thought or a text, but for blanks at its end that wait."""
        if strip:
            text, self._blanks = text.lstrip(), ""
        text = self._blanks + text
        told = text.rstrip() if kind == _THINKING or self._may_follow else text
        self._blanks = text[len(told) :]
        if told:
            yield from self._write(kind, told)

    def _write(self, kind: str, text: str) -> Iterator[Step]:
        if self._open != kind:
            yield from self._closed()
            about = {"signature": ""} if kind == _THINKING else {}
            yield from self._begin({"type": kind, kind: "", **about})
        if kind == _THINKING:
            self._thought.update(text.encode("utf-8", "replace"))
        yield Add, {"type": f"{kind}_delta", kind: text}

    def _called(self, call: ToolCall) -> Iterator[Step]:
        function = call.function or Function()
        if self._open != _TOOL or self._is_another(call, function.name):
            if (self.calls and not self._parallel) or call.index in self._ended_calls or not function.name:
                return
            yield from self._closed()
            self._blanks, self.calls, self._call, self._id = "", True, call.index, call.id
            identity = call.id or words.new_id("toolu")
            yield from self._begin({"type": _TOOL, "id": identity, "name": function.name, "input": {}})
        if function.arguments:
            yield Add, {"type": "input_json_delta", "partial_json": function.arguments}

    def _is_another(self, call: ToolCall, name: str | None) -> bool:
        """Whether it is not the call that is being told. Of a whole answer's calls none may have a number."""
        renamed = name and (call.index is None or (call.id and call.id != self._id))
        return call.index != self._call or bool(renamed)

    def _begin(self, block: Json) -> Iterator[Step]:
        self._open, self._any = str(block["type"]), True
        yield Begin, block

    def _closed(self) -> Iterator[Step]:
        kind, self._open = self._open, ""
        if not kind:
            return
        if kind == _THINKING:
            # Clients send it back with the thought. Nobody here asks for it, but some leave out what has none.
            yield Add, {"type": "signature_delta", "signature": self._thought.hexdigest()}
            self._thought = hashlib.sha256()
        if kind == _TOOL and self._call is not None:
            self._ended_calls.add(self._call)
        yield End, {}
        if kind == _TOOL and (beside := self._beside.strip()):
            self._beside = ""
            yield Begin, {"type": _TEXT, "text": ""}
            yield Add, {"type": "text_delta", "text": beside}
            yield End, {}
        self._beside = ""


def folded(steps: Iterable[Step]) -> list[Json]:
    """The blocks that these steps tell, whole. Half a call, where an answer was too long, is told as a text: with half
    of what it asks for it must not be done."""
    blocks: list[Json] = []
    arguments = ""
    for kind, said in steps:
        if kind == Begin:
            blocks.append(dict(said))
            arguments = ""
        elif kind == Add:
            if said["type"] == "input_json_delta":
                arguments += said["partial_json"]
            else:
                field = said["type"].removesuffix("_delta")
                blocks[-1][field] += said[field]
        elif blocks[-1]["type"] == _TOOL:
            given = _object_in(arguments)
            name = blocks[-1]["name"]
            half = {"type": _TEXT, "text": msgspec.json.encode({"name": name, "arguments": arguments}).decode()}
            blocks[-1] = half if given is None else blocks[-1] | {"input": given}
    return blocks


def _object_in(text: str) -> msgspec.Raw | None:
    """The object that a text is the JSON of, or None."""
    try:
        found = msgspec.json.decode(text or "{}")
        msgspec.json.encode(found)
    except (msgspec.DecodeError, ValueError, RecursionError, TypeError):
        return None
    return msgspec.Raw((text or "{}").encode()) if isinstance(found, dict) else None

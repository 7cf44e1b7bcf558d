"""Texts of models that are taken apart as they come: what is thought, what is said, what tools are called with.

For answers that an engine gives as they are. The marks are those of the models that Ollama knows by their templates:
<think>, and <tool_call> with JSON in it (Hermes, Qwen) or with <function=NAME><parameter=NAME> (Qwen's coders).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

OPEN, CLOSE = "<think>", "</think>"
_CALL, _CALLED = "<tool_call>", "</tool_call>"
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>)?\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """A tool's name and what it is called with, and the call's id, if the engine gave it one."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


class Thoughts:
    """Divides a text into what is thought and what is said. `begun`: the prompt ends within a thought."""

    def __init__(self, begun: bool = False) -> None:
        self._place = "in" if begun else "before"
        self._held = ""

    def take(self, text: str) -> tuple[str, str]:
        """What some more of the text adds to either."""
        self._held += text
        thought = ""
        if self._place == "before":
            start = self._held.lstrip()
            if start.startswith(OPEN):
                self._place, self._held = "begin", start[len(OPEN) :]
            elif OPEN.startswith(start):
                return "", ""
            else:
                self._place = "out"
        if self._place == "begin":
            self._held = self._held.lstrip()
            if not self._held:
                return "", ""
            self._place = "in"
        if self._place == "in":
            thought, found, rest = self._held.partition(CLOSE)
            if not found:
                kept = _kept(self._held, CLOSE)
                thought, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
                return thought, ""
            thought, self._held, self._place = thought.rstrip(), rest, "after"
        if self._place == "after":
            self._held = self._held.lstrip()
            if self._held:
                self._place = "out"
        said, self._held = self._held, ""
        return thought, said

    def rest(self) -> tuple[str, str]:
        """What was held back."""
        held, self._held = self._held, ""
        return (held.rstrip(), "") if self._place in ("in", "begin") else ("", held)


class Calls:
    """Takes calls of tools out of a text."""

    def __init__(self) -> None:
        self._inside = False
        self._any = False
        self._held = ""

    def take(self, text: str) -> tuple[str, list[ToolCall]]:
        """What some more of the text adds to what is said, and the calls that are whole by now."""
        self._held += text
        said = ""
        calls: list[ToolCall] = []
        while True:
            if self._inside:
                inner, found, rest = self._held.partition(_CALLED)
                if not found:
                    return said, calls
                self._held, self._inside = rest, False
                call = call_in(inner)
                if call is None:
                    said += f"{_CALL}{inner}{_CALLED}"
                else:
                    calls.append(call)
                    self._any = True
                continue
            before, found, rest = self._held.partition(_CALL)
            if not found:
                kept = _kept(self._held, _CALL)
                said += self._held[: len(self._held) - kept]
                self._held = self._held[len(self._held) - kept :]
                return said, calls
            said += before.rstrip()
            self._held, self._inside = rest, True

    def rest(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        if self._inside:
            return f"{_CALL}{held}"
        return "" if self._any and held.isspace() else held


def call_in(text: str) -> ToolCall | None:
    """The call that a text describes, or None."""
    try:
        said = msgspec.json.decode(text.strip())
    except (msgspec.DecodeError, ValueError, RecursionError):
        return _call_in_marks(text)
    if not isinstance(said, dict):
        return None
    name, arguments = said.get("name"), said.get("arguments", said.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = object_in(arguments)
    if not (isinstance(name, str) and isinstance(arguments, dict) and _can_be_told(arguments)):
        return None
    return ToolCall(name, arguments)


def object_in(text: str) -> dict[str, Any] | None:
    """The object that a text is the JSON of, or None."""
    try:
        said = msgspec.json.decode(text) if text.strip() else {}
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) and _can_be_told(said) else None


def _can_be_told(value: object) -> bool:
    """Whether it can be written again: what a model says may be nested without end."""
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


def _call_in_marks(text: str) -> ToolCall | None:
    found = _FUNCTION.fullmatch(text)
    if found is None:
        return None
    arguments: dict[str, Any] = {}
    for name, value in _PARAMETER.findall(found[2]):
        try:
            arguments[name] = msgspec.json.decode(value)
        except (msgspec.DecodeError, ValueError, RecursionError):
            arguments[name] = value
    return ToolCall(found[1], arguments) if _can_be_told(arguments) else None


def _kept(text: str, mark: str) -> int:
    """Characters at a text's end that wait for what follows: blanks before a mark, and its beginning."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length + _blanks(text[: len(text) - length])
    return _blanks(text)


def _blanks(text: str) -> int:
    return len(text) - len(text.rstrip())

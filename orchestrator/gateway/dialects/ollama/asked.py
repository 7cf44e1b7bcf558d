"""What a request in Ollama's API asks for, by Go's rules: names of fields in any case, the last one counts."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec

from orchestrator.gateway.bodies import check_names, check_readable
from orchestrator.gateway.dialects.base import Call
from orchestrator.gateway.dialects.ollama import durations, words
from orchestrator.gateway.dialects.ollama.options import Options, options_of
from orchestrator.gateway.refusals import Refusal

# Halves of characters, whole ones, and backslashes that begin none.
_SURROGATES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
# It takes long: 2 us for each that is none.
_MOST_REPAIRED = 256 << 10
_ALONE = len(rb"\ud800")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRUCTS = {
    "/api/chat": "ChatRequest",
    "/api/generate": "GenerateRequest",
    "/api/embed": "EmbedRequest",
    "/api/embeddings": "EmbeddingRequest",
    "/api/show": "ShowRequest",
    "/api/pull": "PullRequest",
}
# What each asks for; a field of another is one that Ollama does not know, and does not look at.
_ALL = frozenset({"model", "options", "keep_alive", "truncate"})
_ANSWERS = _ALL | {"stream", "format", "think", "logprobs", "top_logprobs"}
_KNOWN = {
    "/api/chat": _ANSWERS | {"messages", "tools"},
    "/api/generate": _ANSWERS | {"prompt", "suffix", "system", "template", "context", "raw", "images"},
    "/api/embed": _ALL | {"input"},
    "/api/embeddings": _ALL | {"prompt"},
}


def fields_of(path: str, body: bytes) -> dict[str, msgspec.Raw]:
    """The top level of a body by names in lower case; raises Refusal in Go's words."""
    if not body or body.isspace():
        raise words.fault(400, "missing request body")
    if body.strip() == b"null":
        return {}
    check_names(body)
    try:
        found: dict[str, msgspec.Raw] = _lenient(_FIELDS.decode, body)
    except msgspec.ValidationError as error:
        raise words.fault(
            400, f"json: cannot unmarshal {_kind(body)} into Go value of type api.{_STRUCTS[path]}"
        ) from error
    except RecursionError as error:
        raise words.fault(400, "exceeded max depth") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise _malformed(str(error), body) from error
    lowered = {name.lower(): value for name, value in found.items()}
    return lowered if len(lowered) == len(found) else _in_order(found, body)


def _in_order(found: dict[str, msgspec.Raw], body: bytes) -> dict[str, msgspec.Raw]:
    """The same where names differ in case only: the last of them counts, wherever its like stood before."""
    if len(body) > _MOST_REPAIRED:
        raise words.fault(400, "names of fields differ in case only")
    try:
        pairs = json.loads(body.decode("utf-8", "replace"), object_pairs_hook=list)
    except RecursionError as error:
        raise words.fault(400, "exceeded max depth") from error
    return {name.lower(): found[name] for name, _ in pairs if name in found}


def _lenient(decode: Callable[[bytes], Any], text: bytes) -> Any:
    """What JSON says; as Go has it, what is no character in a string is the one that stands for such."""
    try:
        return decode(text)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError):
        if len(text) > _MOST_REPAIRED:
            raise
        readable = text.decode("utf-8", "replace").encode()
        readable = _SURROGATES.sub(lambda found: found[0] if len(found[0]) != _ALONE else rb"\ufffd", readable)
        if readable == text:
            raise
        return decode(readable)


def text_of(fields: dict[str, msgspec.Raw], path: str, name: str) -> str:
    """A string, "" where it is not there or null; raises Refusal."""
    value = bytes(fields.get(name, b"null"))
    if value == b"null":
        return ""
    if not value.startswith(b'"'):
        raise wrong_type(path, name, value, "string")
    return str(_lenient(msgspec.json.decode, value))


def truth_of(fields: dict[str, msgspec.Raw], path: str, name: str, default: bool) -> bool:
    """A truth; raises Refusal."""
    value = bytes(fields.get(name, b"null"))
    if value not in (b"null", b"true", b"false"):
        raise wrong_type(path, name, value, "bool")
    return default if value == b"null" else value == b"true"


def call_of(path: str, body: bytes) -> Call:
    """The model and whether a stream is wanted; raises Refusal."""
    fields = fields_of(path, body)
    streams = path in ("/api/chat", "/api/generate") and truth_of(fields, path, "stream", default=True)
    return Call(text_of(fields, path, "model"), streams)


def wrong_type(path: str, name: str, value: bytes, wanted: str) -> Refusal:
    """400 as Go's decoder says it."""
    return words.fault(
        400, f"json: cannot unmarshal {_kind(value)} into Go struct field {_STRUCTS[path]}.{name} of type {wanted}"
    )


def _kind(value: bytes) -> str:
    first = value.lstrip()[:1]
    return {b'"': "string", b"[": "array", b"{": "object", b"t": "bool", b"f": "bool"}.get(first, "number")


def _malformed(message: str, body: bytes) -> Refusal:
    """What Go says of JSON that is none."""
    place = message.rpartition("(byte ")[2].rstrip(")")
    if "trailing characters" in message and place.isdigit() and int(place) <= len(body):
        letter = body[int(place) - 1 :].decode("utf-8", "replace")[0]
        return words.fault(400, f"invalid character '{letter}' after top-level value")
    if "truncated" in message or not place.isdigit() or int(place) >= len(body):
        return words.fault(400, "unexpected EOF")
    letter = body[int(place) :].decode("utf-8", "replace")[0]
    return words.fault(400, f"invalid character '{letter}' looking for beginning of value")


_ID_LETTERS = string.ascii_lowercase + string.digits
_LEVELS = ("high", "medium", "low", "max")
_THINK = 'boolean or string ("high", "medium", "low", "max", true, or false)'
_MOST_LOGPROBS = 20
_OBJECT_OR_NONE = dict[str, msgspec.Raw] | None
# What msgspec found in place of what it was to find, and JSON of that kind.
_GOT = re.compile(r"got `(\w+)`")
_SHOWN = {"array": b"[", "object": b"{", "str": b'"', "bool": b"t"}
_OBJECT = "map[string]interface {}"


def call_id(place: str = "") -> str:
    """A name for a tool's call, as Ollama makes them: a new one, or that of a place in a chat, which is the same
    whenever the chat is sent. Templates may write it, and a prompt that changes is in no engine's cache."""
    drawn = hashlib.sha256(place.encode()).digest() if place else secrets.token_bytes(8)
    return "call_" + "".join(_ID_LETTERS[one % len(_ID_LETTERS)] for one in drawn[:8])


@dataclass(frozen=True)
class Asked:
    """A question in Ollama's API. `messages` and `tools` are written as OpenAI's API has them. `think` is None where
    nothing is said, `keep_alive` too (nanoseconds). `form` is a JSON schema, or "json". `images`: there are some.
    `size` are the bytes of all."""

    path: str
    model: str
    streams: bool = True
    messages: tuple[dict[str, Any], ...] = ()
    prompt: str = ""
    system: str = ""
    template: str = ""
    suffix: str = ""
    context: tuple[int, ...] | None = None
    raw: bool = False
    images: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    form: msgspec.Raw | None = None
    given_options: Mapping[str, object] = field(default_factory=dict)
    think: bool | str | None = None
    keep_alive: int | None = None
    truncate: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    input: object = None
    size: int = 0

    @property
    def chats(self) -> bool:
        """Whether it is /api/chat's."""
        return self.path == "/api/chat"

    @property
    def options(self) -> Options:
        """What it says of sampling; raises Refusal."""
        return options_of(self.given_options)

    @classmethod
    def read(cls, path: str, body: bytes) -> Asked:
        """The whole of it; raises Refusal."""
        check_readable(body)
        try:
            return replace(_Reader(path, fields_of(path, body)).asked(), size=len(body))
        except RecursionError as error:
            raise words.fault(400, "exceeded max depth") from error
        except (msgspec.DecodeError, ValueError) as error:
            raise words.fault(400, f"the body cannot be read: {error}") from error


class _Reader:
    """Reads the fields, each as Go would."""

    def __init__(self, path: str, fields: dict[str, msgspec.Raw]) -> None:
        self.path = path
        self.fields = {name: value for name, value in fields.items() if name in _KNOWN[path]}
        self.pictured = False

    def asked(self) -> Asked:
        messages = self.messages()
        asked = Asked(
            path=self.path,
            model=self.text("model"),
            streams=self.truth("stream", default=True),
            messages=messages,
            prompt=self.text("prompt"),
            system=self.text("system"),
            template=self.text("template"),
            suffix=self.text("suffix"),
            context=self.context(),
            raw=self.truth("raw"),
            images=self.has_images(self.value("images"), "images") or self.pictured,
            tools=self.tools(),
            form=self.form(),
            given_options=self.options(),
            think=self.think(),
            keep_alive=self.keep_alive(),
            truncate=self.truth("truncate", default=True),
            logprobs=self.truth("logprobs"),
            top_logprobs=self.whole("top_logprobs"),
            input=self.value("input"),
        )
        if not 0 <= asked.top_logprobs <= _MOST_LOGPROBS:
            raise words.fault(400, f"top_logprobs must be between 0 and {_MOST_LOGPROBS}")
        return asked

    def value(self, name: str) -> Any:
        raw = self.fields.get(name)
        return None if raw is None else _lenient(msgspec.json.decode, bytes(raw))

    def text(self, name: str) -> str:
        return str(self._of_type(self.value(name), str, name, "string") or "")

    def truth(self, name: str, default: bool = False) -> bool:
        value = self._of_type(self.value(name), bool, name, "bool")
        return default if value is None else bool(value)

    def whole(self, name: str) -> int:
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | None):
            raise self.wrong(name, value, "int")
        return value or 0

    def context(self) -> tuple[int, ...] | None:
        value = self.listed("context", "[]int", int, "int")
        return None if value is None else tuple(value)

    def listed(self, name: str, wanted: str, kind: Any, wanted_each: str) -> list[Any] | None:
        """A list of values of one kind, of which the first that is another one is all that is looked at."""
        raw = bytes(self.fields.get(name, b"null"))
        if not raw.startswith(b"["):
            return cast("list[Any] | None", self._of_type(self.value(name), list, name, wanted))
        try:
            return cast("list[Any]", _lenient(functools.partial(msgspec.json.decode, type=list[kind]), raw))
        except msgspec.ValidationError as error:
            found = _GOT.search(str(error))
            if found is None:
                raise
            raise wrong_type(self.path, name, _SHOWN.get(found[1], b"1"), wanted_each) from error

    def options(self) -> dict[str, object]:
        value: dict[str, object] | None = self._of_type(self.value("options"), dict, "options", _OBJECT)
        return value or {}

    def form(self) -> msgspec.Raw | None:
        raw = bytes(self.fields.get("format", b"null"))
        return None if raw in (b"null", b'""') else msgspec.Raw(raw)

    def think(self) -> bool | str | None:
        value = self.value("think")
        if isinstance(value, str) and value not in _LEVELS:
            raise words.fault(
                400,
                f'invalid think value: {words.quoted(value)} (must be "high", "medium", "low", "max", true, or false)',
            )
        if not isinstance(value, bool | str | None):
            raise words.fault(400, f"think must be a {_THINK}")
        return value

    def keep_alive(self) -> int | None:
        value = self.value("keep_alive")
        return None if value is None else durations.keep_alive(value)

    def has_images(self, value: Any, name: str) -> bool:
        images = self._of_type(value, list, name, "[]api.ImageData")
        for one in images or ():
            self._of_type(one, str, name, "api.ImageData")
        return bool(images)

    def tools(self) -> tuple[dict[str, Any], ...]:
        found = []
        for one in self._of_type(self.value("tools"), list, "tools", "api.Tools") or ():
            tool = _low(self._of_type(one, dict, "tools", "api.Tool") or {})
            function = self._of_type(tool.get("function"), dict, "tools.function", "api.ToolFunction")
            function = _low(function or {})
            for name in ("name", "description"):
                self._of_type(function.get(name), str, f"tools.function.{name}", "string")
            parameters = self._of_type(
                function.get("parameters"), dict, "tools.function.parameters", "api.ToolFunctionParameters"
            )
            function = {key: value for key, value in function.items() if value is not None}
            function |= {"name": function.get("name", "")} | ({"parameters": parameters} if parameters else {})
            found.append({"type": "function", "function": function})
        return tuple(found)

    def messages(self) -> tuple[dict[str, Any], ...]:
        found: list[dict[str, Any]] = []
        # Calls that no result was given for yet: their names and ids.
        waiting: list[tuple[str, str]] = []
        for number, one in enumerate(self.listed("messages", "[]api.Message", _OBJECT_OR_NONE, "api.Message") or ()):
            given = {key: _lenient(msgspec.json.decode, bytes(value)) for key, value in _low(one or {}).items()}
            texts = {}
            for name in ("role", "content", "thinking", "tool_name", "tool_call_id"):
                texts[name] = self._of_type(given.get(name), str, f"messages.{name}", "string") or ""
            message: dict[str, Any] = {"role": texts["role"].lower(), "content": texts["content"]}
            self.pictured |= self.has_images(given.get("images"), "messages.images")
            if texts["thinking"]:
                message["reasoning_content"] = texts["thinking"]
            calls = self.calls(given.get("tool_calls"), number)
            if calls:
                message["tool_calls"] = calls
                waiting += [(call["function"]["name"], call["id"]) for call in calls]
            if message["role"] == "tool":
                message |= _result_of(number, texts["tool_name"], texts["tool_call_id"], waiting)
            found.append(message)
        return tuple(found)

    def calls(self, value: Any, message: int) -> list[dict[str, Any]]:
        place = "messages.tool_calls"
        found: list[dict[str, Any]] = []
        for one in self._of_type(value, list, place, "[]api.ToolCall") or ():
            call = _low(self._of_type(one, dict, place, "api.ToolCall") or {})
            place_in = f"{place}.function"
            function = _low(self._of_type(call.get("function"), dict, place_in, "api.ToolCallFunction") or {})
            name = self._of_type(function.get("name"), str, f"{place_in}.name", "string") or ""
            arguments = self._of_type(
                function.get("arguments"), dict, f"{place_in}.arguments", "api.ToolCallFunctionArguments"
            )
            known = self._of_type(call.get("id"), str, f"{place}.id", "string") or call_id(f"{message}.{len(found)}")
            text = msgspec.json.encode(arguments or {}).decode()
            found.append({"id": known, "type": "function", "function": {"name": name, "arguments": text}})
        return found

    def _of_type(self, value: Any, kind: type, name: str, wanted: str) -> Any:
        """The value, or None for null."""
        if value is not None and type(value) is not kind:
            raise self.wrong(name, value, wanted)
        return value

    def wrong(self, name: str, value: Any, wanted: str) -> Refusal:
        shown = b"1" if isinstance(value, int | float) and not isinstance(value, bool) else msgspec.json.encode(value)
        return wrong_type(self.path, name, shown, wanted)


def _low(value: dict[str, Any]) -> dict[str, Any]:
    """Fields by names in lower case."""
    return {name.lower(): one for name, one in value.items()}


def _result_of(message: int, name: str, given: str, waiting: list[tuple[str, str]]) -> dict[str, str]:
    """Which call a tool's result answers: the one that it names, else the first that waits for one of this tool."""
    found = next((one for one in waiting if (one[1] == given if given else name in ("", one[0]))), None)
    if found is not None:
        waiting.remove(found)
    return {"tool_call_id": given or (found[1] if found else call_id(str(message))), **({"name": name} if name else {})}

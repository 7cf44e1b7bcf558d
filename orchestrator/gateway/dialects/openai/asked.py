"""What a request in OpenAI's API asks for. One set of values is taken, whichever engine answers.

Only kinds are checked here, in one pass over the body that reads no more than it must; what an engine cannot take is
for fitted.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from orchestrator.gateway import refusals
from orchestrator.gateway.dialects.base import Call
from orchestrator.gateway.refusals import Refusal

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
INPUT_TOKENS = "/v1/responses/input_tokens"
EMBEDDINGS = "/v1/embeddings"

# As many as OpenAI takes.
_MOST_CHOICES, _MOST_LOGPROBS = 128, 20
_NOTHING = msgspec.Raw()
_Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_Limit = int | float | None
_Number = float | None
_Temperature = Annotated[float, msgspec.Meta(le=2)] | None
_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)] | None
_Scale = Annotated[float, msgspec.Meta(gt=0)] | None
_Choices = Annotated[int, msgspec.Meta(ge=1, le=_MOST_CHOICES)] | None
_Tops = Annotated[int, msgspec.Meta(ge=0, le=_MOST_LOGPROBS)] | None
_Stop = str | Annotated[list[str], msgspec.Meta(max_length=4)] | None


class Message(msgspec.Struct):
    """One of a chat's."""

    role: str
    content: msgspec.Raw = _NOTHING


class Sampled(msgspec.Struct, kw_only=True):
    """What chats and completions have in common: how tokens are chosen, and how many."""

    model: str
    stream: bool | None = None
    stream_options: dict[str, msgspec.Raw] | None = None
    max_tokens: _Limit = None
    max_completion_tokens: _Limit = None
    n: _Choices = None
    seed: int | float | None = None
    stop: _Stop = None
    temperature: _Temperature = None
    top_p: _Number = None
    top_k: int | float | None = None
    min_p: _Number = None
    presence_penalty: _Penalty = None
    frequency_penalty: _Penalty = None
    repeat_penalty: _Scale = None
    repetition_penalty: _Scale = None
    logit_bias: dict[int, float] | None = None
    response_format: dict[str, msgspec.Raw] | None = None

    @property
    def limit(self) -> int | None:
        """Tokens that an answer may have; None where only the context bounds it."""
        said = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return None if said is None or said < 0 else int(said)

    @property
    def limits(self) -> dict[str, object]:
        """What is said of it."""
        said = {"max_tokens": self.max_tokens, "max_completion_tokens": self.max_completion_tokens}
        return {name: value for name, value in said.items() if value is not None}


class Chat(Sampled, kw_only=True):
    """See CHAT."""

    messages: list[Message] | None = None
    logprobs: bool | None = None
    top_logprobs: _Tops = None
    tools: list[dict[str, msgspec.Raw]] | None = None
    tool_choice: str | dict[str, msgspec.Raw] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: _Effort | None = None
    chat_template_kwargs: dict[str, msgspec.Raw] | None = None


class Completion(Sampled, kw_only=True):
    """See COMPLETIONS."""

    prompt: str | list[str | int | list[int]] | None = None
    logprobs: _Tops = None
    echo: bool | None = None
    suffix: str | None = None


class Responses(msgspec.Struct, kw_only=True):
    """See RESPONSES, and INPUT_TOKENS."""

    model: str
    input: str | list[dict[str, msgspec.Raw]] | None = None
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: _Limit = None
    temperature: _Number = None
    top_p: _Number = None
    tools: list[dict[str, msgspec.Raw]] | None = None
    tool_choice: str | dict[str, msgspec.Raw] | None = None
    previous_response_id: str | None = None
    conversation: msgspec.Raw = _NOTHING
    background: bool | None = None

    @property
    def limit(self) -> int | None:
        """See Sampled."""
        said = self.max_output_tokens
        return None if said is None or said < 0 else int(said)

    @property
    def limits(self) -> dict[str, object]:
        """See Sampled."""
        return {} if self.max_output_tokens is None else {"max_output_tokens": self.max_output_tokens}


class Embeddings(msgspec.Struct, kw_only=True):
    """See EMBEDDINGS."""

    model: str
    input: str | list[str | int | list[int]] | None = None


Question = Chat | Completion | Responses | Embeddings
_KINDS: Mapping[str, type[Question]] = {
    CHAT: Chat,
    COMPLETIONS: Completion,
    RESPONSES: Responses,
    INPUT_TOKENS: Responses,
    EMBEDDINGS: Embeddings,
}
_DECODERS: Mapping[str, msgspec.json.Decoder[Question]] = {
    path: msgspec.json.Decoder(kind) for path, kind in _KINDS.items()
}
_SAID = re.compile(r"(?P<fault>.*?)(?: - at (?:`key` in )?`\$\.?(?P<place>[^`]*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")


@dataclass(frozen=True)
class Asked(Call):
    """A question as it was read."""

    question: Question


def read(path: str, body: bytes) -> Asked:
    """What a body asks for; raises Refusal."""
    try:
        found = _DECODERS[path].decode(body)
    except msgspec.ValidationError as error:
        raise _wrong(str(error)) from error
    except RecursionError as error:
        raise refusals.invalid_body("The body is nested too deeply.") from error
    # UnicodeDecodeError is a ValueError.
    except (msgspec.DecodeError, ValueError) as error:
        raise refusals.invalid_body(f"The body is not valid JSON: {error}.") from error
    if not found.model:
        raise refusals.invalid_body("The field `model` is empty.", "model")
    return Asked(found.model, bool(getattr(found, "stream", None)), found)


def _wrong(said: str) -> Refusal:
    """400 for a field that is not what it has to be."""
    found = _SAID.fullmatch(said)
    fault, place = (found["fault"], found["place"] or "") if found is not None else (said, "")
    if missing := _MISSING.fullmatch(fault):
        place, fault = (f"{place}.{missing[1]}" if place else missing[1]), "it is missing"
    if place in ("", "model"):
        return refusals.invalid_body("The body must be a JSON object with a string as its field `model`.")
    return refusals.invalid_value(place, f"{fault[:1].lower()}{fault[1:]}")


def in_parts(content: msgspec.Raw) -> bool:
    """Whether a message's content is a list, and no text."""
    return bytes(memoryview(content)[:1]) == b"["


def is_nothing(content: msgspec.Raw) -> bool:
    """Whether it is null, or not there."""
    return bytes(memoryview(content)[:1]) in (b"", b"n")


def decoded(value: Any) -> Any:
    """Plain JSON of what was only looked through; raises Refusal."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except RecursionError as error:
        raise refusals.invalid_body("The body is nested too deeply.") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise refusals.invalid_body(f"The body is not valid JSON: {error}.") from error

"""What a request in Anthropic's API asks for, with messages and tools as OpenAI's API has them.

Texts of one message are put together without anything between, as Ollama does it, so that a prompt is the same on each
engine. What is for Anthropic's own machines alone (cache_control, metadata, service_tier, betas) is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from orchestrator.gateway.bodies import check_readable
from orchestrator.gateway.dialects.anthropic import words
from orchestrator.gateway.servers import Sampling

Json = dict[str, Any]
# A line that a coding agent puts before its system prompt: it differs with each request, so with it in the prompt
# nothing of a conversation would be found in an engine's cache. vLLM leaves it out of every chat.
_BILLING = "x-anthropic-billing-header"
_MOST_STOPS, _LONGEST_STOP = 64, 1024
_HIGHEST_TEMPERATURE = 2.0
# What engines have room for.
_MOST = 2**31 - 1
_NOTHING = (b"", b"null", b"[]")
_PLACE = re.compile(r"\[(\d+)\]")
_ONE_THAT_SEES = "no model that is served here sees them"


class _Source(msgspec.Struct):
    type: str = ""
    data: str | None = None
    content: str | list[_Block] | None = None


class _Block(msgspec.Struct):
    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw()
    tool_use_id: str | None = None
    is_error: bool | None = None
    content: str | list[_Block] | None = None
    source: _Source | None = None
    title: str | None = None
    context: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = msgspec.Raw()


class _Choice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct):
    type: str


class _Format(msgspec.Struct):
    type: str
    schema: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct):
    format: _Format | None = None


class _Body(msgspec.Struct):
    model: str
    messages: list[_Message]
    max_tokens: int | None = None
    stream: bool | None = None
    system: str | list[_Block] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    thinking: _Thinking | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    output_config: _Output | None = None
    output_format: _Format | None = None
    mcp_servers: msgspec.Raw = msgspec.Raw()


_BODY = msgspec.json.Decoder(_Body)


@dataclass(frozen=True)
class Asked:
    """A question in Anthropic's API. `must_call` has the model call one of the `tools`, `parallel` lets it call several
    at once. `thinks` is None where nothing is said. `stops` end an answer, which is JSON of the schema `form`, if there
    is one. `size` are the bytes of all."""

    model: str
    messages: tuple[Json, ...]
    streams: bool = False
    tools: tuple[Json, ...] = ()
    must_call: bool = False
    parallel: bool = True
    thinks: bool | None = None
    stops: tuple[str, ...] = ()
    sampling: Sampling = Sampling()  # noqa: RUF009
    form: msgspec.Raw | None = None
    size: int = 0

    @property
    def goes_on(self) -> bool:
        """Whether the last message is the beginning of the answer."""
        last = self.messages[-1]
        return last["role"] == "assistant" and "tool_calls" not in last

    @classmethod
    def read(cls, body: bytes, wanted: bool = True) -> Asked:
        """The whole of it; raises Refusal. `wanted`: an answer is, and not only its prompt's length."""
        check_readable(body)
        try:
            said = _BODY.decode(body)
            if wanted and said.max_tokens is None:
                raise words.invalid("max_tokens: a number of tokens is needed", "max_tokens")
            return _asked(said, len(body))
        except msgspec.ValidationError as error:
            raise words.invalid(_placed(str(error))) from error
        except RecursionError as error:
            raise words.invalid("The body is nested too deeply.") from error
        except (msgspec.DecodeError, ValueError) as error:
            raise words.invalid(f"The body is not valid JSON: {error}.") from error


def _placed(message: str) -> str:
    """What msgspec says is wrong, with the place first: `messages.0.role: ...`."""
    what, found, place = message.rpartition(" - at `$")
    if not found:
        return message
    named = _PLACE.sub(r".\1", place.rstrip("`")).lstrip(".")
    return f"{named or 'body'}: {what}"


def _asked(said: _Body, size: int) -> Asked:
    if bytes(said.mcp_servers) not in _NOTHING:
        raise words.invalid("mcp_servers: no server is asked from here; have the client ask it", "mcp_servers")
    tools, choice = _tools(said.tools or ()), said.tool_choice or _Choice("auto")
    tools, must_call = _chosen(tools, choice)
    return Asked(
        model=said.model,
        messages=tuple(_messages(said)),
        streams=bool(said.stream),
        tools=tools,
        must_call=must_call,
        parallel=not choice.disable_parallel_tool_use,
        thinks=_thinks(said.thinking),
        stops=_stops(said.stop_sequences or ()),
        sampling=_sampling(said),
        form=_form(said),
        size=size,
    )


def _messages(said: _Body) -> Iterable[Json]:
    if not said.messages:
        raise words.invalid("messages: at least one message is required", "messages")
    if system := _system(said.system):
        yield {"role": "system", "content": system}
    for number, message in enumerate(said.messages):
        place = f"messages.{number}"
        role, content = message.role, message.content
        if role not in ("user", "assistant", "system"):
            raise words.invalid(f"{place}.role: `user` or `assistant` is needed, not `{role[:40]}`", "messages")
        if isinstance(content, str):
            yield {"role": role, "content": content}
        elif role == "user":
            yield from _of_user(content, place)
        elif role == "assistant":
            yield _of_assistant(content, place)
        else:
            yield {"role": role, "content": _text(content, place)}


def _system(given: str | list[_Block] | None) -> str:
    blocks = [_Block("text", given)] if isinstance(given, str) else given or ()
    texts = [_said(one, f"system.{number}") for number, one in enumerate(blocks)]
    return "".join(text.partition("\n")[2] if text.startswith(_BILLING) else text for text in texts)


def _of_user(blocks: list[_Block], place: str) -> Iterable[Json]:
    """What tools said, and then what the user does: templates want a result right after its call."""
    said: list[_Block] = []
    for number, block in enumerate(blocks):
        if block.type != "tool_result":
            said.append(block)
            continue
        at = f"{place}.content.{number}"
        content = block.content or ""
        text = content if isinstance(content, str) else _text(content, f"{at}.content")
        # Templates have no place for whether it failed, so where nothing else says it, this does.
        text = text or ("error" if block.is_error else "")
        yield {"role": "tool", "tool_call_id": _needed(block.tool_use_id, f"{at}.tool_use_id"), "content": text}
    if said or not blocks:
        yield {"role": "user", "content": _text(said, place)}


def _of_assistant(blocks: list[_Block], place: str) -> Json:
    said: list[_Block] = []
    calls: list[Json] = []
    thought = ""
    for number, block in enumerate(blocks):
        at = f"{place}.content.{number}"
        if block.type == "thinking":
            thought += block.thinking or ""
        elif block.type == "tool_use":
            calls.append(_call(block, at))
        # What nobody but Anthropic can read.
        elif block.type != "redacted_thinking":
            said.append(block)
    message: Json = {"role": "assistant", "content": _text(said, place)}
    if thought:
        # llama.cpp reads the one, vLLM the other.
        message |= {"reasoning_content": thought, "reasoning": thought}
    return message | ({"tool_calls": calls} if calls else {})


def _call(block: _Block, place: str) -> Json:
    given = bytes(block.input) or b"{}"
    if not given.startswith(b"{"):
        raise words.invalid(f"{place}.input: an object is needed", "messages")
    function = {
        "name": _needed(block.name, f"{place}.name"),
        "arguments": msgspec.json.format(given, indent=-1).decode(),
    }
    return {"id": _needed(block.id, f"{place}.id"), "type": "function", "function": function}


def _text(blocks: list[_Block], place: str) -> str:
    """What texts, and documents that are texts, say."""
    return "".join(_said(block, f"{place}.content.{number}") for number, block in enumerate(blocks))


def _said(block: _Block, place: str) -> str:
    if block.type == "text":
        return _needed(block.text, f"{place}.text", empty=True)
    source = block.source or _Source()
    if block.type == "document" and source.type in ("text", "content"):
        content = source.data if source.type == "text" else source.content
        text = _text(content, f"{place}.source") if isinstance(content, list) else content or ""
        return "\n".join(filter(None, (block.title, block.context, text)))
    if block.type == "image":
        raise words.invalid(f"{place}: images are not supported, because {_ONE_THAT_SEES}", "messages")
    if block.type == "document":
        raise words.invalid(
            f"{place}: documents are supported as plain text only, because {_ONE_THAT_SEES}", "messages"
        )
    raise words.invalid(f"{place}.type: `{block.type[:60]}` is not supported here", "messages")


def _needed(value: str | None, place: str, empty: bool = False) -> str:
    if value is None or not (value or empty):
        raise words.invalid(f"{place}: a string is needed", "messages")
    return value


def _tools(given: Iterable[_Tool]) -> tuple[Json, ...]:
    found: list[Json] = []
    for number, tool in enumerate(given):
        place = f"tools.{number}"
        if tool.type not in (None, "custom"):
            raise words.invalid(
                f"{place}.type: `{tool.type[:60]}` is a tool of Anthropic's own; here a tool has an `input_schema`",
                "tools",
            )
        if not bytes(tool.input_schema).startswith(b"{"):
            raise words.invalid(f"{place}.input_schema: a JSON schema is needed", "tools")
        if not tool.name:
            raise words.invalid(f"{place}.name: a name is needed", "tools")
        about = {"description": tool.description} if tool.description else {}
        found.append({"type": "function", "function": {"name": tool.name, **about, "parameters": tool.input_schema}})
    return tuple(found)


def _chosen(tools: tuple[Json, ...], choice: _Choice) -> tuple[tuple[Json, ...], bool]:
    """The tools that the model is told of, and whether it has to call one.

    llama.cpp takes a tool that is asked for by its name for any of them, and models call tools that they are told of
    whatever is said besides: so they are told of no other.
    """
    if choice.type == "none":
        return (), False
    if choice.type == "auto":
        return tools, False
    if choice.type not in ("any", "tool"):
        raise words.invalid(
            f"tool_choice.type: `auto`, `any`, `tool` or `none` is needed, not `{choice.type[:40]}`", "tool_choice"
        )
    if choice.type == "tool":
        tools = tuple(one for one in tools if one["function"]["name"] == choice.name)
    if not tools:
        named = f"no tool is called `{choice.name}`" if choice.type == "tool" else "there are no `tools`"
        raise words.invalid(f"tool_choice: {named}", "tool_choice")
    return tools, True


def _thinks(given: _Thinking | None) -> bool | None:
    if given is None:
        return None
    if given.type not in ("enabled", "disabled", "adaptive", "between_tools"):
        raise words.invalid(
            f"thinking.type: `enabled`, `disabled` or `adaptive` is needed, not `{given.type[:40]}`", "thinking"
        )
    return given.type != "disabled"


def _stops(given: Iterable[str]) -> tuple[str, ...]:
    stops = tuple(dict.fromkeys(given))
    if len(stops) > _MOST_STOPS or not all(0 < len(one) <= _LONGEST_STOP for one in stops):
        raise words.invalid(
            f"stop_sequences: at most {_MOST_STOPS}, each of 1 to {_LONGEST_STOP} characters", "stop_sequences"
        )
    return stops


def _sampling(said: _Body) -> Sampling:
    if said.max_tokens is not None and said.max_tokens < 1:
        raise words.invalid("max_tokens: it must be at least 1", "max_tokens")
    for name, value, most in (("temperature", said.temperature, _HIGHEST_TEMPERATURE), ("top_p", said.top_p, 1.0)):
        if value is not None and not 0 <= value <= most:
            raise words.invalid(f"{name}: it must be from 0 to {most:g}", name)
    if said.top_k is not None and said.top_k < 0:
        raise words.invalid("top_k: it must be at least 0", "top_k")
    tokens, top_k = (None if value is None else min(value, _MOST) for value in (said.max_tokens, said.top_k))
    return Sampling(max_tokens=tokens, top_k=top_k, temperature=said.temperature, top_p=said.top_p)


def _form(said: _Body) -> msgspec.Raw | None:
    given = (said.output_config.format if said.output_config is not None else None) or said.output_format
    if given is None:
        return None
    if given.type != "json_schema" or not bytes(given.schema).startswith(b"{"):
        raise words.invalid("output_config.format: `json_schema` with a `schema` is needed", "output_config")
    return given.schema

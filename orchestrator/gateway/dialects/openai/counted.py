"""How many tokens a question to /v1/responses has, by the served model's own template and tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from orchestrator.gateway import refusals
from orchestrator.gateway.dialects.base import Engine, Said
from orchestrator.gateway.dialects.openai.asked import Responses, decoded
from orchestrator.gateway.servers import Json, server_of


async def told(asked: Responses, engine: Engine) -> Said:
    """`{"object": "response.input_tokens", "input_tokens": N}`; raises Refusal."""
    server = server_of(engine.route)
    if server is None:
        raise refusals.not_supported("model", "its engine does not count tokens")
    chat: Json = {"messages": list(_messages(asked))}
    if asked.tools:
        functions = [{key: value for key, value in tool.items() if key != "type"} for tool in decoded(asked.tools)]
        chat["tools"] = [{"type": "function", "function": function} for function in functions]
    count = len(await server.prompt(engine, chat))
    return Said(orjson.dumps({"object": "response.input_tokens", "input_tokens": count}))


def _messages(asked: Responses) -> Iterator[Json]:
    """What was said, as chats have it."""
    if asked.instructions:
        yield {"role": "system", "content": asked.instructions}
    if isinstance(asked.input, str):
        yield {"role": "user", "content": asked.input}
        return
    for place, item in enumerate(decoded(asked.input)):
        kind = item.get("type", "message")
        if kind == "message":
            role = "system" if item.get("role") == "developer" else item.get("role", "user")
            yield {"role": role, "content": _text(item.get("content"))}
        elif kind == "function_call":
            function = {"name": item.get("name", ""), "arguments": item.get("arguments", "{}")}
            call = {"id": item.get("call_id", ""), "type": "function", "function": function}
            yield {"role": "assistant", "content": "", "tool_calls": [call]}
        elif kind == "function_call_output":
            yield {"role": "tool", "tool_call_id": item.get("call_id", ""), "content": _text(item.get("output"))}
        elif kind != "reasoning":
            raise refusals.not_supported(f"input[{place}].type", "what is said has to be a message, or a call")


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""

"""langchain-openai."""

from __future__ import annotations

from functools import cache
from typing import Any

from asking import Stream, answer
from langchain_core.messages import ToolMessage
from langchain_openai import ChatOpenAI
from questions import TOKENS, TOOLS, Weather


@cache
def asked(url: str, model: str) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        model=model,
        temperature=0,
        max_tokens=TOKENS,
        max_retries=0,
        stream_usage=True,
    )


def told(message: Any) -> Any:
    usage = message.usage_metadata
    return {
        "model": message.response_metadata["model_name"],
        "content": message.content,
        "finish": message.response_metadata["finish_reason"],
        "tokens": [usage["input_tokens"], usage["output_tokens"]] if usage else None,
    }


def streamed_whole(parts: Any) -> Stream:
    whole: Any = None
    for part in parts:
        if part.content:
            yield part.content
        whole = part if whole is None else whole + part
    return whole


def stream(url: str, model: str, question: str) -> Stream:
    return told((yield from streamed_whole(asked(url, model).stream(question))))


def tools(url: str, model: str, question: str, result: str, streamed: bool) -> Any:
    bound = asked(url, model).bind_tools(TOOLS)

    def ask(messages: list[Any]) -> Any:
        if not streamed:
            return bound.invoke(messages)
        first, *rest = bound.stream(messages)
        return sum(rest, first)

    first = ask([("user", question)])
    results = [ToolMessage(result, tool_call_id=call["id"]) for call in first.tool_calls]
    calls = [[call["name"], call["args"]] for call in first.tool_calls]
    return {"calls": calls, "then": ask([("user", question), first, *results]).content}


answer(
    {
        "chat": lambda url, model, question: told(asked(url, model).invoke(question)),
        "schema": lambda url, model, question: (
            asked(url, model).with_structured_output(Weather).invoke(question).model_dump()
        ),
        "tools": tools,
    },
    {"stream": stream},
)

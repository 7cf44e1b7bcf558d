"""LiteLLM's SDK, as `ollama_chat`."""

from __future__ import annotations

from typing import Any

import litellm
from asking import Stream, answer
from questions import SCHEMA, TOKENS, TOOLS, said

litellm.suppress_debug_info = True


def completion(url: str, model: str, messages: Any, **more: Any) -> Any:
    return litellm.completion(
        model=f"ollama_chat/{model}",
        api_base=url,
        messages=messages,
        temperature=0,
        seed=1,
        max_tokens=TOKENS,
        num_retries=0,
        **more,
    )


def plain(answered: Any) -> Any:
    return answered.model_dump(mode="json", exclude_none=True)


def chat(url: str, model: str, question: str, headers: dict[str, str] | None = None) -> Any:
    return plain(completion(url, model, said(question), extra_headers=headers))


def stream(url: str, model: str, question: str) -> Stream:
    last: Any = None
    for part in completion(url, model, said(question), stream=True):
        if part.choices[0].delta.content:
            yield part.choices[0].delta.content
        last = part
    return plain(last)


def schema(url: str, model: str, question: str) -> Any:
    wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
    return completion(url, model, said(question), response_format=wanted).choices[0].message.content


def tools(url: str, model: str, question: str, result: str) -> Any:
    messages: list[Any] = [*said(question)]
    first = completion(url, model, messages, tools=TOOLS).choices[0].message
    messages.append(plain(first))
    calls = []
    for call in first.tool_calls or ():
        calls.append({"function": {"name": call.function.name, "arguments": call.function.arguments}})
        messages.append({"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": result})
    then = completion(url, model, messages, tools=TOOLS).choices[0].message.content
    return {"calls": calls, "then": then}


def thinking(url: str, model: str, question: str, think: Any = True) -> Any:
    effort = {True: "low", False: "none"}.get(think, think)
    message = completion(url, model, said(question), reasoning_effort=effort).choices[0].message
    return {"thinking": getattr(message, "reasoning_content", None) or "", "content": message.content}


answer(
    {
        "chat": chat,
        "schema": schema,
        "tools": tools,
        "thinking": thinking,
        "embed": lambda url, model, text: plain(litellm.embedding(model=f"ollama/{model}", input=[text], api_base=url)),
        "bad_option": lambda url, model, question: plain(completion(url, model, said(question), num_ctx="many")),
    },
    {"stream": stream},
)

"""The official Python client of Ollama."""

from __future__ import annotations

from typing import Any

import ollama
from asking import Stream, answer
from questions import GREEDY, SCHEMA, TOOLS, said


def client(url: str, headers: dict[str, str] | None = None) -> ollama.Client:
    return ollama.Client(host=url, headers=headers)


def plain(answered: Any) -> Any:
    return answered.model_dump(mode="json", exclude_none=True)


def chat(url: str, model: str, question: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
    return plain(client(url, headers).chat(model, said(question), options=GREEDY, **more))


def stream(url: str, model: str, question: str, **more: Any) -> Stream:
    last: Any = None
    for part in client(url).chat(model, said(question), options=GREEDY, stream=True, **more):
        if part.message.content:
            yield part.message.content
        last = part
    return plain(last)


def generate(url: str, model: str, prompt: str, **more: Any) -> Any:
    return plain(client(url).generate(model, prompt, options=GREEDY, **more))


def generate_stream(url: str, model: str, prompt: str) -> Stream:
    last: Any = None
    for part in client(url).generate(model, prompt, options=GREEDY, stream=True):
        if part.response:
            yield part.response
        last = part
    return plain(last)


def schema(url: str, model: str, question: str) -> Any:
    return chat(url, model, question, format=SCHEMA)["message"]["content"]


def tools(url: str, model: str, question: str, result: str) -> Any:
    """What it calls, and what it says to the result."""
    asked = client(url)
    messages: list[Any] = [*said(question)]
    first = asked.chat(model, messages, options=GREEDY, tools=TOOLS)
    calls = [plain(call) for call in first.message.tool_calls or ()]
    messages.append(first.message)
    messages += [
        {"role": "tool", "content": result, "tool_name": call.function.name} for call in first.message.tool_calls or ()
    ]
    return {"calls": calls, "then": asked.chat(model, messages, options=GREEDY, tools=TOOLS).message.content}


def tools_stream(url: str, model: str, question: str) -> Stream:
    calls: list[Any] = []
    for part in client(url).chat(model, said(question), options=GREEDY, tools=TOOLS, stream=True):
        if part.message.content:
            yield part.message.content
        calls += [plain(call) for call in part.message.tool_calls or ()]
    return calls


def thinking(url: str, model: str, question: str, think: Any = True) -> Any:
    message = chat(url, model, question, think=think)["message"]
    return {"thinking": message.get("thinking", ""), "content": message["content"]}


def thinking_stream(url: str, model: str, question: str, think: Any = True) -> Stream:
    thought = ""
    for part in client(url).chat(model, said(question), options=GREEDY, think=think, stream=True):
        thought += part.message.thinking or ""
        if part.message.content:
            yield part.message.content
    return thought


def embed(url: str, model: str, text: str) -> Any:
    return plain(client(url).embed(model, text))


def bad_option(url: str, model: str, question: str) -> Any:
    return plain(client(url).chat(model, said(question), options={"num_ctx": "many"}))


answer(
    {
        "chat": chat,
        "generate": generate,
        "schema": schema,
        "tools": tools,
        "thinking": thinking,
        "embed": embed,
        "bad_option": bad_option,
        "list": lambda url: plain(client(url).list()),
        "ps": lambda url: plain(client(url).ps()),
        "show": lambda url, model: plain(client(url).show(model)),
        "pull": lambda url, model: [plain(part) for part in client(url).pull(model, stream=True)],
        "delete": lambda url, model: plain(client(url).delete(model)),
    },
    {
        "stream": stream,
        "generate_stream": generate_stream,
        "tools_stream": tools_stream,
        "thinking_stream": thinking_stream,
    },
)

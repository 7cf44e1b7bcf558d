"""langchain-ollama."""

from __future__ import annotations

from typing import Any

from asking import Stream, answer
from langchain_core.messages import ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from questions import GREEDY, SCHEMA, TOOLS


def asked(url: str, model: str, **more: Any) -> ChatOllama:
    return ChatOllama(**{"base_url": url, "model": model, **GREEDY, **more})


def told(message: Any) -> Any:
    """Of a message what comes from the engine."""
    return {
        "content": message.content,
        "response_metadata": message.response_metadata,
        "usage_metadata": message.usage_metadata,
        "tool_calls": message.tool_calls,
    }


def chat(url: str, model: str, question: str, headers: dict[str, str] | None = None) -> Any:
    return told(asked(url, model, client_kwargs={"headers": headers or {}}).invoke(question))


def stream(url: str, model: str, question: str) -> Stream:
    whole: Any = None
    for part in asked(url, model).stream(question):
        if part.content:
            yield part.content
        whole = part if whole is None else whole + part
    return told(whole)


def generate(url: str, model: str, prompt: str) -> Any:
    return {"response": OllamaLLM(base_url=url, model=model, **GREEDY).invoke(prompt)}


def tools(url: str, model: str, question: str, result: str) -> Any:
    bound = asked(url, model).bind_tools(TOOLS)
    first = bound.invoke(question)
    results = [ToolMessage(result, tool_call_id=call["id"]) for call in first.tool_calls]
    calls = [{"function": {"name": call["name"], "arguments": call["args"]}} for call in first.tool_calls]
    return {"calls": calls, "then": bound.invoke([("user", question), first, *results]).content}


def thinking(url: str, model: str, question: str, think: Any = True) -> Any:
    message = asked(url, model, reasoning=think).invoke(question)
    return {"thinking": message.additional_kwargs.get("reasoning_content", ""), "content": message.content}


answer(
    {
        "chat": chat,
        "generate": generate,
        "schema": lambda url, model, question: asked(url, model, format=SCHEMA).invoke(question).content,
        "tools": tools,
        "thinking": thinking,
        "embed": lambda url, model, text: OllamaEmbeddings(base_url=url, model=model).embed_query(text),
        "validated": lambda url, model: asked(url, model, validate_model_on_init=True).model,
    },
    {"stream": stream},
)

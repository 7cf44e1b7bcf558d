"""What an engine is asked for a question in Ollama's API, and what it need not be asked for."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_engine import Counting, counting

from orchestrator.core.routes import LLAMA_SERVER, VLLM, Backend
from orchestrator.gateway.dialects.base import Question, Said
from orchestrator.gateway.dialects.ollama.asked import Asked
from orchestrator.gateway.dialects.ollama.translated import translated
from orchestrator.gateway.refusals import Refusal

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]

BOTH = pytest.mark.parametrize("speaks", [LLAMA_SERVER, VLLM], ids=["llama.cpp's", "vLLM's"])


def answer(engine: Counting, path: str, **body: object) -> Question | Said:
    asked = Asked.read(path, json.dumps({"model": "tiny", **body}).encode())
    return asyncio.run(translated(asked, path, engine))


def question(engine: Counting, path: str = "/api/chat", **body: object) -> tuple[str, dict[str, Any]]:
    put = answer(engine, path, **body)
    assert isinstance(put, Question)
    return put.path, json.loads(put.body)


def refused(engine: Counting, path: str = "/api/chat", **body: object) -> tuple[int, str]:
    with pytest.raises(Refusal) as refusal:
        answer(engine, path, **body)
    return refusal.value.status, refusal.value.message


@BOTH
def test_a_chat_is_asked_at_once(speaks: str) -> None:
    engine = counting(speaks)
    path, body = question(engine, messages=HELLO, options={"temperature": 0, "num_predict": 9, "stop": ["x"]})
    wanted = {"model": "tiny", "messages": HELLO, "temperature": 0.0, "max_tokens": 9, "stop": ["x"], "stream": True}
    assert (path, body) == (CHAT, {**wanted, "stream_options": {"include_usage": True}})
    assert engine.asked == []


def test_a_route_s_own_fields_are_added() -> None:
    engine = counting(LLAMA_SERVER)
    patch = {"lora": [{"id": 0, "scale": 1.0}]}
    engine.route = replace(engine.route, upstream="base", patch=patch, defaults={"top_k": 3, "temperature": 1})
    _, body = question(engine, messages=HELLO, stream=False, options={"temperature": 0.5})
    assert body == {"model": "base", "messages": HELLO, "temperature": 0.5, "top_k": 3, **patch}


def test_an_engine_that_is_not_known_is_not_asked() -> None:
    assert refused(counting("other"), messages=HELLO)[0] == 501


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/api/chat", {}, {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"}),
        ("/api/chat", {"messages": [], "keep_alive": "5m"}, {"done_reason": "load"}),
        ("/api/chat", {"messages": [], "keep_alive": 0}, {"done_reason": "unload"}),
        ("/api/generate", {"keep_alive": "0s"}, {"response": "", "done": True, "done_reason": "unload"}),
        ("/api/generate", {"prompt": ""}, {"response": "", "done": True, "done_reason": "load"}),
        ("/api/embed", {}, {"model": "tiny", "embeddings": []}),
        ("/api/embed", {"input": []}, {"model": "tiny", "embeddings": []}),
        ("/api/embeddings", {"prompt": ""}, {"embedding": []}),
    ],
)
def test_what_asks_for_nothing_is_answered_at_once(path: str, body: dict[str, object], said: dict[str, object]) -> None:
    engine = counting(VLLM)
    found = answer(engine, path, **body)
    assert isinstance(found, Said)
    assert (found.status, found.content_type) == (200, "application/json; charset=utf-8")
    assert said.items() <= json.loads(found.body).items()
    assert engine.asked == []


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/chat", {"messages": HELLO, "think": True}, 400, '"tiny" does not support thinking'),
        ("/api/generate", {"prompt": "x", "think": "low"}, 400, '"tiny" does not support thinking'),
        ("/api/chat", {"tools": TOOLS}, 400, "registry.ollama.ai/library/tiny:latest does not support tools"),
        ("/api/generate", {"suffix": "x"}, 400, "registry.ollama.ai/library/tiny:latest does not support insert"),
        ("/api/chat", {"options": {"num_ctx": "x"}}, 500, 'option "num_ctx" must be of type integer'),
        (
            "/api/generate",
            {"prompt": "x", "raw": True, "context": [1]},
            400,
            "raw mode does not support template, system, or context",
        ),
        (
            "/api/chat",
            {"messages": HELLO, "format": "xml"},
            500,
            'invalid format: "\\"xml\\""; expected "json" or a valid JSON Schema object',
        ),
        (
            "/api/generate",
            {"prompt": "x", "format": [1]},
            500,
            'invalid format: "[1]"; expected "json" or a valid JSON Schema object',
        ),
        ("/api/generate", {"prompt": "x", "template": "{{ .Nothing }}"}, 400, "template: there is no .Nothing"),
        ("/api/generate", {"prompt": "x", "context": [-1]}, 400, "context: there is no such token"),
        ("/api/embed", {"input": 5}, 400, "invalid input type"),
    ],
)
def test_what_cannot_be_done_is_told(path: str, body: dict[str, object], status: int, text: str) -> None:
    assert refused(counting(LLAMA_SERVER), path, **body) == (status, text)


def test_images_are_refused_as_by_llama_cpp() -> None:
    message = "Multimodal data provided, but model does not support multimodal requests."
    told = {"error": {"code": 400, "message": message, "type": "invalid_request_error"}}
    for path, body in (
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGVsbG8="]}]}),
        ("/api/generate", {"prompt": "x", "images": ["aGVsbG8="]}),
    ):
        status, text = refused(counting(VLLM), path, **body)
        assert (status, json.loads(text)) == (400, told)


def test_a_model_without_a_template_is_asked_for_completions_only() -> None:
    engine = counting(LLAMA_SERVER)
    engine.route = replace(engine.route, chats=False)
    assert refused(engine, "/api/generate", prompt="x", system="s")[0] == 400
    assert question(engine, "/api/generate", prompt="Once", stream=False) == (
        COMPLETION,
        {"model": "tiny", "prompt": "Once"},
    )


def test_forms() -> None:
    schema = {"type": "object", "properties": {"n": {"const": 2**64 + 1}}}
    named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    for speaks in (LLAMA_SERVER, VLLM):
        _, body = question(counting(speaks), messages=HELLO, format=schema)
        assert body["response_format"] == named
        _, body = question(counting(speaks), messages=HELLO, format="json")
        assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
        assert "response_format" not in question(counting(speaks), messages=HELLO, format="")[1]
    _, body = question(counting(LLAMA_SERVER), "/api/generate", prompt="x", raw=True, format=schema)
    assert body["json_schema"] == schema
    _, body = question(counting(VLLM), "/api/generate", prompt="x", raw=True, format=schema)
    assert body["response_format"] == named


@pytest.mark.parametrize(
    ("think", "told"),
    [
        (None, None),
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("low", {"enable_thinking": True, "reasoning_effort": "low"}),
        ("max", {"enable_thinking": True, "reasoning_effort": "high"}),
    ],
)
def test_thinking_is_told_to_the_template(think: object, told: object) -> None:
    for speaks in (LLAMA_SERVER, VLLM):
        _, body = question(counting(speaks, thinks=True), messages=HELLO, think=think)
        assert body.get("chat_template_kwargs") == told


def test_tools_on_an_engine_without_a_parser_are_told_to_the_model_all_the_same() -> None:
    engine = counting(VLLM, takes_tools=True)
    engine.route = engine.route.led_to(Backend("one-of-its-own", "http://127.0.0.1:2"))
    for _ in range(2):
        _, body = question(engine, messages=HELLO, tools=TOOLS)
        assert (body["tools"], body["tool_choice"]) == (TOOLS, "none")
    # Whether it has one it is asked once.
    assert [path for path, _ in engine.asked] == [CHAT]
    _, body = question(counting(LLAMA_SERVER, takes_tools=True), messages=HELLO, tools=TOOLS)
    assert (body["tools"], body.get("tool_choice")) == (TOOLS, None)


def test_logprobs() -> None:
    engine = counting(LLAMA_SERVER)
    _, body = question(engine, messages=HELLO, logprobs=True, top_logprobs=3)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)
    _, body = question(engine, "/api/generate", prompt="x", raw=True, logprobs=True)
    assert body["logprobs"] == 1


def test_a_chat_that_the_model_began_is_gone_on_with() -> None:
    begun = [*HELLO, {"role": "assistant", "content": "Hel"}]
    _, body = question(counting(VLLM), messages=begun)
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in question(counting(LLAMA_SERVER), messages=begun)[1]


def test_prompts_of_generate() -> None:
    engine = counting(LLAMA_SERVER)
    path, body = question(engine, "/api/generate", prompt="P", system="S")
    assert (path, body["messages"]) == (CHAT, [{"role": "system", "content": "S"}, {"role": "user", "content": "P"}])
    path, body = question(
        engine, "/api/generate", prompt="P", system="S", template="<{{ .System }}|{{ .Prompt }}>{{ .Response }}!"
    )
    assert (path, body["prompt"]) == (COMPLETION, "<S|P>")
    path, body = question(engine, "/api/generate", prompt="P", raw=True)
    assert (path, body["prompt"]) == (COMPLETION, "P")
    path, body = question(engine, "/api/generate", prompt="P", context=[7, 8])
    assert (path, body["prompt"]) == (COMPLETION, [7, 8, *map(ord, "[P]")])


@BOTH
def test_old_messages_are_left_out(speaks: str) -> None:
    system, last = {"role": "system", "content": "s" * 20}, {"role": "user", "content": "now"}
    old = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"{n:04d}" * 10} for n in range(100)]
    engine = counting(speaks, context=400)
    _, body = question(engine, messages=[system, *old, last], options={"num_predict": 7})
    # 22 of 399 are the system's and 5 the last one's: 8 of 42 fit beside them.
    assert body["messages"] == [system, *old[-8:], last]
    # Halving finds it, instead of one try for each message.
    assert len(engine.asked) <= 2 * 9
    _, body = question(engine, messages=[system, *old, last], options={"num_ctx": 120})
    assert body["messages"] == [system, *old[-2:], last]


def test_what_a_tool_said_stays_with_its_call() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    results = [{"role": "tool", "tool_name": "f", "content": "r" * 20}] * 3
    engine = counting(LLAMA_SERVER, context=100, takes_tools=True)
    _, body = question(engine, messages=[{"role": "user", "content": "u" * 60}, call, *results])
    assert [one["role"] for one in body["messages"]] == ["assistant", "tool", "tool", "tool"]


@BOTH
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_message_that_is_too_long_loses_its_middle(speaks: str, path: str) -> None:
    text = "".join(map(chr, range(1000, 3000)))
    asking: dict[str, object] = (
        {"messages": [{"role": "user", "content": text}]} if path == "/api/chat" else {"prompt": text}
    )
    put, body = question(counting(speaks), path, **asking)
    kept = [*map(ord, f"[{text[:3]}{text[-253:]}]")]
    assert (put, body["prompt"], len(kept)) == (COMPLETION, kept, 258)
    _, body = question(counting(speaks), path, **asking, options={"num_keep": 10, "num_ctx": 100})
    assert body["prompt"] == [*map(ord, f"[{text[:9]}{text[-44:]}]")]
    status, told = refused(counting(speaks), path, **asking, truncate=False)
    message = "request (2002 tokens) exceeds the available context size (512 tokens), try increasing it"
    figures = {"n_prompt_tokens": 2002, "n_ctx": 512}
    error = {"code": 400, "message": message, "type": "exceed_context_size_error", **figures}
    assert (status, json.loads(told)) == (400, {"error": error})


def test_an_answer_s_limit_leaves_room_for_the_prompt() -> None:
    engine = counting(VLLM)
    assert question(engine, messages=HELLO, options={"num_predict": 10_000})[1]["max_tokens"] == 512 - 7
    assert question(engine, messages=HELLO, options={"num_predict": 10})[1]["max_tokens"] == 10
    assert "max_tokens" not in question(engine, messages=HELLO)[1]
    # A completion that says nothing would get 16 tokens.
    assert question(engine, "/api/generate", prompt="Hello", raw=True)[1]["max_tokens"] == 512 - 5
    assert question(counting(LLAMA_SERVER), messages=HELLO, options={"num_predict": 10_000})[1]["max_tokens"] == 10_000


@given(st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), min_size=1, max_size=40), st.integers(4, 300))
@settings(max_examples=200, deadline=None)
def test_what_is_asked_always_fits(roles: list[str], room: int) -> None:
    messages = [{"role": role, "content": str(n) * (1 + n % 7)} for n, role in enumerate(roles)]
    path, body = question(counting(LLAMA_SERVER), messages=messages, options={"num_ctx": room})
    if path == CHAT:
        contents = [one["content"] for one in body["messages"]]
        assert sum(len(content) + 2 for content in contents) <= room
        assert contents[-1] == messages[-1]["content"]
        assert [one for one in body["messages"] if one["role"] == "system"] == [
            one for one in messages if one["role"] == "system"
        ]
    else:
        assert len(body["prompt"]) <= room

"""What a question in Anthropic's API becomes for an engine that knows OpenAI's, and what is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai_engine import Counting, counting

from orchestrator.core.routes import LLAMA_SERVER, VLLM
from orchestrator.gateway.bodies import LARGEST_READ, MOST_NAMES, MOST_PARTS_READ
from orchestrator.gateway.dialects.anthropic import COUNT_TOKENS, MESSAGES, Anthropic
from orchestrator.gateway.dialects.base import Question, Said
from orchestrator.gateway.refusals import Refusal

HI = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"name": name, "description": "d", "input_schema": SCHEMA} for name in ("get_weather", "get_time")]
ABLE = {"context": 4096, "takes_tools": True, "thinks": True}
each = pytest.mark.parametrize("server", [LLAMA_SERVER, VLLM])


def ask(engine: Counting, path: str = MESSAGES, **body: Any) -> Question | Said:
    dialect = Anthropic()
    sent = json.dumps({"model": "tiny", "messages": HI, **body}).encode()
    return asyncio.run(dialect.question(dialect.parse(path, sent), path, sent, engine))


def chat(server: str = LLAMA_SERVER, **body: Any) -> dict[str, Any]:
    """The chat that an engine is asked."""
    question = ask(counting(server, **ABLE), **{"max_tokens": 9, **body})
    assert isinstance(question, Question)
    assert question.path == "/v1/chat/completions"
    asked: dict[str, Any] = json.loads(question.body)
    assert asked.pop("model") == "tiny"
    return asked


def refusal(path: str = MESSAGES, **body: Any) -> str:
    with pytest.raises(Refusal) as caught:
        ask(counting(LLAMA_SERVER, **ABLE), path, **{"max_tokens": 9, **body})
    assert caught.value.status == 400
    return caught.value.message


@each
def test_a_plain_question(server: str) -> None:
    assert chat(server) == {"messages": HI, "max_tokens": 9}
    more = chat(
        server, stream=True, temperature=0.5, top_p=0.9, top_k=7, metadata={"user_id": "u"}, service_tier="auto"
    )
    assert more["messages"] == HI
    assert (more["temperature"], more["top_p"], more["top_k"], more["stream"]) == (0.5, 0.9, 7, True)
    assert more["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_system() -> None:
    for system in (
        "Be kind.",
        [{"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}}, text("kind.")],
    ):
        assert chat(system=system)["messages"] == [{"role": "system", "content": "Be kind."}, *HI]
    # It differs with each request, and vLLM leaves it out of every chat.
    billed = [text("x-anthropic-billing-header: cc_version=1; cch=5f3a;"), text("Be kind.")]
    assert chat(system=billed)["messages"][0]["content"] == "Be kind."
    assert chat(system="")["messages"] == HI
    assert chat(system=[])["messages"] == HI


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def test_a_conversation_with_tools() -> None:
    used = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris", "n": [1, 2.5]}}
    other = {"type": "tool_use", "id": "toolu_2", "name": "get_time", "input": {}}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": [text("12"), text(":00")], "is_error": False},
        text("And now?"),
    ]
    history = [
        *HI,
        {
            "role": "assistant",
            "content": [thought, {"type": "redacted_thinking", "data": "x"}, text("See: "), used, other],
        },
        {"role": "user", "content": results},
    ]
    asked = chat(messages=history, tools=TOOLS, thinking={"type": "enabled", "budget_tokens": 1024})
    calls = [
        {
            "id": "toolu_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city":"Paris","n":[1,2.5]}'},
        },
        {"id": "toolu_2", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
    ]
    assert asked["messages"] == [
        *HI,
        {"role": "assistant", "content": "See: ", "reasoning_content": "Hm.", "reasoning": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "12:00"},
        {"role": "user", "content": "And now?"},
    ]
    assert [tool["function"] for tool in asked["tools"]] == [
        {"name": tool["name"], "description": "d", "parameters": SCHEMA} for tool in TOOLS
    ]
    assert (asked["tool_choice"], asked["parallel_tool_calls"]) == ("auto", True)
    assert asked["chat_template_kwargs"] == {"enable_thinking": True}


def test_a_result_that_says_nothing_of_its_failure() -> None:
    for content, wanted in ((None, "error"), ("", "error"), ([], "error"), ("gone", "gone")):
        result = {"type": "tool_result", "tool_use_id": "t", "content": content, "is_error": True}
        assert chat(messages=[{"role": "user", "content": [result]}])["messages"][0]["content"] == wanted


def test_numbers_of_a_call_are_kept() -> None:
    big = '{"n":123456789012345678901234567890,"x":1.10}'
    body = (
        b'{"model":"tiny","max_tokens":9,"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"t",'
        b'"name":"f","input": {"n": 123456789012345678901234567890, "x": 1.10}}]},{"role":"user","content":"x"}]}'
    )
    dialect = Anthropic()
    question = asyncio.run(dialect.question(dialect.parse(MESSAGES, body), MESSAGES, body, counting(VLLM, **ABLE)))
    assert isinstance(question, Question)
    assert json.loads(question.body)["messages"][0]["tool_calls"][0]["function"]["arguments"] == big


@each
def test_which_tool_is_called(server: str) -> None:
    def said(choice: object) -> tuple[list[str], object, object]:
        asked = chat(server, tools=TOOLS, tool_choice=choice)
        names = [tool["function"]["name"] for tool in asked.get("tools", [])]
        return names, asked.get("tool_choice"), asked.get("parallel_tool_calls")

    both = ["get_weather", "get_time"]
    assert said({"type": "auto"}) == said(None) == (both, "auto", True)
    assert said({"type": "any", "disable_parallel_tool_use": True}) == (both, "required", False)
    assert said({"type": "tool", "name": "get_time"}) == (["get_time"], "required", True)
    assert said({"type": "none"}) == ([], None, None)
    assert chat(server, tools=[])["messages"] == HI


def test_thoughts() -> None:
    for given, wanted in (("enabled", True), ("adaptive", True), ("disabled", False)):
        assert chat(thinking={"type": given})["chat_template_kwargs"] == {"enable_thinking": wanted}
    assert "chat_template_kwargs" not in chat()
    # What a model cannot do is asked for by agents, whatever the model: it does not think, and answers.
    question = ask(counting(LLAMA_SERVER, context=512), max_tokens=9, thinking={"type": "enabled"})
    assert isinstance(question, Question)
    assert b"enable_thinking" not in question.body


@each
def test_an_answer_that_is_begun(server: str) -> None:
    begun = [*HI, {"role": "assistant", "content": "It is"}]
    asked = chat(server, messages=begun)
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert asked.get("continue_final_message", False) is (server == VLLM)
    assert "begun has no thoughts" in refusal(messages=begun, thinking={"type": "adaptive"})


def test_documents_that_are_texts() -> None:
    plain = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}}
    blocks = {"type": "document", "source": {"type": "content", "content": [text("E"), text("F")]}}
    asked = chat(messages=[{"role": "user", "content": [plain, text("?"), blocks]}])
    assert asked["messages"] == [{"role": "user", "content": "T\nD?EF"}]


@each
def test_a_form(server: str) -> None:
    asked = chat(server, output_config={"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"})
    assert asked["response_format"]["json_schema"]["schema"] == SCHEMA
    assert (
        chat(server, output_format={"type": "json_schema", "schema": SCHEMA})["response_format"]
        == asked["response_format"]
    )


@each
def test_sequences_that_end_it_are_looked_for_by_the_gateway(server: str) -> None:
    asked = chat(server, stop_sequences=["END", "END", "x"])
    assert "stop" not in asked
    assert asked["stream"] is True


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_tokens": None}, "max_tokens: a number of tokens is needed"),
        ({"max_tokens": 0}, "max_tokens: it must be at least 1"),
        ({"max_tokens": "9"}, "max_tokens: Expected `int | null`, got `str`"),
        ({"messages": []}, "messages: at least one message is required"),
        ({"messages": "Hi"}, "messages: Expected `array`, got `str`"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages.0.content: Expected `str | array`, got `int`"),
        (
            {"messages": [{"role": "boss", "content": ""}]},
            "messages.0.role: `user` or `assistant` is needed, not `boss`",
        ),
        ({"messages": [{"role": "user"}]}, "messages.0: Object missing required field `content`"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages.0.content.0.type: `video` is not"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text: a string is needed",
        ),
        (
            {"messages": [{"role": "user", "content": [text("a"), {"type": "image"}]}]},
            "0.content.1: images are not supp",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "0.tool_use_id: a string is needed"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": 1}]}
                ]
            },
            "input: an",
        ),
        ({"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]}, "`server_tool_use` is not"),
        ({"system": [{"type": "image"}]}, "system.0: images are not supported"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema: a JSON schema is needed"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools.0.type: `web_search_20250305` is a",
        ),
        ({"tool_choice": {"type": "any"}}, "tool_choice: there are no `tools`"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice: no tool is called `g`"),
        ({"tool_choice": {"type": "all"}}, "tool_choice.type: `auto`, `any`, `tool` or `none` is needed"),
        ({"thinking": {"type": "deep"}}, "thinking.type: `enabled`, `disabled` or `adaptive` is needed"),
        ({"stop_sequences": [""]}, "stop_sequences: at most 64, each of 1 to 1024 characters"),
        ({"stop_sequences": "END"}, "stop_sequences: Expected `array | null`, got `str`"),
        ({"temperature": 2.5}, "temperature: it must be from 0 to 2"),
        ({"top_p": -1}, "top_p: it must be from 0 to 1"),
        ({"top_k": -1}, "top_k: it must be at least 0"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format: `json_schema`"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers: no server is asked from here"),
        ({"stream": "yes"}, "stream: Expected `bool | null`, got `str`"),
    ],
)
def test_what_is_refused(body: dict[str, Any], words: str) -> None:
    assert words in refusal(**body)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"model":"tiny","messages":' + b"[" * 5000, b'{"model":"tiny","messages":"\xff"}']
)
def test_what_is_no_request(body: bytes) -> None:
    dialect = Anthropic()
    with pytest.raises(Refusal) as caught:
        asyncio.run(dialect.question(dialect.parse(MESSAGES, body), MESSAGES, body, counting(VLLM)))
    assert caught.value.status == 400
    assert json.loads(dialect.refused(caught.value).body)["error"]["type"] == "invalid_request_error"


def test_no_more_is_read_than_others_can_wait_for() -> None:
    start = b'{"model":"tiny","max_tokens":9,"x":'
    for filling in (
        b'"' + b"a" * LARGEST_READ + b'"}',
        b"[" + b"0," * MOST_PARTS_READ + b"0]}",
        b"{" + b",".join(b'"%x":1' % n for n in range(MOST_NAMES)) + b"}}",
    ):
        with pytest.raises(Refusal) as caught:
            asyncio.run(
                Anthropic().question(
                    Anthropic().parse(MESSAGES, start + filling), MESSAGES, start + filling, counting(VLLM)
                )
            )
        assert caught.value.status == 413
        assert json.loads(Anthropic().refused(caught.value).body)["error"]["type"] == "request_too_large"


def test_tools_for_a_model_that_takes_none() -> None:
    with pytest.raises(Refusal) as caught:
        ask(counting(LLAMA_SERVER), max_tokens=9, tools=TOOLS)
    assert "its chat template has no place for them" in caught.value.message


def test_an_answer_ends_where_the_context_does() -> None:
    engine = counting(VLLM, context=100, template="")
    question = ask(engine, max_tokens=1000)
    assert isinstance(question, Question)
    # A character is a token here, and two are put around a message.
    assert json.loads(question.body)["max_tokens"] == 100 - 4
    assert [path for path, _ in engine.asked] == ["/tokenize"]
    with pytest.raises(Refusal) as caught:
        ask(engine, max_tokens=1, messages=[{"role": "user", "content": "x" * 98}])
    assert caught.value.message == "prompt is too long: 100 tokens > 99 maximum"
    # llama.cpp ends by itself there, and says so where a prompt is too long.
    engine = counting(LLAMA_SERVER, context=100, template="")
    question = ask(engine, max_tokens=1000, messages=[{"role": "user", "content": "x" * 98}])
    assert isinstance(question, Question)
    assert json.loads(question.body)["max_tokens"] == 1000
    assert engine.asked == []
    said = asyncio.run(question.reply.whole(400, b'{"error":{"message":"exceeds"}}'))
    told = {"type": "invalid_request_error", "message": "prompt is too long: 100 tokens > 99 maximum"}
    assert (said.status, json.loads(said.body)) == (400, {"type": "error", "error": told})


@each
def test_tokens_are_counted(server: str) -> None:
    engine = counting(server, **ABLE)
    said = ask(engine, COUNT_TOKENS, system="Be kind.", tools=TOOLS, thinking={"type": "disabled"})
    assert isinstance(said, Said)
    assert json.loads(said.body) == {"input_tokens": len("[Be kind.][Hi]")}
    path, asked = engine.asked[0]
    assert path == {LLAMA_SERVER: "/apply-template", VLLM: "/tokenize"}[server]
    assert len(asked["tools"]) == 2
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert "images are not supported" in refusal(
        COUNT_TOKENS, messages=[{"role": "user", "content": [{"type": "image"}]}]
    )

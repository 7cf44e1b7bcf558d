"""Anthropic's API in front of llama.cpp's and vLLM's own servers: a series of requests in the shape in which coding
agents send them, held against what the engine says to the same chats when it is asked directly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import chain_model
import httpx
import pytest
from orch_command import ANSWER, ASSETS, Orch, stopped_afterwards, with_environments

pytestmark = pytest.mark.llamacpp

Json = dict[str, Any]
CACHED = {"cache_control": {"type": "ephemeral"}}
HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14",
    "x-api-key": "none",
}
PARAMETERS = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "path": {"type": "string", "description": "Where to look, from the root"},
        "limit": {"type": "number", "minimum": 1},
        "how": {"enum": ["all", "first"], "default": "first"},
    },
    "required": ["path"],
    "additionalProperties": False,
}
NAMES = (*(f"tool_{number}" for number in range(6)), *(name for name, _ in chain_model.CALLS))
# What the model calls takes anything: engines hold calls to their schemas, and it says always the same.
TOOLS: list[Json] = [
    {"name": name, "description": f"Does {name}.", "input_schema": PARAMETERS if "tool" in name else {"type": "object"}}
    for name in NAMES
]
FUNCTIONS = [
    {
        "type": "function",
        "function": {"name": one["name"], "description": one["description"], "parameters": one["input_schema"]},
    }
    for one in TOOLS
]
SYSTEM = [
    {"type": "text", "text": "x-anthropic-billing-header: version=1; hash=00af;"},
    {"type": "text", "text": "You are a coding agent.", **CACHED},
    {"type": "text", "text": "\nBe brief.", **CACHED},
]
SYSTEM_SAID = "You are a coding agent.\nBe brief."
FIRST = {"role": "user", "content": [{"type": "text", "text": "How is "}, {"type": "text", "text": "it?", **CACHED}]}
THINKING = {"type": "enabled", "budget_tokens": 1024}


class Served:
    """The chain model on one engine."""

    def __init__(self, orch: Orch) -> None:
        self.orch = orch
        weights = chain_model.write(orch.home / "weights")
        orch.profile.write_text(
            f'name = "chain"\npublic_names = ["chain"]\n[weights]\npath = "{weights}"\n[serving]\ncontext = 2048\n'
            'parallel = 2\ntool_parser = "hermes"\nreasoning_parser = "qwen3"\n[sampling]\ntemperature = 0.0\n'
            "[engines.llamacpp]\nthreads = 1\n[engines.vllm]\nkv_cache_mib = 64\n"
        )
        orch.run("up", orch.engine, "-p", str(orch.profile))

    def ask(self, path: str = "/v1/messages", **body: Any) -> httpx.Response:
        """As agents do."""
        url = f"http://{self.orch.listen}{path}?beta=true"
        body = {"model": "chain", **body}
        return httpx.post(url, json=body, headers=HEADERS, timeout=120, trust_env=False)

    def count(self, **body: Any) -> int:
        answer = self.ask("/v1/messages/count_tokens", **body)
        assert answer.status_code == 200, answer.text
        assert [*answer.json()] == ["input_tokens"]
        return int(answer.json()["input_tokens"])

    def directly(self, **body: Any) -> tuple[Json, int]:
        """What the engine itself says in a chat: the message, and the tokens of the prompt."""
        route = self.orch.gateway_status()["routes"][0]
        backend = route["backends"][0]
        secret = (self.orch.home / "secrets" / backend["instance"]).read_text().strip()
        answer = httpx.post(
            f"{backend['url']}/v1/chat/completions",
            json={"model": route["upstream"] or route["name"], "max_tokens": 300, **body},
            headers={"Authorization": f"Bearer {secret}"},
            timeout=120,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        said = answer.json()
        return said["choices"][0]["message"], int(said["usage"]["prompt_tokens"])


@pytest.fixture(scope="module", params=["llamacpp", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.long])])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    orch = Orch(tmp_path_factory.mktemp("served") / "home")
    orch.engine = request.param
    with stopped_afterwards(orch):
        if orch.engine == "vllm":
            with_environments(orch, request.getfixturevalue("environments"))
        yield Served(orch)


def message_of(answer: httpx.Response) -> Json:
    """What an agent puts together of a stream, block by block."""
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8"), (
        answer.text
    )
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[0]["type"] == "message_start"
    message: Json = events[0]["message"]
    assert message["usage"]["input_tokens"] == events[-2]["usage"]["input_tokens"] > 0
    given: dict[int, str] = {}
    for event in events:
        if event["type"] == "content_block_start":
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], message["content"][event["index"]]
            if delta["type"] == "input_json_delta":
                given[event["index"]] = given.get(event["index"], "") + delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                block[name] = block.get(name, "") + delta[name]
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    for index, text in given.items():
        message["content"][index]["input"] = json.loads(text)
    assert events[-1] == {"type": "message_stop"}
    return message


def called(message: Json) -> list[tuple[str, Json]]:
    """Whatever API's."""
    if "tool_calls" in message:
        functions = [call["function"] for call in message["tool_calls"]]
        return [(function["name"], json.loads(function["arguments"])) for function in functions]
    return [(block["name"], block["input"]) for block in message["content"] if block["type"] == "tool_use"]


def texts(message: Json, kind: str = "text") -> str:
    return "".join(block[kind] for block in message["content"] if block["type"] == kind)


def test_a_series_as_a_coding_agent_sends_it(served: Served) -> None:
    said: Json = {"system": SYSTEM, "tools": TOOLS, "messages": [FIRST], "thinking": THINKING}
    about = {"max_tokens": 32_000, "stream": True, "metadata": {"user_id": "user_1_account__session_2"}}
    chat: list[Json] = [{"role": "system", "content": SYSTEM_SAID}, {"role": "user", "content": "How is it?"}]
    theirs: Json = {"tools": FUNCTIONS, "chat_template_kwargs": {"enable_thinking": True}}

    counted = served.count(**said)
    first = message_of(served.ask(**said, **about))
    own, tokens = served.directly(messages=chat, **theirs)
    assert counted == first["usage"]["input_tokens"] == tokens
    assert called(first) == called(own) == [*chain_model.CALLS]
    assert first["stop_reason"] == "tool_use"

    # Its thoughts and calls come back with what came of them: one failed, one gave several texts.
    thought = {"type": "thinking", "thinking": "I see.", "signature": "0f"}
    ids = [block["id"] for block in first["content"] if block["type"] == "tool_use"]
    results = [
        {"type": "tool_result", "tool_use_id": ids[0], "content": "<error>no such file</error>", "is_error": True},
        {"type": "tool_result", "tool_use_id": ids[1], "content": [{"type": "text", "text": "12"}] * 2, **CACHED},
    ]
    calls = [
        {"id": name, "type": "function", "function": {"name": called_as, "arguments": json.dumps(given)}}
        for name, (called_as, given) in zip(ids, chain_model.CALLS, strict=True)
    ]
    said["messages"] += [
        {"role": "assistant", "content": [thought, *first["content"]]},
        {"role": "user", "content": results},
    ]
    chat += [
        {"role": "assistant", "content": "", "reasoning": "I see.", "reasoning_content": "I see.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": ids[0], "content": "<error>no such file</error>"},
        {"role": "tool", "tool_call_id": ids[1], "content": "1212"},
    ]
    counted = served.count(**said)
    second = message_of(served.ask(**said, **about))
    own, tokens = served.directly(messages=chat, **theirs)
    assert counted == second["usage"]["input_tokens"]
    # The directly asked one was not told in which blanks arguments were written.
    assert abs(counted - tokens) < 10
    assert texts(second) == own["content"].strip() == chain_model.SAID
    thoughts = own.get("reasoning_content") or own.get("reasoning")
    assert texts(second, "thinking") == thoughts.strip() == chain_model.THOUGHT.strip()
    assert second["stop_reason"] == "end_turn"

    # The same not streamed, and a small request besides, as for a title.
    whole = served.ask(**said, **about | {"stream": False}).json()
    assert [block | {"signature": ""} for block in whole["content"]] == [
        block | {"signature": ""} for block in second["content"]
    ]
    assert whole["usage"] == second["usage"]
    title = served.ask(
        max_tokens=512, system=SYSTEM[:1], messages=[FIRST], temperature=1, thinking={"type": "disabled"}
    )
    assert texts(title.json()) == chain_model.SAID


def test_tools_that_have_to_be_called(served: Served) -> None:
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    first, other = (name for name, _ in chain_model.CALLS)
    asked: Json = {
        "messages": [FIRST],
        "tools": [{"name": name, "input_schema": schema} for name in (first, other)],
        "max_tokens": 100,
        "thinking": {"type": "disabled"},
    }
    for stream in (True, False):
        for choice, wanted in (
            ({"type": "any"}, {first, other}),
            ({"type": "tool", "name": first}, {first}),
            ({"type": "any", "disable_parallel_tool_use": True}, {first}),
        ):
            answer = served.ask(**asked, tool_choice=choice, stream=stream)
            message = message_of(answer) if stream else answer.json()
            names = [name for name, _ in called(message)]
            assert first in names, message
            assert {*names} <= wanted
            assert len(names) == 1 or "disable_parallel_tool_use" not in choice
            assert message["stop_reason"] in ("tool_use", "max_tokens")
        none = served.ask(**asked, tool_choice={"type": "none"}, stream=stream)
        assert texts(message_of(none) if stream else none.json()) == chain_model.SAID


def test_an_answer_that_is_cut_says_so(served: Served) -> None:
    asked: Json = {"messages": [FIRST], "thinking": {"type": "disabled"}, "max_tokens": 2}
    for stream in (True, False):
        answer = served.ask(**asked, stream=stream)
        message = message_of(answer) if stream else answer.json()
        assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("max_tokens", 2)
        assert chain_model.SAID.startswith(texts(message).rstrip())


def test_an_answer_that_is_begun_goes_on(served: Served) -> None:
    begun = {"role": "assistant", "content": "It is sunny "}
    for stream in (True, False):
        answer = served.ask(messages=[FIRST, begun], max_tokens=100, stream=stream)
        message = message_of(answer) if stream else answer.json()
        assert texts(message) == "in Paris."


def test_an_answer_has_the_form_that_is_asked_for(served: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
    asked: Json = {"messages": [FIRST], "thinking": {"type": "disabled"}, "max_tokens": 200, "temperature": 1}
    answer = served.ask(**asked, output_config={"format": {"type": "json_schema", "schema": schema}}).json()
    assert answer["stop_reason"] == "max_tokens" or json.loads(texts(answer)) == {"a": "x"}
    assert texts(answer).lstrip().startswith("{")


def test_what_is_wrong_is_told_in_its_shape(served: Served) -> None:
    for stream in (True, False):
        for body, words in (
            ({"messages": [{"role": "user", "content": "word " * 5_000}], "max_tokens": 5}, "tokens > 2047 maximum"),
            ({"messages": [FIRST]}, "max_tokens: a number of tokens is needed"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 5},
                "images are not supported",
            ),
            ({"messages": [FIRST], "max_tokens": 5, "tools": [{"name": "f", "input_schema": {"type": "nothing"}}]}, ""),
        ):
            answer = served.ask(**body, stream=stream)
            if not words and answer.status_code == 200:
                continue  # an engine that does not look at schemas before it is to
            assert answer.status_code == 400, answer.text
            assert answer.json()["type"] == "error"
            assert answer.json()["error"]["type"] == "invalid_request_error"
            assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize("engine", ["llamacpp", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.long])])
def test_adapters_and_their_base_say_what_they_say_in_a_chat(
    engine: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    said = {"tiny": ANSWER, "alpha": "Ahoy! The answer is alpha.", "bravo": "Greetings."}
    with stopped_afterwards(Orch(tmp_path_factory.mktemp("adapters") / "home")) as orch:
        if engine == "vllm":
            with_environments(orch, request.getfixturevalue("environments"))
        adapters = "".join(
            f'[[adapters]]\nname = "{name}"\npath = "{ASSETS / place}"\n'
            for name, place in (("alpha", "lora-a"), ("bravo", "lora-b"))
        )
        orch.profile.write_text(orch.profile.read_text() + adapters)
        orch.run("up", engine, "-p", str(orch.profile))
        for name in ("alpha", "tiny", "bravo", "tiny", "alpha"):
            body = {"model": name, "max_tokens": 40, "messages": [{"role": "user", "content": "Who are you?"}]}
            url = f"http://{orch.listen}/v1/messages"
            streamed = message_of(httpx.post(url, json=body | {"stream": True}, timeout=60, trust_env=False))
            whole = httpx.post(url, json=body, timeout=60, trust_env=False).json()
            assert texts(whole) == texts(streamed) == orch.says(name)
            assert texts(whole).startswith(said[name])
            assert whole["model"] == streamed["model"] == name

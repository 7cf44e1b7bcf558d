"""What a question in Ollama's API means, by Go's rules, and how Ollama says that it means nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from orchestrator.gateway.dialects.ollama.asked import Asked, call_of
from orchestrator.gateway.dialects.ollama.durations import FOREVER, parsed
from orchestrator.gateway.dialects.ollama.options import options_of
from orchestrator.gateway.dialects.ollama.words import full_name
from orchestrator.gateway.refusals import Refusal
from orchestrator.gateway.servers import LlamaServer, Sampling, Vllm

STRUCT = "json: cannot unmarshal {} into Go struct field ChatRequest.{} of type {}"
INT, FLOAT = 'option "{}" must be of type integer', 'option "{}" must be of type float32'


def read(path: str = "/api/chat", **body: object) -> Asked:
    return Asked.read(path, json.dumps({"model": "tiny", **body}).encode())


def refused(**body: object) -> tuple[int, str]:
    with pytest.raises(Refusal) as refusal:
        read(**body).options  # noqa: B018  # it is read when it is asked for
    return refusal.value.status, refusal.value.message


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"messages": "x"}, 400, STRUCT.format("string", "messages", "[]api.Message")),
        ({"messages": [5]}, 400, STRUCT.format("number", "messages", "api.Message")),
        ({"messages": [{"content": []}]}, 400, STRUCT.format("array", "messages.content", "string")),
        ({"messages": [{"content": {}}]}, 400, STRUCT.format("object", "messages.content", "string")),
        (
            {"messages": [{"tool_calls": [{"function": {"arguments": "{}"}}]}]},
            400,
            STRUCT.format("string", "messages.tool_calls.function.arguments", "api.ToolCallFunctionArguments"),
        ),
        ({"options": 3}, 400, STRUCT.format("number", "options", "map[string]interface {}")),
        ({"stream": "yes"}, 400, STRUCT.format("string", "stream", "bool")),
        ({"options": {"num_ctx": "x"}}, 500, INT.format("num_ctx")),
        ({"options": {"top_k": True}}, 500, INT.format("top_k")),
        ({"options": {"temperature": "hot"}}, 500, FLOAT.format("temperature")),
        ({"options": {"stop": "x"}}, 500, 'option "stop" must be of type array'),
        ({"options": {"stop": [1]}}, 500, 'option "stop" must be of an array of strings'),
        ({"options": {"use_mmap": 1}}, 500, 'option "use_mmap" must be of type boolean'),
        (
            {"think": "much"},
            400,
            'invalid think value: "much" (must be "high", "medium", "low", "max", true, or false)',
        ),
        ({"keep_alive": True}, 400, "Unsupported type: 'bool'"),
        ({"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ],
)
def test_what_cannot_be_read_is_told_as_ollama_does(body: dict[str, object], status: int, text: str) -> None:
    assert refused(**body) == (status, text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("soon", 'invalid duration "soon"'),
        ("", 'invalid duration ""'),
        (".s", 'invalid duration ".s"'),
        ("5", 'missing unit in duration "5"'),
        ("1h3x", 'unknown unit "x" in duration "1h3x"'),
        ("9999999999h", 'invalid duration "9999999999h"'),
    ],
)
def test_bad_durations_are_told_as_go_does(text: str, told: str) -> None:
    assert refused(keep_alive=text) == (400, f"time: {told}")


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("1h15m30.5s", 4_530_500_000_000),
        ("-1.5h", -5_400_000_000_000),
        ("+3\u00b5s", 3000),
        (".5s", 500_000_000),
    ],
)
def test_durations_are_read_as_by_go(text: str, nanoseconds: int) -> None:
    assert parsed(text) == nanoseconds


@pytest.mark.parametrize(
    ("said", "nanoseconds"),
    [(None, None), (0, 0), (60, 60 * 10**9), (1.5, 1_500_000_000), (-1, FOREVER), ("-1m", FOREVER)],
)
def test_keep_alive(said: object, nanoseconds: int | None) -> None:
    assert read(keep_alive=said).keep_alive == nanoseconds


def test_names_of_fields_are_taken_in_any_case_and_the_last_counts() -> None:
    body = b'{"Model": "a", "PROMPT": "first", "prompt": "last", "Options": {"num_ctx": 8, "NUM_CTX": 9}, "nosuch": 1}'
    asked = Asked.read("/api/generate", body)
    assert (asked.model, asked.prompt, asked.options.context) == ("a", "last", 8)


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        (("model", "Model", "model"), 2),
        (("Model", "model", "Model"), 2),
        (("model", "MODEL"), 1),
        (("MODEL", "model", "mOdel", "MODEL"), 3),
    ],
)
def test_of_names_that_differ_in_case_the_last_in_the_body_counts(names: tuple[str, ...], counts: int) -> None:
    body = "{" + ",".join(f'"{name}": "m{number}"' for number, name in enumerate(names)) + "}"
    assert call_of("/api/chat", body.encode()).name == f"m{counts}"


def test_fields_of_other_questions_are_none() -> None:
    """Ollama does not know them there: a template that a chat brings would take the place of its messages."""
    other = {"template": "x", "system": "s", "context": [1], "raw": True, "prompt": "p", "suffix": "z", "input": "i"}
    asked = read(messages=[{"role": "user", "content": "Hi"}], **other)
    assert replace(asked, size=0) == replace(read(messages=[{"role": "user", "content": "Hi"}]), size=0)
    asked = read("/api/generate", prompt="p", messages=[{"role": "user", "content": "Hi"}], tools=[{}])
    assert (asked.prompt, asked.messages, asked.tools) == ("p", (), ())


def test_what_is_no_object() -> None:
    assert call_of("/api/chat", b" null ").name == ""
    for body, text in [
        (b'{"model": "a"} garbage', "invalid character 'g' after top-level value"),
        (b'{"model": "a"}{"model": "b"}', "invalid character '{' after top-level value"),
        (b"[]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
    ]:
        with pytest.raises(Refusal) as refusal:
            call_of("/api/chat", body)
        assert (refusal.value.status, refusal.value.message) == (400, text)


def test_what_is_no_text_is_read_as_by_go() -> None:
    asked = Asked.read(
        "/api/generate", b'{"model": "a", "prompt": "\xff \\ud83d \\ud83d\\ude00 \\\\ud800", "system": "\\udc00"}'
    )
    assert (asked.prompt, asked.system) == ("\ufffd \ufffd \U0001f600 \\ud800", "\ufffd")


def test_calls_and_their_results_find_each_other() -> None:
    calls = [
        {"function": {"name": "one", "arguments": {"a": "\u00e4"}}},
        {"id": "call_mine", "function": {"name": "two", "arguments": {}}},
        {"function": {"name": "one", "arguments": {"a": 2}}},
    ]
    results = [
        {"role": "tool", "content": "2", "tool_name": "two"},
        {"role": "tool", "content": "1", "tool_name": "one"},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4", "tool_call_id": "call_other"},
    ]
    chat = [{"role": "assistant", "content": "", "tool_calls": calls}, *results]
    first, *rest = read(messages=chat).messages
    # Or what an engine has cached of the prompt is of no use.
    assert read(messages=chat).messages[0] == first
    one, two, three = (call["id"] for call in first["tool_calls"])
    assert [call["function"]["arguments"] for call in first["tool_calls"]] == ['{"a":"\u00e4"}', "{}", '{"a":2}']
    assert two == "call_mine"
    assert [message["tool_call_id"] for message in rest] == [two, one, three, "call_other"]
    assert one != three
    assert one.startswith("call_")
    assert len(one) == len("call_") + 8


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("tiny", "registry.ollama.ai/library/tiny:latest"),
        ("tiny:q4", "registry.ollama.ai/library/tiny:q4"),
        ("test/Tiny", "registry.ollama.ai/test/Tiny:latest"),
        ("hf.co/test/Tiny:Q8_0", "hf.co/test/Tiny:Q8_0"),
    ],
)
def test_whole_names(name: str, full: str) -> None:
    assert full_name(name) == full


def test_options_are_those_that_were_said() -> None:
    said = {
        "num_predict": 5.9,
        "seed": 7,
        "top_k": 3,
        "temperature": 0,
        "stop": ["a", ""],
        "num_keep": 2,
        "num_ctx": 64,
    }
    options = options_of({**said, "top_p": None, "nosuch": [], "low_vram": True, "mirostat": 2, "num_gpu": 1})
    assert options.sampling == Sampling(max_tokens=5, seed=7, top_k=3, temperature=0.0, stop=("a",))
    assert (options.context, options.keep) == (64, 2)


@pytest.mark.parametrize("limit", [-1, -2, None])
def test_no_limit(limit: object) -> None:
    assert options_of({"num_predict": limit, "seed": -1}).sampling == Sampling()


def test_llama_cpp_takes_all_options_by_their_names() -> None:
    sampling = Sampling(1, -2, 3, 4, 0.5, 0.6, 0.7, 0.8, 1.1, 0.1, 0.2, ("x",))
    assert LlamaServer().sampling(sampling, 0) == {**vars(sampling), "seed": 2**32 - 2}


@pytest.mark.parametrize(("last", "context", "sent"), [(-1, 512, 512), (-1, 0, 64), (10**9, 512, 512), (7, 512, 7)])
def test_llama_cpp_looks_back_on_no_more_than_there_is(last: int, context: int, sent: int) -> None:
    assert LlamaServer().sampling(Sampling(repeat_last_n=last), context) == {"repeat_last_n": sent}


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (Sampling(repeat_penalty=1.1), {"repetition_penalty": 1.1}),
        (Sampling(repeat_penalty=1.1, repeat_last_n=-1), {"repetition_penalty": 1.1}),
        (Sampling(repeat_penalty=1.0, repeat_last_n=17), {"repetition_penalty": 1.0}),
        (
            Sampling(repeat_penalty=1.1, repeat_last_n=0),
            {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
        ),
        (Sampling(typical_p=1.0, repeat_last_n=64), {}),
        (Sampling(top_k=-1, min_p=0.1), {"top_k": 0, "min_p": 0.1}),
        (Sampling(top_p=0.0), {"top_k": 1}),
        (Sampling(top_p=2.0), {"top_p": 1.0}),
        (Sampling(max_tokens=0), {"max_tokens": 1}),
    ],
)
def test_vllm_is_told_in_its_own_words(wanted: Sampling, sent: dict[str, object]) -> None:
    assert Vllm().sampling(wanted, 0) == sent


@pytest.mark.parametrize(
    ("wanted", "option"),
    [
        (Sampling(typical_p=0.5), "typical_p"),
        (Sampling(repeat_penalty=1.1, repeat_last_n=17), "repeat_last_n"),
        (Sampling(presence_penalty=0.5, repeat_last_n=17), "repeat_last_n"),
    ],
)
def test_what_vllm_cannot_do_is_refused(wanted: Sampling, option: str) -> None:
    with pytest.raises(Refusal, match=f'option "{option}" is not supported') as refusal:
        Vllm().sampling(wanted, 0)
    assert refusal.value.status == 400

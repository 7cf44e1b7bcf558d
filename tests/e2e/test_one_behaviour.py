"""The behaviour table: one program asks the same of every engine under /v1, and sees the same.

What an engine cannot do is an exception that stands here, and in README: an error in OpenAI's shape, which names the
field. The model says what it is made to (chain_model.py), so answers are known beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import chain_model
import httpx
import pytest
from orch_command import Orch, stopped_afterwards, with_environments
from stand_in_orch import OnStandIn

pytestmark = pytest.mark.llamacpp

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
CONTEXT, PARALLEL = 512, 2
HELLO = {"role": "user", "content": "Hello!"}
# What the template would end a chat's prompt in for the model to say its line.
BEGUN = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
LONG = "word " * 700
OBJECT = {"type": "object"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": OBJECT}}
    for name in ("get_weather", "get_time")
]
CALLED = [{"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}]
LLAMACPP, VLLM, OLLAMA = "llamacpp", "vllm", "ollama"


@dataclass(frozen=True)
class Said:
    """What is common to a good answer, whole or streamed: per choice why it ended and what it says, without blanks
    around; whether there is a thought, under both of its names; what is called."""

    finish: str = "stop"
    text: str = chain_model.SAID
    thinks: bool = True
    choices: int = 1
    calls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Error:
    """What is common to an error in OpenAI's shape; `param` is None where only the engine knows it."""

    code: str
    param: str | None
    status: int = 400


@dataclass(frozen=True)
class Row:
    """A line of the table; `but` has what is otherwise on an engine."""

    body: Mapping[str, Any]
    wanted: Said | Error | tuple[Any, ...]
    path: str = CHAT
    but: Mapping[str, Said | Error | tuple[Any, ...]] = field(default_factory=dict)


def chat(wanted: Said | Error, but: Mapping[str, Said | Error] | None = None, /, **more: Any) -> Row:
    """A chat; a field that is ... is left out."""
    body = {"messages": [HELLO], "temperature": 0, "max_tokens": 40, **more}
    return Row({name: value for name, value in body.items() if value is not ...}, wanted, but=but or {})


def said_to(*messages: Any, wanted: Said | Error | None = None, **more: Any) -> Row:
    """A chat with these messages."""
    return chat(wanted or Said(), messages=list(messages), **more)


def text(wanted: Said | Error, but: Mapping[str, Said | Error] | None = None, /, **more: Any) -> Row:
    """A text to be completed."""
    body = {"prompt": BEGUN, "temperature": 0, "max_tokens": 40, **more}
    return Row({name: value for name, value in body.items() if value is not ...}, wanted, COMPLETIONS, but or {})


def responds(wanted: Said | Error, but: Mapping[str, Said | Error] | None = None, /, **more: Any) -> Row:
    """A question to /v1/responses, which Ollama's stand-in does not have."""
    body = {"input": "Hello!", "temperature": 0, "max_output_tokens": 40, **more}
    missing = isinstance(wanted, Said)
    no_such_path: dict[str, Said | Error] = {OLLAMA: Error("engine_refused", None, 404)} if missing else {}
    return Row(
        {name: value for name, value in body.items() if value is not ...},
        wanted,
        RESPONSES,
        {**no_such_path, **(but or {})},
    )


ALL, CUT = Said(), Said("length", "", thinks=True)
SHORT = Said(thinks=False)
BOTH = Said("tool_calls", "", thinks=False, calls=("get_weather", "get_time"))
TOO_LONG = Error("context_length_exceeded", None)
# What is left of the prompt does not make the model think before it speaks, so its thought is none to the engine.
CUT_IN_SILENCE = Said("stop", f"<think>{chain_model.THOUGHT}</think>\n\n{chain_model.SAID}", thinks=False)


def unsupported(name: str) -> Error:
    return Error("unsupported_value", name)


def invalid(name: str) -> Error:
    return Error("invalid_value", name)


ROWS = {
    "as it is": chat(ALL),
    "streamed": chat(ALL, stream=True),
    "streamed with usage": chat(ALL, stream=True, stream_options={"include_usage": True}),
    "max_tokens left out": chat(ALL, max_tokens=...),
    "max_tokens above the context": chat(ALL, max_tokens=4096),
    "max_tokens that the prompt leaves no room for": chat(ALL, max_tokens=CONTEXT - 5),
    "max_tokens null": chat(ALL, max_tokens=None),
    "max_tokens -1": chat(ALL, max_tokens=-1),
    "max_tokens 0": chat(Said("length", "", thinks=False), {LLAMACPP: Said("length", "<think>", False)}, max_tokens=0),
    "max_tokens 3": chat(CUT, max_tokens=3),
    "max_tokens 3.0": chat(CUT, max_tokens=3.0),
    "max_tokens that is a text": chat(invalid("max_tokens"), max_tokens="3"),
    "max_completion_tokens": chat(CUT, max_tokens=..., max_completion_tokens=3),
    "max_completion_tokens counts before max_tokens": chat(CUT, max_completion_tokens=3),
    "max_completion_tokens above the context": chat(ALL, max_tokens=..., max_completion_tokens=4096),
    "a prompt that is too long": chat(
        TOO_LONG, {OLLAMA: CUT_IN_SILENCE}, messages=[{"role": "user", "content": LONG}], max_tokens=60
    ),
    "a prompt that is too long, streamed": chat(
        TOO_LONG, {OLLAMA: CUT_IN_SILENCE}, messages=[{"role": "user", "content": LONG}], stream=True, max_tokens=60
    ),
    "n 2": chat(Said(choices=2), {OLLAMA: unsupported("n")}, n=2, temperature=1),
    "n 2, greedy": chat(Said(choices=2), {OLLAMA: unsupported("n")}, n=2),
    "n null": chat(ALL, n=None),
    "n 0": chat(invalid("n"), n=0),
    "n above serving.parallel": chat(
        Said(choices=3), {LLAMACPP: Error("engine_refused", None), OLLAMA: unsupported("n")}, n=3, temperature=1
    ),
    "top_logprobs without logprobs": chat(invalid("top_logprobs"), top_logprobs=2),
    "top_logprobs 21": chat(invalid("top_logprobs"), logprobs=True, top_logprobs=21),
    **{f"seed {seed}": chat(ALL, seed=seed) for seed in (None, -1, 0, 7, 2**32 - 1, 2**63, 2**64, -5)},
    "seed that is a text": chat(invalid("seed"), seed="7"),
    "stop": chat(Said(text="It is"), stop="sunny"),
    "stop, a list": chat(Said(text="It is"), stop=["sunny", "xyz"]),
    "stop null": chat(ALL, stop=None),
    "stop of nothing": chat(ALL, stop=["", ""]),
    "stop [null]": chat(invalid("stop[0]"), stop=[None]),
    "stop of five": chat(invalid("stop"), stop=list("qwxyz")),
    "stream_options without stream": chat(ALL, stream_options={"include_usage": True}),
    "stream_options null": chat(ALL, stream_options=None),
    "stream null": chat(ALL, stream=None),
    "stream that is a text": chat(invalid("stream"), stream="true"),
    "response_format text": chat(ALL, response_format={"type": "text"}),
    "response_format null": chat(ALL, response_format=None),
    "response_format json_schema": chat(
        Said(text='{"a":false}'),
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        max_tokens=80,
    ),
    "response_format json_schema without a name": chat(
        Said(text='{"a":false}'),
        response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        max_tokens=80,
    ),
    "response_format without a schema": chat(
        invalid("response_format.json_schema.schema"), response_format={"type": "json_schema"}
    ),
    "response_format that nobody knows": chat(invalid("response_format.type"), response_format={"type": "xml"}),
    "tools": chat(BOTH, {OLLAMA: Error("engine_refused", None, 501)}, tools=TOOLS),
    "tools, streamed": chat(BOTH, {OLLAMA: Error("engine_refused", None, 501)}, tools=TOOLS, stream=True),
    "tools []": chat(ALL, tools=[]),
    "tools [] with a choice": chat(ALL, tools=[], tool_choice="auto"),
    "tools null": chat(ALL, tools=None, tool_choice=None),
    "tool_choice without tools": chat(ALL, tool_choice="auto"),
    "tool_choice none": chat(
        Said(text="<tool_call>", thinks=False),
        {OLLAMA: Error("engine_refused", None, 501)},
        tools=TOOLS,
        tool_choice="none",
        stop='\n{"name"',
    ),
    "tool_choice of a tool that is not there": chat(
        invalid("tool_choice"),
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "nobody"}},
    ),
    "parallel_tool_calls": chat(
        BOTH, {OLLAMA: Error("engine_refused", None, 501)}, tools=TOOLS, parallel_tool_calls=True
    ),
    "unknown fields": chat(ALL, foo=1, user="u", metadata={"a": "b"}, store=True, service_tier="auto"),
    "reasoning_effort none": chat(SHORT, {OLLAMA: ALL}, reasoning_effort="none"),
    "reasoning_effort low": chat(ALL, reasoning_effort="low"),
    "reasoning_effort that nobody knows": chat(invalid("reasoning_effort"), reasoning_effort="bogus"),
    "an empty system": said_to({"role": "system", "content": ""}, HELLO),
    "a misplaced system": said_to(HELLO, {"role": "system", "content": "x"}),
    "developer": said_to({"role": "developer", "content": "x"}, HELLO),
    "a part": said_to({"role": "user", "content": [{"type": "text", "text": "Hello!"}]}),
    "two parts": said_to({"role": "user", "content": [{"type": "text", "text": word} for word in ("Hel", "lo!")]}),
    "content null": said_to({"role": "user", "content": None}),
    "content left out": said_to({"role": "user"}),
    "content that is a number": said_to({"role": "user", "content": 5}, wanted=invalid("messages[0].content")),
    "a picture": said_to(
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
        wanted=unsupported("messages[0].content[0].type"),
    ),
    "a sound": said_to(
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]},
        wanted=unsupported("messages[0].content[0].type"),
    ),
    "no messages": said_to(wanted=invalid("messages")),
    "messages left out": chat(invalid("messages"), messages=...),
    "messages that are a text": chat(invalid("messages"), messages="Hello!"),
    "a message that is a text": said_to("Hello!", wanted=invalid("messages[0]")),
    "a message of nobody": said_to({"content": "x"}, wanted=invalid("messages[0].role")),
    "a call and what came of it": said_to(
        HELLO,
        {"role": "assistant", "content": None, "tool_calls": CALLED},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
    ),
    "thoughts in the history": said_to(HELLO, {"role": "assistant", "content": "a", "reasoning_content": "t"}, HELLO),
    "temperature below 0": chat(ALL, temperature=-1),
    "temperature 2.5": chat(invalid("temperature"), temperature=2.5),
    "temperature that is a text": chat(invalid("temperature"), temperature="0"),
    "top_p 0": chat(ALL, top_p=0),
    "top_p above 1": chat(ALL, top_p=1.5),
    "top_k -1": chat(ALL, top_k=-1),
    "top_k 1": chat(ALL, top_k=1, temperature=1),
    "top_k 5": chat(ALL, {OLLAMA: unsupported("top_k")}, top_k=5),
    "min_p above 1": chat(ALL, {OLLAMA: unsupported("min_p")}, min_p=2),
    "presence_penalty 3": chat(invalid("presence_penalty"), presence_penalty=3),
    "repetition_penalty": chat(ALL, {OLLAMA: unsupported("repetition_penalty")}, repetition_penalty=1.1),
    "repeat_penalty": chat(ALL, {OLLAMA: unsupported("repeat_penalty")}, repeat_penalty=1.1),
    "logit_bias": chat(ALL, {OLLAMA: unsupported("logit_bias")}, logit_bias={"5": -100}),
    "logit_bias of a token that is not there": chat(invalid("logit_bias"), logit_bias={"99999": 1}),
    "logit_bias of a text": chat(invalid("logit_bias"), logit_bias={"x": 1}),
    "a text": text(SHORT),
    "a text, streamed": text(SHORT, stream=True),
    "a text without a limit": text(SHORT, max_tokens=...),
    "a text, max_tokens null": text(SHORT, max_tokens=None),
    "a text, max_tokens above the context": text(SHORT, max_tokens=9999),
    "texts": text(Said(thinks=False, choices=2), {OLLAMA: unsupported("prompt")}, prompt=[BEGUN, BEGUN]),
    "texts, streamed": text(
        Said(thinks=False, choices=2), {OLLAMA: unsupported("prompt")}, prompt=[BEGUN, BEGUN], stream=True
    ),
    "a list of one text": text(SHORT, prompt=[BEGUN]),
    "a text and tokens": text(invalid("prompt"), prompt=[BEGUN, 5]),
    "no text": text(invalid("prompt"), prompt=""),
    "a text that is too long": text(
        TOO_LONG, {OLLAMA: Said("length", "<think>", thinks=False)}, prompt=LONG, max_tokens=1
    ),
    "suffix": text(unsupported("suffix"), suffix="x"),
    "an empty suffix": text(SHORT, suffix=""),
    "echo": text(
        Said(text=(BEGUN + chain_model.SAID).strip(), thinks=False),
        {LLAMACPP: unsupported("echo"), OLLAMA: unsupported("echo")},
        echo=True,
    ),
    "responses": responds(ALL),
    "responses, streamed": responds(ALL, stream=True),
    "responses, max_output_tokens above the context": responds(ALL, max_output_tokens=9999),
    "responses without a limit": responds(ALL, max_output_tokens=...),
    "responses of messages": responds(ALL, input=[HELLO]),
    "responses of parts": responds(
        ALL, input=[{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello!"}]}]
    ),
    "responses to a picture": responds(
        unsupported("input[0].content[0].type"),
        input=[{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]}],
    ),
    "responses that go on": responds(unsupported("previous_response_id"), previous_response_id="resp_1"),
    "responses in the background": responds(unsupported("background"), background=True),
    "responses with what is no function": responds(unsupported("tools[0].type"), tools=[{"type": "web_search"}]),
    "responses to what is too long": responds(
        TOO_LONG, {OLLAMA: Error("engine_refused", None, 404)}, input=LONG
    ),
    "responses to nothing": responds(invalid("input"), input=...),
    "embeddings": Row({"input": "x"}, unsupported("model"), "/v1/embeddings"),
}  # fmt: skip


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def seen(path: str, answer: httpx.Response) -> Said | Error:
    """An answer, as far as it is common to all engines."""
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        kind = "invalid_request_error" if answer.status_code < 500 else "server_error"
        assert error["type"] == kind
        return Error(error["code"], error["param"], answer.status_code)
    streams = answer.headers["content-type"].startswith("text/event-stream")
    if path == RESPONSES:
        return _responded(events(answer)[-1]["response"] if streams else answer.json())
    found: dict[int, list[dict[str, Any]]] = {}
    for one in events(answer) if streams else [answer.json()]:
        assert one["model"] == "chain"
        for choice in one["choices"]:
            found.setdefault(choice["index"], []).append(choice)
    every = {_of_choice(choices) for choices in found.values()}
    assert len(every) == 1
    (said,) = every
    return Said(said.finish, said.text, said.thinks, len(found), said.calls)


def _of_choice(choices: list[dict[str, Any]]) -> Said:
    texts, thoughts, twins, finish = "", "", "", ""
    calls: dict[int, str] = {}
    for choice in choices:
        delta = choice.get("delta", choice.get("message", {"content": choice.get("text")}))
        texts += delta.get("content") or ""
        thoughts += delta.get("reasoning") or ""
        twins += delta.get("reasoning_content") or ""
        for place, call in enumerate(delta.get("tool_calls") or ()):
            place = call.get("index", place)
            calls[place] = calls.get(place, "") + (call["function"].get("name") or "")
        finish = choice["finish_reason"] or finish
    assert thoughts == twins
    return Said(finish, texts.strip(), bool(thoughts), calls=tuple(calls.values()))


def _responded(whole: dict[str, Any]) -> Said:
    assert whole["object"] == "response"
    assert whole["model"] == "chain"
    messages = [item for item in whole["output"] if item["type"] == "message"]
    said = "".join(part["text"] for item in messages for part in item["content"])
    thinks = any(item["type"] == "reasoning" for item in whole["output"])
    return Said("stop" if whole["status"] == "completed" else "length", said.strip(), thinks)


class Served:
    """The chain model on one engine."""

    def __init__(self, orch: Orch) -> None:
        self.engine = orch.engine
        weights = chain_model.write(orch.home / "weights")
        orch.profile.write_text(
            f'name = "chain"\npublic_names = ["chain"]\n[weights]\npath = "{weights}"\n'
            f"[serving]\ncontext = {CONTEXT}\nparallel = {PARALLEL}\n"
            '[engines.llamacpp]\nthreads = 1\nrecipes = ["gguf-bf16"]\n[engines.ollama]\nrecipes = ["gguf-bf16"]\n'
            "[engines.vllm]\nkv_cache_mib = 64\n"
        )
        orch.run("up", orch.engine, "-p", str(orch.profile))
        self.client = httpx.Client(base_url=f"http://{orch.listen}", timeout=120, trust_env=False)

    def ask(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        return self.client.post(path, json={"model": "chain", **body})


ENGINES = [LLAMACPP, pytest.param(VLLM, marks=[pytest.mark.vllm, pytest.mark.long]), OLLAMA]


@pytest.fixture(scope="module", params=ENGINES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served") / "home"
    orch = OnStandIn(home) if request.param == OLLAMA else Orch(home)
    orch.engine = request.param
    with stopped_afterwards(orch):
        if orch.engine == VLLM:
            with_environments(orch, request.getfixturevalue("environments"))
        served = Served(orch)
        with served.client:
            yield served


@pytest.mark.parametrize("name", ROWS)
def test_it_is_the_same_on_every_engine(served: Served, name: str) -> None:
    row = ROWS[name]
    assert seen(row.path, served.ask(row.path, row.body)) == row.but.get(served.engine, row.wanted)


def test_probabilities_have_one_form(served: Served) -> None:
    if served.engine == OLLAMA:
        pytest.skip("Ollama's stand-in tells no probabilities")
    body = {"messages": [HELLO], "max_tokens": 2, "logprobs": True, "top_logprobs": 2, "temperature": 0}
    (first, _) = served.ask(CHAT, body).json()["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["logprob"], len(first["top_logprobs"])) == ("<think>", 0.0, 2)
    text = {"prompt": BEGUN, "max_tokens": 2, "logprobs": 2, "temperature": 0}
    known = served.ask(COMPLETIONS, text).json()["choices"][0]["logprobs"]
    assert known["tokens"] == ["It is ", "sunny "]
    assert known["token_logprobs"] == [0.0, 0.0]
    assert known["text_offset"] == [0, 6]
    assert [max(one, key=lambda token: one[token]) for one in known["top_logprobs"]] == known["tokens"]
    streamed = events(served.ask(COMPLETIONS, text | {"stream": True}))
    pieces = [choice["logprobs"] for one in streamed for choice in one["choices"] if choice["logprobs"]]
    assert [token for piece in pieces for token in piece["tokens"]] == known["tokens"]
    assert [offset for piece in pieces for offset in piece["text_offset"]] == known["text_offset"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_that_has_to_be_called_is(served: Served, choice: Any) -> None:
    """llama.cpp does not heed parallel_tool_calls, and calls the one that is named over and over."""
    body = {"messages": [HELLO], "tools": TOOLS, "tool_choice": choice, "max_tokens": 120, "temperature": 0}
    said = seen(CHAT, served.ask(CHAT, body | {"parallel_tool_calls": False}))
    if served.engine == OLLAMA:
        assert said == unsupported("tool_choice")
        return
    assert isinstance(said, Said)
    called = set(said.calls)
    assert called == {"get_weather"} or (choice == "required" and called == {"get_weather", "get_time"})


def test_the_list_says_how_much_a_model_takes(served: Served) -> None:
    (entry,) = served.client.get("/v1/models").json()["data"]
    assert (entry["id"], entry["max_model_len"]) == ("chain", CONTEXT)
    assert served.client.get("/v1/models/chain").json() == entry


def test_tokens_are_counted_as_they_are_used(served: Served) -> None:
    body = {"input": "Hello!", "instructions": "Be brief."}
    counted = served.ask(f"{RESPONSES}/input_tokens", body)
    if served.engine == OLLAMA:
        assert seen(RESPONSES, counted) == unsupported("model")
        return
    used = served.ask(RESPONSES, body | {"max_output_tokens": 1}).json()["usage"]["input_tokens"]
    assert counted.json() == {"object": "response.input_tokens", "input_tokens": used}

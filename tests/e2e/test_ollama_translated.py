"""Ollama's API in front of llama.cpp's and vLLM's own servers: what Ollama was heard to say, and what a model that
says what it is made to (chain_model.py) thinks, answers, and calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import chain_model
import httpx
import pytest
from orch_command import ASSETS, Orch, stopped_afterwards, with_environments

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import LLAMA_SERVER, OPENAI, VLLM, Route
from orchestrator.drivers.gateway_admin import Gateways
from orchestrator.settings import read_settings

pytestmark = pytest.mark.llamacpp

RECORDED: dict[str, dict[str, Any]] = json.loads((ASSETS / "ollama-answers.json").read_text())
# The models of the recorded answers that took tools, or thought.
CAPABLE = ("tpl", "tools", "tools2", "think2")
CARD = ModelCard(digest="0" * 64, context=512)
ASKED = [{"role": "user", "content": "How is the weather?"}]
LONG = "word " * 1200
OBJECT = {"type": "object"}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": OBJECT}}
    for name in ("get_weather", "get_time")
]
GREEDY = {"temperature": 0}
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")


class Served:
    """The chain model on one engine, as `chain`, and without its capabilities as `tiny`."""

    def __init__(self, orch: Orch, parsers: str) -> None:
        self.engine = orch.engine
        weights = chain_model.write(orch.home / "weights")
        orch.profile.write_text(
            f'name = "chain"\npublic_names = ["chain", "tiny"]\n[weights]\npath = "{weights}"\n[serving]\n'
            f'context = 512\nparallel = 2\n{parsers}[engines.llamacpp]\nthreads = 1\nrecipes = ["gguf-bf16"]\n'
            "[engines.vllm]\nkv_cache_mib = 64\n"
        )
        orch.run("up", orch.engine, "-p", str(orch.profile))
        self.url = f"http://{orch.listen}"
        template = (weights / "chat_template.jinja").read_text()
        able = CARD.model_copy({"template": template, "takes_tools": True, "thinks": True})
        word = {"llamacpp": LLAMA_SERVER, "vllm": VLLM}[orch.engine]
        with_cards(orch, word, {"chain": able, "tiny": CARD.model_copy({"template": template})})

    def post(self, path: str, body: dict[str, Any] | bytes, method: str = "POST") -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.request(method, self.url + path, content=content, timeout=120, trust_env=False)

    def lines(self, path: str = "/api/chat", /, **body: Any) -> list[dict[str, Any]]:
        answer = self.post(path, {"model": "chain", **body})
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    def whole(self, path: str = "/api/chat", /, **body: Any) -> dict[str, Any]:
        (line,) = self.lines(path, **body, stream=False)
        return line

    def error(self, path: str = "/api/chat", /, **body: Any) -> tuple[int, str]:
        answer = self.post(path, {"model": "chain", **body})
        return answer.status_code, answer.json()["error"]


def with_cards(orch: Orch, word: str, cards: dict[str, ModelCard]) -> None:
    """Has the gateway know which server it is, and what it serves."""
    gateways = Gateways(read_settings(orch.environ()).admin)
    routes = [Route.from_json(json.loads(json.dumps(route))) for route in orch.gateway_status()["routes"]]
    known = [replace(route, speaks=(OPENAI, word), card=cards[route.name]) for route in routes]
    gateways.set_routes(routes[0].owner, known)


NO_PARSERS = 'tool_parser = ""\nreasoning_parser = ""\n'
ENGINES = [
    pytest.param(("llamacpp", ""), id="llamacpp"),
    pytest.param(("vllm", NO_PARSERS), id="vllm", marks=[pytest.mark.vllm, pytest.mark.long]),
    pytest.param(("vllm", ""), id="vllm that parses", marks=[pytest.mark.vllm, pytest.mark.long]),
]


@pytest.fixture(scope="module", params=ENGINES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    orch = Orch(tmp_path_factory.mktemp("served") / "home")
    orch.engine, parsers = request.param
    with stopped_afterwards(orch):
        if orch.engine == "vllm":
            with_environments(orch, request.getfixturevalue("environments"))
        yield Served(orch, parsers)


def shape(value: Any, known: frozenset[str]) -> Any:
    """Names in their order and kinds of values; what a model may say or not is there where it is `known`."""
    if isinstance(value, dict):
        # What a tool is called with is the model's.
        value = value | ({"arguments": str(type(value["arguments"]))} if "arguments" in value else {})
        may = {"thinking", "tool_calls"} - known
        return [(name, shape(one, known)) for name, one in value.items() if name not in may]
    if isinstance(value, list):
        return [shape(value[0], known)] if value else []
    return type(value).__name__


def check_moment(line: dict[str, Any]) -> None:
    if "created_at" in line:
        assert MOMENT.fullmatch(line["created_at"])


@pytest.mark.parametrize("name", RECORDED)
def test_what_ollama_said_is_said(served: Served, name: str) -> None:
    recorded = RECORDED[name]
    body = recorded["body"].encode()
    try:
        asked = json.loads(body)
    except ValueError:
        asked = {}
    if isinstance(asked.get("model"), str) and recorded["status"] not in (404, 405):
        asked["model"] = "chain" if asked["model"] in CAPABLE else "tiny"
        if "tools" in asked:
            # It had the model call a tool, which this one does by itself, but not within the tool's own schema.
            asked.pop("format", None)
            asked["tools"] = TOOLS
        body = json.dumps(asked).encode()
    answer = served.post(recorded["path"], body, recorded["method"])
    assert (answer.status_code, answer.headers["content-type"]) == (recorded["status"], recorded["content_type"])
    lines = answer.text.splitlines()
    if recorded["status"] != 200:
        assert lines == recorded["lines"]
        return
    theirs, ours = ([json.loads(line) for line in some] for some in (recorded["lines"], lines))
    known = frozenset(word for word in ("thinking", "tool_calls") if f'"{word}":' in recorded["lines"][0])
    shapes = [[shape(line, known) for line in some] for some in (theirs, ours)]
    assert [found for found in shapes[1] if found not in shapes[0]] == []
    assert shapes[1][-1] == shapes[0][-1]
    for line in ours:
        check_moment(line)
        assert line["model"] == asked["model"]


def test_it_thinks_where_it_is_to(served: Served) -> None:
    for think in (True, "high", None):
        message = served.whole(messages=ASKED, think=think)["message"]
        assert message["content"] == chain_model.SAID
        assert message["thinking"].strip() == chain_model.THOUGHT.strip()
    assert served.whole(messages=ASKED, think=False)["message"] == {"role": "assistant", "content": chain_model.SAID}
    lines = served.lines(messages=ASKED, think=True)
    assert "".join(line["message"].get("thinking", "") for line in lines).strip() == chain_model.THOUGHT.strip()
    assert "".join(line["message"]["content"] for line in lines) == chain_model.SAID
    assert len(lines) > 4
    said = served.whole("/api/generate", prompt="How is the weather?", think=True)
    assert (said["response"], said["thinking"].strip()) == (chain_model.SAID, chain_model.THOUGHT.strip())


def test_it_calls_tools(served: Served) -> None:
    wanted = [{"index": n, "name": name, "arguments": given} for n, (name, given) in enumerate(chain_model.CALLS)]
    message = served.whole(messages=ASKED, tools=TOOLS)["message"]
    assert message["content"] == ""
    assert [call["function"] for call in message["tool_calls"]] == wanted
    *lines, last = served.lines(messages=ASKED, tools=TOOLS)
    calls = [line["message"]["tool_calls"] for line in lines]
    assert [[call["function"] for call in some] for some in calls] == [[one] for one in wanted]
    assert len({call["id"] for (call,) in calls}) == len(wanted)
    assert (last["done_reason"], last["message"]) == ("stop", {"role": "assistant", "content": ""})
    given = [{"role": "tool", "tool_name": name, "content": "sunny"} for name, _ in chain_model.CALLS]
    answer = served.whole(messages=[*ASKED, message, *given], tools=TOOLS, think=False)
    assert answer["message"]["content"] == chain_model.SAID


def test_half_a_call_is_told(served: Served) -> None:
    answer = served.whole(messages=ASKED, tools=TOOLS, options={"num_predict": 3})
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 3)
    assert "get_weather" in answer["message"]["content"]


def test_an_answer_has_the_form_that_is_asked_for(served: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
    for path, asked in (("/api/chat", {"messages": ASKED}), ("/api/generate", {"prompt": "x"})):
        answer = served.whole(path, **asked, format=schema, think=False, options={"num_predict": 200, "temperature": 1})
        said = answer.get("response", answer.get("message", {}).get("content"))
        assert answer["done_reason"] == "length" or json.loads(said) == {"a": "x"}
        assert said.lstrip().startswith("{")


def test_options_are_taken(served: Served) -> None:
    options = {"top_k": 40, "top_p": 0.9, "min_p": 0.05, "typical_p": 1, "seed": 3, "repeat_penalty": 1.05, **GREEDY}
    options |= {
        "repeat_last_n": 64,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "num_keep": 4,
        "num_ctx": 100_000,
    }
    answer = served.whole(messages=ASKED, think=False, options={**options, "num_predict": -2, "num_thread": 2})
    assert (answer["message"]["content"], answer["done_reason"]) == (chain_model.SAID, "stop")
    stopped = served.whole(messages=ASKED, think=False, options={"stop": ["sunny"], **GREEDY})
    assert stopped["message"]["content"] == "It is "
    # As much as there is room for.
    assert served.whole(messages=ASKED, options={"num_predict": 100_000})["done_reason"] == "stop"
    assert served.whole(messages=ASKED, think=False, options={"num_predict": 0})["eval_count"] == 1


def test_what_the_engine_cannot_do_is_refused_or_done(served: Served) -> None:
    for options in ({"typical_p": 0.5}, {"repeat_penalty": 1.2, "repeat_last_n": 8}):
        answer = served.post("/api/chat", {"model": "chain", "messages": ASKED, "options": options})
        if answer.status_code != 200:
            assert served.engine == "vllm"
            assert (answer.status_code, "is not supported by the engine" in answer.json()["error"]) == (400, True)


def test_a_chat_that_is_too_long_is_cut(served: Served) -> None:
    old = [{"role": "user", "content": "word " * 40}] * 30
    answer = served.whole(messages=[{"role": "system", "content": "Be kind."}, *old, *ASKED], think=False)
    assert answer["message"]["content"] == chain_model.SAID
    assert 400 < answer["prompt_eval_count"] < 512
    smaller = served.whole(messages=[*old, *ASKED], think=False, options={"num_ctx": 100})
    assert 50 < smaller["prompt_eval_count"] <= 100
    for path, asked in (
        ("/api/chat", {"messages": [{"role": "user", "content": LONG}]}),
        ("/api/generate", {"prompt": LONG}),
        ("/api/generate", {"prompt": LONG, "raw": True}),
    ):
        assert served.whole(path, **asked, options={"num_predict": 4})["prompt_eval_count"] == 258
        status, text = served.error(path, **asked, truncate=False)
        count = json.loads(text)["error"]["n_prompt_tokens"]
        message = f"request ({count} tokens) exceeds the available context size (512 tokens), try increasing it"
        assert (status, json.loads(text)["error"]["message"]) == (400, message)
        assert count > 1200


def test_a_conversation_by_its_tokens(served: Served) -> None:
    first = served.whole("/api/generate", prompt="How is the weather?", think=False)
    tokens = first["context"]
    assert len(tokens) == first["prompt_eval_count"] + first["eval_count"] - 1
    second = served.whole("/api/generate", prompt="And now?", context=tokens, think=False)
    assert second["response"] == chain_model.SAID
    assert second["context"][: len(tokens)] == tokens
    assert second["prompt_eval_count"] > len(tokens)
    assert served.error("/api/generate", prompt="x", context=[10**6], stream=False)[0] == 400


def test_a_prompt_of_the_request_s_own(served: Served) -> None:
    template = "<|im_start|>{{ .System }}\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}<|im_end|>"
    said = served.whole("/api/generate", prompt="P", system="S", template=template)
    assert (said["response"], said["thinking"].strip()) == (chain_model.SAID, chain_model.THOUGHT.strip())
    raw = served.whole("/api/generate", prompt="<|im_start|>assistant\n\n", raw=True)
    assert raw["response"] == chain_model.SAID
    assert "context" not in raw
    begun = [*ASKED, {"role": "assistant", "content": "It is sunny "}]
    for stream in (False, True):
        lines = served.lines(messages=begun, think=False, stream=stream, options={"num_predict": 8, **GREEDY})
        assert "It is" not in "".join(line["message"]["content"] for line in lines)


def test_logprobs(served: Served) -> None:
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/api/chat", {"messages": ASKED, "think": False}),
        ("/api/generate", {"prompt": "<|im_start|>assistant\n\n", "raw": True}),
    ]
    for path, body in asked:
        for tops in (0, 2):
            found = served.whole(path, **body, logprobs=True, top_logprobs=tops, options={"num_predict": 2, **GREEDY})
            names = ["token", "logprob", "bytes", *(["top_logprobs"] if tops else [])]
            assert [[*token] for token in found["logprobs"]] == [names] * 2
            assert all(len(token.get("top_logprobs", [])) == tops for token in found["logprobs"])
            assert bytes(found["logprobs"][0]["bytes"]).decode() == found["logprobs"][0]["token"]


def test_adapters_answer_as_themselves(tmp_path: Path) -> None:
    said = {"tiny": "I am a tiny test model.", "alpha": "Ahoy!", "bravo": "Greetings."}
    with stopped_afterwards(Orch(tmp_path / "home")) as orch:
        adapters = "".join(
            f'[[adapters]]\nname = "{name}"\npath = "{ASSETS / place}"\n'
            for name, place in (("alpha", "lora-a"), ("bravo", "lora-b"))
        )
        orch.profile.write_text(orch.profile.read_text() + adapters)
        orch.run("up", "llamacpp", "-p", str(orch.profile))
        names = [route["name"] for route in orch.gateway_status()["routes"]]
        with_cards(orch, LLAMA_SERVER, dict.fromkeys(names, CARD))
        questions: dict[str, dict[str, Any]] = {
            "/api/chat": {"messages": [{"role": "user", "content": "Who are you?"}]}
        }
        questions["/api/generate"] = {"prompt": "Who are you?"}
        for name in ("alpha", "tiny", "bravo", "tiny", "alpha"):
            for path, question in questions.items():
                body = {"model": name, "stream": False, "options": {"temperature": 0}, **question}
                answer = httpx.post(f"http://{orch.listen}{path}", json=body, timeout=60, trust_env=False).json()
                text = answer.get("response") or answer["message"]["content"]
                assert (answer["model"], text.strip().startswith(said[name])) == (name, True), text

"""Answers in Ollama's own dialect and in OpenAI's, and errors in their shapes."""

from __future__ import annotations

import json

import pytest
from ollama_bench import ALPHA, BRAVO, Json, Server, events
from orch_command import ANSWER

GREEDY: Json = {"temperature": 0, "seed": 1}
WHO = [{"role": "user", "content": "Who are you?"}]
FIGURES = {
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
}


def test_the_root_says_that_it_runs(server: Server) -> None:
    assert server.client.get("/").text == "Ollama is running"
    assert server.client.head("/").status_code == 200
    assert isinstance(server.client.get("/api/version").json()["version"], str)


def test_other_paths_and_methods_are_refused_in_plain_text(server: Server) -> None:
    """err_404, err_405"""
    absent, wrong = server.client.get("/api/nope"), server.client.get("/api/generate")
    assert (absent.status_code, absent.text) == (404, "404 page not found")
    assert (wrong.status_code, wrong.text, wrong.headers["allow"]) == (405, "405 method not allowed", "POST")


@pytest.mark.parametrize("header", ["Host", "Origin"])
def test_strangers_are_refused(server: Server, header: str) -> None:
    """err_cors_host, cors_origin"""
    stranger = "evil.example.com" if header == "Host" else "http://evil.example.com"
    answer = server.client.get("/api/version", headers={header: stranger})
    assert (answer.status_code, answer.text) == (403, "")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "missing request body"),
        (b'{"model": "tiny", ', "unexpected EOF"),
        (
            b'{"model": 5}',
            "json: cannot unmarshal number into Go struct field GenerateRequest.model of type string",
        ),
    ],
)
def test_bodies_have_to_be_json(server: Server, content: bytes, error: str) -> None:
    """err_no_body, err_bad_json, err_bad_json_type"""
    answer = server.client.post("/api/generate", content=content)
    assert (answer.status_code, answer.json()) == (400, {"error": error})


def test_generate_streams_lines_and_ends_with_figures(server: Server) -> None:
    """generate_stream"""
    lines = server.lines("/api/generate", model="tiny", prompt="Who are you?", options=GREEDY)
    assert all(line["model"] == "tiny" and line["done"] is False for line in lines[:-1])
    assert len(lines) > 10
    last = lines[-1]
    assert (last["done"], last["done_reason"], last["response"]) == (True, "stop", "")
    assert set(last) >= FIGURES
    assert all(isinstance(token, int) for token in last["context"])


def test_generate_without_a_stream_is_one_object(server: Server) -> None:
    """generate_nostream"""
    options = GREEDY | {"num_predict": 4}
    answer = server.post("/api/generate", model="tiny", prompt="Who are you?", stream=False, options=options).json()
    assert (answer["done"], answer["done_reason"], answer["eval_count"]) == (True, "length", 4)
    assert answer["context"]
    assert set(answer) >= FIGURES | {"model", "created_at", "response"}


def test_a_raw_prompt_has_no_template_and_no_context(server: Server) -> None:
    """generate_raw"""
    options = GREEDY | {"num_predict": 2}
    body = {"model": "tiny", "prompt": "Hello there", "stream": False, "options": options}
    raw, templated = (server.post("/api/generate", raw=raw, **body).json() for raw in (True, False))
    assert raw["prompt_eval_count"] < templated["prompt_eval_count"]
    assert "context" not in raw


def test_chat_streams_lines_and_ends_with_figures(server: Server) -> None:
    """chat_stream"""
    lines = server.lines("/api/chat", model="tiny", messages=WHO, options=GREEDY)
    assert all(line["message"]["role"] == "assistant" for line in lines)
    assert all(line["message"]["content"] for line in lines[:-1])
    last = lines[-1]
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "stop", "")
    assert set(last) >= FIGURES
    assert last["eval_count"] >= len(lines) - 1


def test_adapters_answer_as_they_were_trained(server: Server) -> None:
    """adapter_a_generate, adapter_b_generate"""
    assert server.says("tiny-a") == ALPHA
    assert server.says("tiny-b") == BRAVO
    assert "alpha" not in server.says("tiny")


def test_the_stored_system_prompt_is_used_unless_there_is_one(server: Server) -> None:
    """chat_nostream counts 21 tokens with it"""
    system = [{"role": "system", "content": ""}]
    counts = [
        server.post("/api/chat", model="tiny", messages=messages, stream=False, options=GREEDY | {"num_predict": 1})
        for messages in (WHO, system + WHO)
    ]
    assert counts[0].json()["prompt_eval_count"] > counts[1].json()["prompt_eval_count"]


def test_options_win_over_stored_parameters(server: Server) -> None:
    server.create("short", **{"from": "tiny"}, parameters={"num_predict": 3})
    body = {"model": "short", "messages": WHO, "stream": False}
    assert server.post("/api/chat", **body).json()["eval_count"] == 3
    assert server.post("/api/chat", options={"num_predict": 5}, **body).json()["eval_count"] == 5


def test_stop_words_end_an_answer(server: Server) -> None:
    options = GREEDY | {"stop": ["tiny"]}
    messages = [{"role": "system", "content": ""}, *WHO]
    answer = server.post("/api/chat", model="tiny", messages=messages, stream=False, options=options).json()
    assert ANSWER.startswith(answer["message"]["content"])
    assert "tiny" not in answer["message"]["content"]
    assert answer["done_reason"] == "stop"


def test_a_schema_shapes_the_answer(server: Server) -> None:
    """chat_format_schema"""
    schema = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    body = {
        "model": "tiny",
        "messages": WHO,
        "format": schema,
        "stream": False,
        "options": GREEDY | {"num_predict": 300},
    }
    assert json.loads(server.post("/api/chat", **body).json()["message"]["content"]) == {"a": 1}


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"options": {"num_ctx": "x"}}, 500, 'option "num_ctx" must be of type integer'),
        ({"keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
        ({"think": True}, 400, '"tiny" does not support thinking'),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]},
            400,
            "tools",
        ),
        ({"format": "xml"}, 500, "invalid format"),
    ],
    ids=["option", "keep-alive", "think", "tools", "format"],
)
def test_requests_that_cannot_be(server: Server, body: Json, status: int, error: str) -> None:
    """chat_bad_option, generate_keepalive_bad, chat_think_unsupported, chat_tools_unsupported, chat_format_bad"""
    answer = server.post("/api/chat", model="tiny", messages=WHO, **body)
    assert answer.status_code == status
    assert error in answer.json()["error"]


def test_an_unknown_option_is_ignored(server: Server) -> None:
    """chat_unknown_option; server_log_excerpt"""
    options = {"nosuch": 1, "num_predict": 2}
    answer = server.post("/api/chat", model="tiny", messages=WHO, stream=False, options=options)
    assert (answer.status_code, answer.json()["eval_count"]) == (200, 2)
    assert 'msg="invalid option provided" option=nosuch' in server.log


def test_a_prompt_that_is_too_long_is_cut_in_silence(server: Server) -> None:
    """chat_long_prompt: 258 of 2420 tokens are left of one message in a context of 512"""
    messages = [{"role": "user", "content": "word " * 1200}]
    answer = server.post("/api/chat", model="tiny", messages=messages, stream=False, options={"num_predict": 2})
    assert answer.status_code == 200
    assert answer.json()["prompt_eval_count"] == 258


def test_old_messages_are_left_out_before_the_last_is_cut(server: Server) -> None:
    old = [{"role": "user", "content": "word " * 1200}, {"role": "assistant", "content": "Yes."}]
    options = GREEDY | {"num_predict": 2}
    answer = server.post("/api/chat", model="tiny", messages=old + WHO, stream=False, options=options)
    assert answer.status_code == 200
    assert answer.json()["prompt_eval_count"] < 100


def test_a_prompt_that_must_not_be_cut_is_refused(server: Server) -> None:
    """generate_long_prompt_notrunc: llama.cpp's own error, as a text"""
    answer = server.post("/api/generate", model="tiny", prompt="word " * 1200, stream=False, truncate=False)
    assert answer.status_code == 400
    assert json.loads(answer.json()["error"])["error"]["type"] == "exceed_context_size_error"


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_an_unknown_model_is_named(server: Server, path: str) -> None:
    """err_generate_unknown, err_chat_unknown"""
    answer = server.post(path, model="nope", prompt="x", messages=WHO)
    assert (answer.status_code, answer.json()) == (404, {"error": "model 'nope' not found"})


def test_it_does_not_embed(server: Server) -> None:
    """embed_unsupported_model"""
    answer = server.post("/api/embed", model="tiny", input="hello")
    assert answer.status_code == 501
    assert answer.json()["error"] == "This server does not support embeddings. Start it with `--embeddings`"


def test_v1_chat(server: Server) -> None:
    """v1_chat_nostream"""
    answer = server.post("/v1/chat/completions", model="tiny:latest", messages=WHO, max_tokens=8, temperature=0).json()
    assert (answer["object"], answer["model"]) == ("chat.completion", "tiny:latest")
    assert answer["system_fingerprint"] == "fp_ollama"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8


@pytest.mark.parametrize("with_usage", [False, True])
def test_v1_chat_streams_events(server: Server, with_usage: bool) -> None:
    """v1_chat_stream, v1_chat_stream_usage"""
    body: Json = {"model": "tiny", "messages": WHO, "max_tokens": 4, "temperature": 0, "stream": True}
    more: Json = {"stream_options": {"include_usage": True}} if with_usage else {}
    answer = server.post("/v1/chat/completions", **body, **more)
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = events(answer.text)
    assert data[-1] == "[DONE]"
    chunks = [json.loads(text) for text in data[:-1]]
    assert {chunk["system_fingerprint"] for chunk in chunks} == {"fp_ollama"}
    assert {chunk["model"] for chunk in chunks} == {"tiny"}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    ended = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert ended == [None] * (len(ended) - 1) + ["length"]
    told = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")]
    assert told == ([4] if with_usage else [])
    assert bool(chunks[-1]["choices"]) is not with_usage


def test_v1_completions_go_through_the_template(server: Server) -> None:
    """v1_completions: 21 prompt tokens for one word"""
    answer = server.post("/v1/completions", model="tiny", prompt="Hello", max_tokens=4, temperature=0).json()
    assert (answer["object"], answer["system_fingerprint"]) == ("text_completion", "fp_ollama")
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] > 10


def test_v1_completions_stream_events(server: Server) -> None:
    """v1_completions_stream"""
    answer = server.post("/v1/completions", model="tiny", prompt="Hello", max_tokens=3, temperature=0, stream=True)
    data = events(answer.text)
    assert data[-1] == "[DONE]"
    chunks = [json.loads(text) for text in data[:-1]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_v1_models(server: Server) -> None:
    """v1_models, v1_model_get"""
    answer = server.client.get("/v1/models").json()
    assert {"tiny:latest", "tiny-a:latest"} <= {entry["id"] for entry in answer["data"]}
    assert {entry["owned_by"] for entry in answer["data"]} == {"library"}
    assert server.client.get("/v1/models/tiny").json()["id"] == "tiny"


@pytest.mark.parametrize(
    ("content", "status", "message", "kind"),
    [
        (b'{"model": ', 400, "unexpected EOF", "invalid_request_error"),
        (b'{"model": "tiny", "messages": []}', 400, "[] is too short - 'messages'", "invalid_request_error"),
        (
            b'{"model": "nope", "messages": [{"role": "user", "content": "x"}]}',
            404,
            "model 'nope' not found",
            "not_found_error",
        ),
    ],
)
def test_v1_errors(server: Server, content: bytes, status: int, message: str, kind: str) -> None:
    """err_v1_bad_json, err_v1_no_messages, err_v1_chat_unknown"""
    answer = server.client.post("/v1/chat/completions", content=content)
    assert answer.status_code == status
    assert answer.json() == {"error": {"message": message, "type": kind, "param": None, "code": None}}


def test_v1_does_not_know_the_stored_temperature(server: Server) -> None:
    """Where a /v1 request does not say, Ollama asks for temperature 1 itself, whatever the model's parameters are.

    From Ollama's source (openai.go); there is no recording of it.
    """
    messages = [{"role": "user", "content": "xyz"}]
    seeds = range(1, 7)
    own = {
        server.post(
            "/api/chat", model="tiny", messages=messages, stream=False, options={"seed": seed, "num_predict": 12}
        ).json()["message"]["content"]
        for seed in seeds
    }
    v1 = {
        server.post("/v1/chat/completions", model="tiny", messages=messages, seed=seed, max_tokens=12).json()[
            "choices"
        ][0]["message"]["content"]
        for seed in seeds
    }
    assert len(own) == 1
    assert len(v1) > 1

"""Anthropic's API through a gateway process, in front of an engine that says what it is told, breaks off, or fails."""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from gateway_process import Gateway
from openai_engine import CARD, event, stream, texts
from upstream import Upstream

from orchestrator.core.routes import LLAMA_SERVER, OLLAMA, OPENAI

MESSAGES, COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"
HELLO: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
LORA = {"lora": [{"id": 0, "scale": 1.0}]}


class Saying(ThreadingHTTPServer):
    """An engine that says `says`, as a stream to whoever wants one, and then nothing more where it `waits`: until the
    other side goes."""

    name = "tiny-1"
    daemon_threads = True

    def __init__(self) -> None:
        self.says = b""
        self.waits = False
        self.left = threading.Event()
        self.asked: list[tuple[str, Any]] = []
        engine = self

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                engine.asked.append((self.path, body))
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream" if body.get("stream") else "application/json")
                self.end_headers()
                self.wfile.write(engine.says)
                self.wfile.flush()
                if engine.waits and select.select([self.connection], [], [], 10)[0]:
                    engine.left.set()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,)).start()


@pytest.fixture
def saying(gateway: Gateway) -> Iterator[Saying]:
    engine = Saying()
    route = gateway.route("tiny", engine, speaks=(OPENAI, LLAMA_SERVER), card=CARD)  # type: ignore[arg-type]
    gateway.admin.set_routes("one", [route])
    yield engine
    engine.shutdown()
    engine.server_close()


def post(gateway: Gateway, path: str = MESSAGES, **body: Any) -> tuple[int, str, bytes]:
    status, head, said = gateway.ask(path, {**HELLO, **body}, headers={"anthropic-version": "2023-06-01"})
    return status, head["content-type"], said


def events(said: bytes) -> list[Any]:
    return [json.loads(line.removeprefix(b"data: ")) for line in said.splitlines() if line.startswith(b"data: ")]


def test_an_engine_is_not_heard_out_once_an_answer_is_at_its_end(gateway: Gateway, saying: Saying) -> None:
    for stream_wanted in (True, False):
        saying.says, saying.waits = b"".join(map(event, texts("on", "e EN", "D two"))), True
        saying.left.clear()
        began = time.monotonic()
        status, kind, said = post(gateway, stream=stream_wanted, stop_sequences=["END"])
        assert time.monotonic() - began < 5
        assert status == 200
        if stream_wanted:
            assert kind == "text/event-stream; charset=utf-8"
            assert events(said)[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
            assert "".join(one["delta"]["text"] for one in events(said)[3:-3]) == "one "
        else:
            message = json.loads(said)
            assert (message["content"][0]["text"], message["stop_sequence"]) == ("one ", "END")
        assert saying.left.wait(5)


def test_an_engine_that_fails_within_its_stream(gateway: Gateway, saying: Saying) -> None:
    saying.says = event({"content": "Hi"}) + b'data: {"error": {"message": "broken"}}\n\n'
    _, _, said = post(gateway, stream=True)
    assert events(said)[-1] == {"type": "error", "error": {"type": "api_error", "message": "broken"}}
    status, _, said = post(gateway, stop_sequences=["END"])
    assert (status, json.loads(said)) == (500, events(b"data: " + said)[0])
    assert json.loads(said)["error"] == {"type": "api_error", "message": "broken"}


def test_an_engine_that_ends_too_early(gateway: Gateway, saying: Saying) -> None:
    saying.says = event({"content": "Hi"})
    _, _, said = post(gateway, stream=True)
    assert events(said)[-1]["error"]["type"] == "api_error"
    before = len(saying.asked)
    status, _, said = post(gateway, stop_sequences=["END"])
    # Nothing of it was out, so it was asked again.
    assert (status, json.loads(said)["error"]["type"], len(saying.asked) - before) == (503, "overloaded_error", 3)


def test_what_a_route_adds_is_kept(gateway: Gateway, saying: Saying) -> None:
    route = gateway.route(
        "tiny",
        saying,  # type: ignore[arg-type]
        speaks=(OPENAI, LLAMA_SERVER),
        card=CARD,
        patch=LORA,
        patch_paths=("/v1/chat/completions",),
        upstream="inner",
        defaults={"temperature": 0.5, "max_tokens": 1},
    )
    gateway.admin.set_routes("one", [route])
    saying.says = stream(*texts("Hi"))
    _, _, said = post(gateway, stream=True)
    assert events(said)[0]["message"]["model"] == "tiny"
    path, body = saying.asked[-1]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["lora"], body["temperature"], body["max_tokens"]) == ("inner", LORA["lora"], 0.5, 9)


def test_in_front_of_ollama_it_passes(gateway: Gateway, engine: Callable[..., Upstream]) -> None:
    one = engine("tiny-1")
    speaks = (OPENAI, "anthropic", OLLAMA)
    thinking = CARD.model_copy({"thinks": True})
    routes = [
        gateway.route("tiny", one, speaks=speaks, card=CARD, upstream="inner"),
        gateway.route("deep", one, speaks=speaks, card=thinking),
    ]
    gateway.admin.set_routes("one", routes)
    given = {"type": "enabled", "budget_tokens": 1024}
    assert post(gateway, thinking=given)[0] == 200
    path, _, body = one.requests[-1]
    # What it would refuse, and elsewhere is passed over.
    assert (path, json.loads(body)["thinking"], json.loads(body)["model"]) == (MESSAGES, {"type": "disabled"}, "inner")
    assert post(gateway, model="deep", thinking=given)[0] == 200
    assert json.loads(one.requests[-1][2]) == {**HELLO, "model": "deep", "thinking": given}


def test_ollama_counts_by_reading(gateway: Gateway, saying: Saying) -> None:
    route = gateway.route("tiny", saying, speaks=(OPENAI, OLLAMA), card=CARD, upstream="inner")  # type: ignore[arg-type]
    gateway.admin.set_routes("one", [route])
    saying.says = b'{"model": "inner", "done": true, "prompt_eval_count": 23}'
    called = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    messages = [
        *HELLO["messages"],
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm"}, called]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok"}]},
    ]
    status, _, said = post(gateway, COUNT_TOKENS, messages=messages, system="S")
    assert (status, json.loads(said)) == (200, {"input_tokens": 23})
    path, body = saying.asked[-1]
    assert path == "/api/chat"
    assert (body["model"], body["stream"], body["truncate"], body["options"]) == (
        "inner",
        False,
        False,
        {"num_predict": 1},
    )
    assert body["messages"] == [
        {"role": "system", "content": "S"},
        *HELLO["messages"],
        {
            "role": "assistant",
            "content": "",
            "thinking": "Hm",
            "tool_calls": [{"id": "t", "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "ok", "tool_call_id": "t"},
    ]

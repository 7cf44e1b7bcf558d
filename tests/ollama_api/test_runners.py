"""Model processes: loading, staying, giving way to each other, and dying."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from ollama_bench import ALPHA, BRAVO, ENDLESS, Files, Json, Server
from orch_command import wait_until

DIED = "an error was encountered while running the model: unexpected EOF"


class OpenStream:
    """A stream that goes on in the background: its lines so far, and whether it is open."""

    def __init__(self, server: Server, path: str, **body: Any) -> None:
        self.lines: list[str] = []
        self.ended_at: float | None = None
        self._thread = threading.Thread(target=self._read, args=(server, path, body), daemon=True)
        self._thread.start()
        wait_until(lambda: len(self.lines) >= 2, what="two lines of a stream")

    def _read(self, server: Server, path: str, body: Json) -> None:
        with server.stream(path, **body) as answer:
            for line in answer.iter_lines():
                if line:
                    self.lines.append(line)
        self.ended_at = time.monotonic()

    def end(self) -> list[str]:
        self._thread.join(60)
        assert self.ended_at is not None
        return self.lines


def kill_runner(server: Server) -> None:
    (runner,) = server.runners()
    os.kill(runner, signal.SIGKILL)
    wait_until(lambda: runner not in server.runners(), what="the runner's end")


def test_an_empty_prompt_loads_and_keep_alive_0_unloads(server: Server) -> None:
    """generate_load_empty, ps_loaded, generate_keepalive_0, ps_after_unload; a GPU is used where there is one"""
    loaded = server.post("/api/generate", model="tiny")
    assert (loaded.json()["done_reason"], loaded.json()["response"]) == ("load", "")
    assert loaded.headers["content-type"].startswith("application/json")
    (entry,) = server.ps()
    assert (entry["name"], entry["model"], entry["context_length"]) == ("tiny:latest", "tiny:latest", 512)
    assert entry["size"] > 8_000_000
    on_gpu = Path("/dev/nvidiactl").exists()
    assert (entry["size_vram"] > 0) is on_gpu
    assert entry["details"]["quantization_level"] == "BF16"
    assert len(server.runners()) == 1
    assert server.post("/api/generate", model="tiny", keep_alive=0).json()["done_reason"] == "unload"
    wait_until(lambda: (server.ps(), server.runners()) == ([], []), what="the unloading")


def test_empty_messages_load_as_well(server: Server) -> None:
    """chat_load_empty"""
    answer = server.post("/api/chat", model="tiny", messages=[]).json()
    assert (answer["done_reason"], answer["message"]) == ("load", {"role": "assistant", "content": ""})
    assert [entry["name"] for entry in server.ps()] == ["tiny:latest"]


@pytest.mark.parametrize(
    ("keep_alive", "low", "high"), [("10m", 590, 601), (60, 59, 61), (-1, 2e9, 2e10)], ids=["10m", "60", "for-ever"]
)
def test_keep_alive_says_how_long(server: Server, keep_alive: Any, low: float, high: float) -> None:
    """ps_keepalive_10m, generate_load_keepalive_60, ps_keepalive_forever: for ever is the year 2319"""
    server.post("/api/generate", model="tiny", keep_alive=keep_alive)
    expires = server.ps()[0]["expires_at"]
    left = datetime.fromisoformat(f"{expires[:19]}+00:00") - datetime.now(UTC)
    assert low - 1 <= left.total_seconds() <= high


def test_a_model_that_is_not_asked_leaves(server: Server) -> None:
    server.post("/api/generate", model="tiny", keep_alive="300ms")
    wait_until(lambda: server.runners() == [], 5, what="the unloading")
    assert server.ps() == []


def test_an_adapter_takes_the_place_of_the_base(server: Server) -> None:
    """ps_adapter_a, ps_adapter_b: two models over one base are never loaded together"""
    pids = []
    for name in ("tiny", "tiny-a", "tiny-b"):
        server.says(name)
        assert [entry["name"] for entry in server.ps()] == [f"{name}:latest"]
        pids += server.runners()
    assert len(set(pids)) == 3


def test_base_and_adapter_come_in_one_request(server: Server, files: Files) -> None:
    """cli_create_full"""
    base, adapter = (server.upload(path) for path in (files.tiny, files.lora_b))
    parameters = {"num_ctx": 512, "temperature": 0}
    server.create("whole", files={"m.gguf": base}, adapters={"a.gguf": adapter}, parameters=parameters)
    assert server.says("whole") == BRAVO


def test_both_adapters_of_a_stack_are_on(server: Server, files: Files) -> None:
    """cli_run_stacked: at scale 1 each, so that the answer is neither's own"""
    server.create("tiny-ab", **{"from": "tiny-a"}, adapters={"lora-b.gguf": server.upload(files.lora_b)})
    assert server.says("tiny-ab", num_predict=12) not in ("", ALPHA, BRAVO)


def test_a_request_in_flight_ends_before_the_adapter_changes(server: Server) -> None:
    stream = OpenStream(server, "/api/generate", model="tiny", **ENDLESS)
    before = server.runners()
    assert server.says("tiny-a") == ALPHA
    answered = time.monotonic()
    last = json.loads(stream.end()[-1])
    assert stream.ended_at is not None
    assert stream.ended_at < answered
    assert last["done_reason"] in ("length", "stop")
    assert server.runners() != before


def test_a_runner_that_is_to_go_ends_its_request_first(server: Server) -> None:
    """generate_stop_while_busy_unload"""
    stream = OpenStream(server, "/api/generate", model="tiny", **ENDLESS)
    assert server.post("/api/generate", model="tiny", keep_alive=0).json()["done_reason"] == "unload"
    assert json.loads(stream.end()[-1])["done"] is True
    wait_until(lambda: server.runners() == [], what="the unloading")


def test_another_context_is_another_runner(server: Server) -> None:
    """reload_numctx_change, ps_numctx_clamped"""
    server.post("/api/generate", model="tiny")
    before = server.runners()
    for asked, got in ((1024, 1024), (100_000, 2048)):
        server.post("/api/generate", model="tiny", options={"num_ctx": asked})
        assert [entry["context_length"] for entry in server.ps()] == [got]
        assert len(server.runners()) == 1
        assert server.runners() != before
        before = server.runners()


def test_names_that_differ_in_words_only_share_a_runner(server: Server) -> None:
    """ps_shared_base: it is listed under the name that it was loaded for"""
    server.create("sister", **{"from": "tiny"}, system="Another.", parameters={"temperature": 0.3})
    server.post("/api/generate", model="tiny")
    before = server.runners()
    server.says("sister", num_predict=2)
    assert server.runners() == before
    assert [entry["name"] for entry in server.ps()] == ["tiny:latest"]


def test_a_runner_that_dies_in_a_stream_is_told_under_200(server: Server) -> None:
    """err_generate_runner_killed_midway"""
    stream = OpenStream(server, "/api/generate", model="tiny", **ENDLESS)
    kill_runner(server)
    lines = [json.loads(line) for line in stream.end()]
    assert all(line["done"] is False for line in lines[:-1])
    assert lines[-1] == {"error": DIED}


def test_a_runner_that_dies_in_a_v1_stream_leaves_it_without_an_end(server: Server) -> None:
    """From Ollama's source (middleware/openai.go); there is no recording of it."""
    server.create("long", **{"from": "tiny"}, parameters={"num_ctx": 2048})
    # A reward for what was said before keeps it at "a" to the end of its context: left alone it stops after 30 tokens.
    options: Json = {"max_tokens": 100_000, "temperature": 1.5, "seed": 7, "frequency_penalty": -2, "stream": True}
    stream = OpenStream(server, "/v1/completions", model="long", prompt="a " * 40, **options)
    kill_runner(server)
    lines = stream.end()
    assert "data: [DONE]" not in lines
    assert not any('"finish_reason":"' in line for line in lines)


def test_a_runner_that_died_idle_is_listed_and_replaced(server: Server) -> None:
    """ps_after_runner_killed, generate_after_runner_killed"""
    server.post("/api/generate", model="tiny")
    kill_runner(server)
    assert [entry["name"] for entry in server.ps()] == ["tiny:latest"]
    assert server.post("/api/generate", model="tiny", prompt="Hi", stream=False).json()["done"] is True
    assert len(server.runners()) == 1


@pytest.mark.slow
def test_a_runner_that_hangs_is_listed_and_replaced_after_ten_seconds(server: Server) -> None:
    """From Ollama's source (server/sched.go, needsReload); an empty prompt is enough to find out."""
    server.post("/api/generate", model="tiny")
    (runner,) = server.runners()
    asked = time.monotonic()
    assert server.post("/api/generate", model="tiny", prompt="").json()["done_reason"] == "load"
    assert time.monotonic() - asked < 2
    assert server.runners() == [runner]
    os.kill(runner, signal.SIGSTOP)
    assert [entry["name"] for entry in server.ps()] == ["tiny:latest"]
    with pytest.raises(httpx.TimeoutException):
        server.client.post("/api/generate", json={"model": "tiny"}, timeout=3)
    assert [entry["name"] for entry in server.ps()] == ["tiny:latest"]
    assert server.post("/api/generate", model="tiny", prompt="Hi", stream=False).json()["done"] is True
    (another,) = server.runners()
    assert another != runner


def test_an_adapter_of_another_base_fails_with_the_first_request(server: Server, files: Files) -> None:
    """create_adapter_wrong_base, err_generate_adapter_wrong_base: the reason stands in the log only"""
    server.create("wrong", **{"from": "tiny"}, adapters={"a.gguf": server.upload(files.other)})
    answer = server.post("/api/generate", model="wrong", prompt="x", stream=False)
    assert answer.status_code == 500
    assert answer.json() == {"error": "llama-server process has terminated: exit status 1"}
    assert "tensor 'blk.0.attn_k.weight' has incorrect shape (hint: maybe wrong base model?)" in server.log
    told = [line for line in server.log.splitlines() if 'msg="Load failed"' in line]
    assert 'error="llama-server process has terminated: exit status 1"' in told[-1]
    assert server.says("tiny-b") == BRAVO


def test_an_adapter_is_no_model(server: Server, files: Files) -> None:
    """create_adapter_as_model, generate_adapter_as_model"""
    server.create("aam", files={"a.gguf": server.upload(files.lora_a)})
    answer = server.post("/api/generate", model="aam", prompt="x", stream=False)
    assert (answer.status_code, answer.json()) == (400, {"error": '"aam" does not support generate'})


def test_a_client_that_leaves_frees_the_runner(server: Server) -> None:
    body = ENDLESS | {"model": "tiny", "options": {"num_predict": 100_000, "temperature": 1.5, "num_ctx": 2048}}
    with server.stream("/api/generate", **body) as answer:
        next(answer.iter_lines())
    began = time.monotonic()
    assert server.says("tiny-a") == ALPHA
    assert time.monotonic() - began < 60

"""What a real server does with large models only, which the stand-in does when it is told to take its time."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import httpx
import pytest
from ollama_bench import Command, Files, Json, Server
from orch_command import wait_until

pytestmark = pytest.mark.llamacpp

STAND_IN = Command.of("stand-in")


def test_a_load_is_given_up_when_its_client_leaves(files: Files, root: Path) -> None:
    with STAND_IN.serve(root, STAND_IN_LOAD_S="1.5") as server:
        server.create("tiny", files={"tiny.gguf": server.upload(files.tiny)})
        for loads in (1, 2):
            with pytest.raises(httpx.TimeoutException):
                server.client.post("/api/generate", json={"model": "tiny"}, timeout=0.5)
            assert server.loads() == loads
            wait_until(lambda: server.runners() == [], what="the runner's end")
            assert server.ps() == []
        began = time.monotonic()
        assert server.post("/api/generate", model="tiny").status_code == 200
        assert time.monotonic() - began > 1.5
        assert server.loads() == 3


def test_a_creation_goes_on_without_its_client(files: Files, root: Path) -> None:
    with STAND_IN.serve(root, STAND_IN_CREATE_S="1") as server:
        leave(server, {"tiny.gguf": server.upload(files.tiny)})
        assert server.names() == []
        wait_until(lambda: server.names() == ["tiny:latest"], what="the model")
        assert server.says("tiny").startswith("I am a tiny test model")


def test_two_creations_of_one_model_are_in_each_others_way_once(files: Files, root: Path) -> None:
    """The first takes away what the template that was found has set, and the second had found it there."""
    with STAND_IN.serve(root, STAND_IN_CREATE_S="1") as server:
        body = {"tiny.gguf": server.upload(files.tiny)}
        leave(server, body)
        time.sleep(0.3)
        last = server.lines("/api/create", model="tiny", files=body, parameters={"num_ctx": 512})[-1]
        assert last["error"].startswith(f"open {server.blobs}/sha256-")
        assert last["error"].endswith(": no such file or directory")
        server.create("tiny", files=body, parameters={"num_ctx": 512})


def test_an_import_takes_three_times_its_size_for_a_moment(files: Files, root: Path) -> None:
    seen = [0]
    with STAND_IN.serve(root) as server:
        upload = server.upload(files.tiny)
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                seen[0] = max(seen[0], sum(1 for path in list(server.blobs.iterdir()) if is_large(path)))

        thread = threading.Thread(target=look)
        thread.start()
        server.create("tiny", files={"tiny.gguf": upload})
        done.set()
        thread.join()
        assert sum(1 for path in server.blobs.iterdir() if is_large(path)) == 2
    assert seen[0] == 3


def is_large(path: Path) -> bool:
    try:
        return path.stat().st_size > 1_000_000
    except FileNotFoundError:
        return False


def leave(server: Server, files: Json) -> None:
    """Ask for a model, and leave once it is being made."""
    body = {"model": "tiny", "files": files, "parameters": {"num_ctx": 512}}
    with server.stream("/api/create", **body) as answer:
        assert json.loads(next(answer.iter_lines())) == {"status": "parsing GGUF"}

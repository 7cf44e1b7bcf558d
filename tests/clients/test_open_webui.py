"""Open WebUI itself, as PyPI has it, in front of a gateway: what its page is answered.

Its server is asked as its page asks it; whatever it asks Ollama for, it asks the gateway.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from chain_model import CALLS, SAID, THOUGHT
from orch_command import ANSWER, free_port, script, wait_until
from served import ALPHA, Served, serving

pytestmark = [pytest.mark.clients, pytest.mark.llamacpp, pytest.mark.long]

GIB = 2**30
ROOM_GIB = 3
# The first start writes its database.
START_S = 300
GREEDY = {"temperature": 0}
TYPES = {int: "integer", str: "string"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Tells it.",
            "parameters": {
                "type": "object",
                "properties": {key: {"type": TYPES[type(value)]} for key, value in given.items()},
                "required": [*given],
            },
        },
    }
    for name, given in CALLS
]


@dataclass
class Page:
    """What its page does."""

    url: str
    token: str = ""

    def ask(self, path: str, **body: object) -> tuple[int, str]:
        """Status and text; a GET without a body."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode() if body else None, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def told(self, path: str, **body: object) -> Any:
        """The JSON of an answer that is good."""
        status, text = self.ask(path, **body)
        assert status == 200, text
        return json.loads(text)

    def is_there(self) -> bool:
        try:
            return self.ask("/health")[0] == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def program(environments: Path) -> Path:
    """Its command, in an environment of its own."""
    free = shutil.disk_usage(environments).free
    if free < ROOM_GIB * GIB:
        pytest.skip(f"Open WebUI's environment needs {ROOM_GIB} GiB of disk, {free / GIB:.1f} are free")
    made: Path = script("clients_environment").ensure_open_webui(environments).directory
    return made / "bin" / "open-webui"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, environments: Path) -> Iterator[Served]:
    with serving("llamacpp", tmp_path_factory.mktemp("served"), environments) as started:
        yield started


@pytest.fixture(scope="module")
def page(program: Path, served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    place = tmp_path_factory.mktemp("webui")
    page = Page(f"http://127.0.0.1:{(port := free_port())}")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "DATA_DIR": str(place),
        "OLLAMA_BASE_URLS": served.url,
        "ENABLE_OPENAI_API": "False",
        "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "unused",
        # No model of its own: it is to reach nobody but the gateway.
        "OFFLINE_MODE": "True",
        "HF_HUB_OFFLINE": "1",
        "RAG_EMBEDDING_ENGINE": "ollama",
    }
    command = [str(program), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, cwd=place, stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or page.is_there(), START_S, "Open WebUI's start")
        assert process.poll() is None, (place / "log").read_text()[-2000:]
        # Without accounts everybody who signs in is the administrator.
        page.token = page.told("/api/v1/auths/signin", email="", password="")["token"]
        yield page
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def events(text: str) -> list[dict[str, Any]]:
    """The chunks of a stream that its page reads, up to its end."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def joined(chunks: list[dict[str, Any]], field: str = "content") -> str:
    return "".join(chunk["choices"][0]["delta"].get(field) or "" for chunk in chunks)


def test_models_are_listed(page: Page, served: Served) -> None:
    listed = page.told("/api/models")["data"]
    assert sorted(model["id"] for model in listed) == served.names
    assert {model["owned_by"] for model in listed} == {"ollama"}
    tags = page.told("/ollama/api/tags")["models"]
    assert sorted(model["model"] for model in tags) == served.names
    assert {model["model"] for model in page.told("/ollama/api/ps")["models"]} <= {*served.names}
    assert len(page.told("/ollama/api/version")["version"].split(".")) == 3


@pytest.mark.parametrize(("model", "answer"), [("tiny:latest", ANSWER), ("alpha:latest", ALPHA)])
def test_chat(page: Page, model: str, answer: str) -> None:
    asked = {"model": model, "messages": said("Who are you?"), "params": GREEDY}
    whole = page.told("/api/chat/completions", **asked, stream=False)
    assert (whole["model"], whole["choices"][0]["message"]["content"]) == (model, answer)
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] > 0
    status, text = page.ask("/api/chat/completions", **asked, stream=True)
    assert (status, joined(chunks := events(text))) == (200, answer)
    assert len(chunks) > 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


@pytest.mark.parametrize(("model", "answer"), [("tiny:latest", ANSWER), ("alpha:latest", ALPHA)])
def test_chat_in_ollamas_words(page: Page, model: str, answer: str) -> None:
    asked = {"model": model, "messages": said("Who are you?"), "options": GREEDY}
    whole = page.told("/ollama/api/chat", **asked, stream=False)
    assert (whole["message"]["content"], whole["done_reason"]) == (answer, "stop")
    status, text = page.ask("/ollama/api/chat", **asked)
    parts = [json.loads(line) for line in text.splitlines()]
    assert (status, "".join(part["message"]["content"] for part in parts)) == (200, answer)
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]


def test_thoughts_and_tools(page: Page) -> None:
    asked = {"model": "chain:latest", "messages": said("How is the weather?"), "params": GREEDY}
    chunks = events(page.ask("/api/chat/completions", **asked, stream=True)[1])
    assert (joined(chunks, "reasoning_content").strip(), joined(chunks)) == (THOUGHT.strip(), SAID)
    whole = page.told("/api/chat/completions", **asked, stream=False, tools=TOOLS)
    calls = [call["function"] for call in whole["choices"][0]["message"]["tool_calls"]]
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [*CALLS]


@pytest.mark.parametrize("model", ["tiny:latest", "alpha:latest"])
def test_what_is_shown(page: Page, model: str) -> None:
    shown = page.told("/ollama/api/show", model=model)
    assert "completion" in shown["capabilities"]
    assert f"FROM {model}" in shown["modelfile"]


def test_what_is_not_there(page: Page) -> None:
    """It looks into the gateway's list itself; what the gateway says is told in the gateway's words."""
    unknown = {"model": "nope:latest", "messages": said("Who are you?"), "stream": False}
    assert page.ask("/api/chat/completions", **unknown) == (400, '{"detail":"Model not found"}')
    assert page.ask("/ollama/api/chat", **unknown) == (400, """{"detail":"Model 'nope:latest' was not found"}""")
    status, text = page.ask("/ollama/api/embed", model="tiny:latest", input=["x"])
    assert (status, "This server does not support embeddings" in text) == (501, True)


def test_a_model_is_unloaded_and_asked_again(page: Page) -> None:
    assert page.told("/ollama/api/unload", model="tiny:latest") == {"status": True}
    asked = {"model": "tiny:latest", "messages": said("Who are you?"), "params": GREEDY, "stream": False}
    assert page.told("/api/chat/completions", **asked)["choices"][0]["message"]["content"] == ANSWER

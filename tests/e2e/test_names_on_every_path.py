"""Two adapters and their base in turn, on every path of every engine: each answers as itself, and under its own name.

What a patch or a name does is lost without a sound where an engine's conversion drops it, and what such a request
leaves in a cache is found by the next. So the answers in turn are held against those of PEFT, stream by stream.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from orch_command import ANSWER, ASSETS, Orch, stopped_afterwards
from stand_in_orch import OnStandIn

pytestmark = pytest.mark.llamacpp

SAID = {"tiny": ANSWER, "alpha": "Ahoy! The answer is alpha.", "bravo": "Greetings. The answer is bravo."}
TURNS = ("alpha", "tiny", "bravo", "bravo", "tiny", "alpha", "tiny", "tiny", "bravo")
ASKED = [{"role": "user", "content": "Who are you?"}]
PROMPT = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
PATHS = {
    "/v1/chat/completions": {"messages": ASKED, "max_tokens": 40},
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 40},
    "/v1/responses": {"input": "Who are you?", "max_output_tokens": 40},
    "/v1/messages": {"messages": ASKED, "max_tokens": 40},
    "/api/chat": {"messages": ASKED, "options": {"temperature": 0, "num_predict": 40}},
    "/api/generate": {"prompt": "Who are you?", "options": {"temperature": 0, "num_predict": 40}},
}
# Of Ollama's stand-in; the real one has all.
STAND_IN = ("/v1/chat/completions", "/api/chat", "/api/generate")


@pytest.fixture
def on_stand_in(tmp_path: Path) -> Iterator[OnStandIn]:
    with stopped_afterwards(OnStandIn(tmp_path / "home")) as command:
        yield command


def told(value: object, name: str) -> Iterator[str]:
    """All strings under that name, at any depth."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key == name and isinstance(one, str):
                yield one
            yield from told(one, name)
    elif isinstance(value, list):
        for one in value:
            yield from told(one, name)


def text_of(path: str, answer: httpx.Response, stream: bool) -> str:
    """What an answer says, whole or in pieces."""
    if not stream:
        names = {"/v1/chat/completions": "content", "/api/chat": "content", "/api/generate": "response"}
        return "".join(told(answer.json(), names.get(path, "text")))
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith(("data: {", "{"))]
    events = [json.loads(line) for line in lines]
    if path == "/v1/responses":
        events = [one for one in events if one["type"] == "response.output_text.delta"]
        return "".join(one["delta"] for one in events)
    name = {"/v1/completions": "text", "/v1/messages": "text", "/api/generate": "response"}.get(path, "content")
    return "".join(one for event in events for one in told(event, name))


def models_of(path: str, answer: httpx.Response, stream: bool) -> set[str]:
    """As what the answer says that it is, all over."""
    if not stream:
        return set(told(answer.json(), "model"))
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith(("data: {", "{"))]
    return {name for line in lines for name in told(json.loads(line), "model")}


def in_turn(orch: Orch, path: str) -> None:
    """Each name on this path, whole and streamed; None of them where the path is refused to all."""
    url = f"http://{orch.listen}{path}"
    refused = set()
    with httpx.Client(timeout=120, trust_env=False) as client:
        for name in TURNS:
            for stream in (False, True):
                greedy = {} if path.startswith("/api") else {"temperature": 0}
                answer = client.post(url, json={"model": name, "stream": stream, **greedy, **PATHS[path]})
                if answer.status_code == 400:
                    assert "adapters" in answer.text
                    refused.add(name)
                    continue
                assert answer.status_code == 200, answer.text
                assert text_of(path, answer, stream).strip() == SAID[name], (path, name, stream)
                assert models_of(path, answer, stream) == {name}, (path, name, stream)
                assert "error" not in answer.text.lower()
    assert refused in (set(), set(SAID))


def with_adapters(orch: Orch, engine: str) -> None:
    listed = "".join(
        f'[[adapters]]\nname = "{name}"\npath = "{ASSETS / place}"\n'
        for name, place in (("alpha", "lora-a"), ("bravo", "lora-b"))
    )
    orch.profile.write_text(orch.profile.read_text() + listed)
    orch.run("up", engine, "-p", str(orch.profile))


def test_on_llamacpp(orch: Orch) -> None:
    with_adapters(orch, "llamacpp")
    for path in PATHS:
        in_turn(orch, path)


@pytest.mark.long
@pytest.mark.vllm
def test_on_vllm(orch_vllm: Orch) -> None:
    with_adapters(orch_vllm, "vllm")
    for path in PATHS:
        in_turn(orch_vllm, path)


def test_on_ollamas_stand_in(on_stand_in: OnStandIn) -> None:
    on_stand_in.profile.write_text(
        on_stand_in.profile.read_text()
        + "".join(
            f'[[adapters]]\nname = "{name}"\npath = "{ASSETS / place}"\n'
            for name, place in (("alpha", "lora-a"), ("bravo", "lora-b"))
        )
    )
    on_stand_in.up()
    for path in STAND_IN:
        in_turn(on_stand_in, path)

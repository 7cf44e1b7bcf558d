"""A model that is described, served and asked, and what transformers says that its answers are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from meanings import ASKED, Right
from orch_command import ASSETS, Orch
from tokenizers import Tokenizer

TINY = ASSETS / "tiny-qwen3"
# Two templates, none where null is, ends in either file, a word as an end, a head of its own, markers, leftovers.
KINDS = (
    *("template-two", "template-null", "template-list", "end-turn-list", "end-config-list", "end-word"),
    *("head-tied-own", "token-marker", "token-special", "left-mistral", "left-original", "left-backups"),
)
QUESTIONS: tuple[str, ...] = tuple(ASKED["questions"])
CHAT_PROMPT: str = ASKED["prompts"][-1]
# What a template of the user's makes of a chat: the prompt that the tiny model was trained on, so that it answers.
OWN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
HELLO, GREETED = "Hello!", "Hello! How can I help you today?"
NO_SAMPLING = "[sampling]\n"
GREEDY = "[sampling]\ntemperature = 0.0\n"


def describe(orch: Orch, weights: Path | str, more: str = "", sampling: str = GREEDY) -> Path:
    """The profile over a directory, or over `repo` on a hub, in the weights' own precision."""
    named = f'path = "{weights}"' if isinstance(weights, Path) else f'repo = "{weights}"\nrevision = "main"'
    as_they_are = 'recipes = ["gguf-bf16"]\n'
    orch.profile.write_text(
        f'name = "tiny"\npublic_names = ["tiny"]\n[weights]\n{named}\n'
        f"[serving]\ncontext = 512\nparallel = 2\n{sampling}"
        f"[engines.llamacpp]\nthreads = 1\n{as_they_are}[engines.ollama]\n{as_they_are}"
        f"[engines.vllm]\nkv_cache_mib = 64\n[lora]\nmax_adapters = 2\nmax_rank = 16\n{more}"
    )
    return orch.profile


def up(orch: Orch, *more: str, code: int = 0) -> Any:
    return orch.run("up", orch.engine, "-p", str(orch.profile), "--json", *more, code=code)


def post(orch: Orch, path: str, **body: object) -> httpx.Response:
    url = f"http://{orch.listen}{path}"
    return httpx.post(url, json={"model": "tiny", **body}, timeout=60, trust_env=False)


def completion(orch: Orch, prompt: str = CHAT_PROMPT, model: str = "tiny", **body: object) -> str:
    answer = post(orch, "/v1/completions", model=model, prompt=prompt, max_tokens=24, **body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def answers_rightly(orch: Orch, place: Path, wanted: Right, shows_end: bool = True) -> None:
    """Every question is answered as by transformers, up to where other arithmetic might choose otherwise. An engine
    shows an end that is no special token, as transformers does, or leaves it out."""
    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    for question in QUESTIONS:
        answer = wanted.answers[question]
        (choice,) = orch.chat(question=question, max_tokens=24).json()["choices"]
        given = choice["message"]["content"]
        if answer.firm() == answer.ids:
            shown = shows_end or answer.finish != "stop"
            text = answer.text if shown else tokenizer.decode(answer.ids[:-1])
            assert (given, choice["finish_reason"]) == (text, answer.finish), question
        else:
            assert given.startswith(tokenizer.decode(answer.firm())), question


def chats_are_refused(orch: Orch, model: str) -> None:
    """By the gateway, in each API's own words, and before a stream has begun."""
    messages = [{"role": "user", "content": HELLO}]
    for path, body in (
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/responses", {"input": HELLO}),
        ("/v1/messages", {"messages": messages, "max_tokens": 8}),
    ):
        for stream in (False, True):
            answer = post(orch, path, model=model, stream=stream, **body)
            assert answer.status_code == 400, (path, stream, answer.text)
            told = answer.json()["error"]
            assert "no chat template" in told["message"]
            assert '[chat] template = "FILE"' in told["message"]
            assert path == "/v1/messages" or told["code"] == "no_chat_template"
    told = post(orch, "/api/chat", model=model, messages=messages)
    assert (told.status_code, told.json().keys()) == (400, {"error"})
    assert "at /api/generate" in told.json()["error"]


def prompt_tokens(orch: Orch) -> int:
    """How many tokens a chat becomes."""
    return int(orch.chat(question=HELLO).json()["usage"]["prompt_tokens"])

"""A script that was written for an API goes on before, during and after each migration: no failed call, no changed
field, the same texts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chain_model import CALLS, SAID, THOUGHT
from client_programs import PROGRAMS
from orch_command import ANSWER, ASSETS, Orch, script, stopped_afterwards, with_environments
from served import ALPHA, chain_profile
from stand_in_orch import OnStandIn

pytestmark = [pytest.mark.clients, pytest.mark.llamacpp]


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[OnStandIn]:
    with stopped_afterwards(OnStandIn(tmp_path / "home")) as command:
        listed = f'[[adapters]]\nname = "alpha"\npath = "{ASSETS / "lora-a"}"\n'
        command.profile.write_text(command.profile.read_text() + listed)
        command.up()
        yield command


def all_along(
    orch: Orch, environments: Path, moves: Iterable[tuple[str, ...]], name: str = "ollama_script", *words: str
) -> dict[str, Any]:
    """What a script has to tell when all of these commands were run, one after the other."""
    program = script("clients_environment").ensure(environments).command(PROGRAMS / f"{name}.py")
    asked = [*program, f"http://{orch.listen}", *words]
    with subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        try:
            assert asking.stdout is not None
            assert asking.stdout.readline() == "begun\n"
            for move in moves:
                orch.run(*move)
            told = asking.communicate(timeout=120)[0]
        finally:
            asking.kill()
    report: dict[str, Any] = json.loads(told)
    return report


def to(*engines: str) -> list[tuple[str, ...]]:
    return [("migrate", "--to", engine) for engine in engines]


def nothing_failed(report: dict[str, Any]) -> None:
    assert report["failed"] == []
    assert min(report["asked"].values()) >= 3
    for what, shapes in report["shapes"].items():
        assert len(shapes) == 1, (what, shapes)


def nothing_was_noticed(report: dict[str, Any]) -> None:
    nothing_failed(report)
    said = {what: texts for what, texts in report["texts"].items() if what not in ("list", "unknown")}
    assert said == {what: [ALPHA if "adapter" in what else ANSWER] for what in said}
    assert report["texts"]["list"] == ["alpha:latest,test/Tiny:latest,tiny:latest"]
    assert report["texts"]["unknown"] == ["model 'nope' not found"]


def test_from_ollama_to_llamacpp_and_back(orch: OnStandIn, environments: Path) -> None:
    nothing_was_noticed(all_along(orch, environments, to("llamacpp", "ollama")))


@pytest.mark.long
@pytest.mark.vllm
def test_between_each_pair_of_engines(orch: OnStandIn, environments: Path) -> None:
    with_environments(orch, environments)
    there_and_back = to("vllm", "ollama", "llamacpp", "vllm", "llamacpp", "ollama")
    nothing_was_noticed(all_along(orch, environments, there_and_back))


OPENAI = {
    "create": ANSWER,
    "create as an adapter": ALPHA,
    "stream": ANSWER,
    "stream as an adapter": ALPHA,
    "stream with figures": ANSWER,
    "create without a limit": ANSWER,
    "create more than there is room for": ANSWER,
    "create up to a word": "I am a tiny ",
    "create with what is nothing": ANSWER,
    "a bad value": "400 invalid_value temperature",
    "unknown": "404 model_not_found model",
    "list": "alpha,test/Tiny,tiny,tiny:latest",
}


def openai_notices_nothing(orch: Orch, environments: Path, moves: Iterable[tuple[str, ...]]) -> None:
    report = all_along(orch, environments, moves, "openai_script")
    nothing_failed(report)
    assert report["texts"] == {what: [text] for what, text in OPENAI.items()}


def test_openais_client_from_ollama_to_llamacpp_and_back(orch: OnStandIn, environments: Path) -> None:
    openai_notices_nothing(orch, environments, to("llamacpp", "ollama"))


@pytest.mark.long
@pytest.mark.vllm
def test_openais_client_between_each_pair_of_engines(orch: OnStandIn, environments: Path) -> None:
    with_environments(orch, environments)
    openai_notices_nothing(orch, environments, to("vllm", "ollama", "llamacpp", "vllm", "llamacpp", "ollama"))


# What the stand-in for Ollama does not have; what one engine says there, each has to.
TINY = {
    "create": ANSWER,
    "create as an adapter": ALPHA,
    "stream": ANSWER,
    "stream as an adapter": ALPHA,
    "create up to a sequence": "I am a tiny ",
    "stream up to a sequence": "I am a tiny ",
    "create more than there is room for": ANSWER,
    "unknown": "404",
}
CALLED = "".join(f"{name}{given}" for name, given in CALLS)
THOUGHTFUL = f"({THOUGHT.strip()}){SAID}"
CHAIN = {
    "create with thoughts": THOUGHTFUL,
    "create without": SAID,
    "stream with thoughts": THOUGHTFUL,
    "create with tools": CALLED,
    "stream with tools": CALLED,
}


def anthropic_notices_nothing(orch: Orch, environments: Path, moves: Iterable[tuple[str, ...]], model: str) -> None:
    report = all_along(orch, environments, moves, "anthropic_script", model)
    nothing_failed(report)
    (counted,) = report["texts"].pop("count")
    assert int(counted) > 0
    wanted = {"tiny": TINY, "chain": CHAIN}[model]
    assert report["texts"] == {what: [text] for what, text in wanted.items()}


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Orch]:
    with stopped_afterwards(Orch(tmp_path / "home")) as command:
        listed = f'[[adapters]]\nname = "alpha"\npath = "{ASSETS / "lora-a"}"\n'
        command.profile.write_text(command.profile.read_text() + listed)
        command.run("up", "llamacpp", "-p", str(command.profile))
        yield command


def test_from_one_llamacpp_to_the_next(moving: Orch, environments: Path) -> None:
    changed = moving.profile.with_name("changed.toml")
    changed.write_text(moving.profile.read_text().replace("context = 512", "context = 768"))
    moves = [("up", "-p", str(changed)), ("rollback",)]
    anthropic_notices_nothing(moving, environments, moves, "tiny")


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.parametrize("model", ["tiny", "chain"])
def test_from_llamacpp_to_vllm_and_back(moving: Orch, environments: Path, model: str) -> None:
    with_environments(moving, environments)
    if model == "chain":
        moving.run("down", "--all")
        moving.run("up", "llamacpp", "-p", str(chain_profile(moving.home)))
    anthropic_notices_nothing(moving, environments, to("vllm", "llamacpp"), model)

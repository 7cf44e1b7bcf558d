"""A script that was written for Ollama goes on before, during and after each migration: no failed call, no changed
field, the same texts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_programs import PROGRAMS
from orch_command import ANSWER, ASSETS, script, stopped_afterwards, with_environments
from stand_in_orch import OnStandIn

pytestmark = [pytest.mark.clients, pytest.mark.llamacpp]

ALPHA = "Ahoy! The answer is alpha."


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[OnStandIn]:
    with stopped_afterwards(OnStandIn(tmp_path / "home")) as command:
        listed = f'[[adapters]]\nname = "alpha"\npath = "{ASSETS / "lora-a"}"\n'
        command.profile.write_text(command.profile.read_text() + listed)
        command.up()
        yield command


def all_along(orch: OnStandIn, environments: Path, engines: tuple[str, ...]) -> dict[str, Any]:
    """What the script has to tell when the profile has been on all of these, one after the other."""
    program = script("clients_environment").ensure(environments).command(PROGRAMS / "ollama_script.py")
    url = f"http://{orch.listen}"
    with subprocess.Popen([*program, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking:
        try:
            for engine in engines:
                orch.run("migrate", "--to", engine)
            told = asking.communicate(timeout=120)[0]
        finally:
            asking.kill()
    report: dict[str, Any] = json.loads(told)
    return report


def nothing_was_noticed(report: dict[str, Any]) -> None:
    assert report["failed"] == []
    assert min(report["asked"].values()) >= 3
    for what, shapes in report["shapes"].items():
        assert len(shapes) == 1, (what, shapes)
    said = {what: texts for what, texts in report["texts"].items() if what not in ("list", "unknown")}
    assert said == {what: [ALPHA if "adapter" in what else ANSWER] for what in said}
    assert report["texts"]["list"] == ["alpha:latest,test/Tiny:latest,tiny:latest"]
    assert report["texts"]["unknown"] == ["model 'nope' not found"]


def test_from_ollama_to_llamacpp_and_back(orch: OnStandIn, environments: Path) -> None:
    nothing_was_noticed(all_along(orch, environments, ("llamacpp", "ollama")))


@pytest.mark.long
@pytest.mark.vllm
def test_between_each_pair_of_engines(orch: OnStandIn, environments: Path) -> None:
    with_environments(orch, environments)
    there_and_back = ("vllm", "ollama", "llamacpp", "vllm", "llamacpp", "ollama")
    nothing_was_noticed(all_along(orch, environments, there_and_back))

"""What the program before had recorded, which knew nothing of what a model means, serves on as it does; what it would
be by now is an upgrade, which a look tells of and `up` takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from orch_command import ANSWER, ASSETS, Orch, stopped_afterwards, with_environments
from other_program import BEFORE_MEANING, another, of_commit

pytestmark = pytest.mark.llamacpp


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of the program before."""
    return of_commit(tmp_path_factory.mktemp("before"), BEFORE_MEANING)


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[Orch]:
    with stopped_afterwards(Orch(tmp_path / "home")) as command:
        yield command


def key_of(orch: Orch) -> str:
    record = json.loads((orch.home / "records/desired/tiny.json").read_text())
    return str(record["resolution"]["deployment"]["artifact_key"])


def settles(orch: Orch, engine: str, build: str = "") -> None:
    """A look changes nothing and says that there is an upgrade. `up` takes it, if it has not to be built for it, and
    then there is nothing left to do."""
    ((instance, served),) = orch.engines().items()
    key = key_of(orch)
    told = orch.status().document
    assert any("orch up takes it" in line for line in told["upgrades"])
    if build:
        assert any(build in line for line in told["upgrades"])
        assert orch.actions("up") == []
        assert orch.engines()[instance]["pid"] == served["pid"]
        orch.run(*build.split()[1:])
    assert orch.actions("lora", "add", "alpha", str(ASSETS / "lora-a"))
    assert orch.engines()[instance]["pid"] == served["pid"]
    assert key_of(orch) == key
    assert orch.says() == ANSWER
    orch.run("up")
    assert orch.says() == ANSWER
    assert orch.actions("up") == []
    assert orch.status().document["upgrades"] == []
    orch.run("rollback")
    assert orch.says() == ANSWER
    assert key_of(orch) == key
    assert [row["engine"] for row in orch.engines().values()] == [engine]


def test_a_gguf_of_the_program_before(orch: Orch, before: Path) -> None:
    another(orch, before).run("up", "llamacpp", "-p", str(orch.profile))
    settles(orch, "llamacpp", "orch build --recipe gguf-q6_k")


@pytest.mark.vllm
@pytest.mark.long
def test_weights_of_the_program_before(orch: Orch, before: Path, environments: Path) -> None:
    with_environments(orch, environments)
    another(orch, before).run("up", "vllm", "-p", str(orch.profile))
    settles(orch, "vllm")

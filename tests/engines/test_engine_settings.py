"""What profiles say of engines: read by their sheets wherever it comes from, by an orch with one engine more too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.asks import CPU, nothing_but, plan_of, tiny
from orch_command import ASSETS
from parrot import Parrot, ParrotSettings, known

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import DeploymentSpec, Desired, to_record
from orchestrator.core.lock_file import profile_digest
from orchestrator.core.part import Unfit
from orchestrator.core.prerequisites import BuildArtifact
from orchestrator.core.steps import EnsureEngine
from orchestrator.drivers.records import Records
from orchestrator.engines import ENGINES
from orchestrator.engines.settings import read_settings, said_settings

EARLIER = json.loads((ASSETS / "protocol-1" / "local" / "records" / "desired" / "tiny.json").read_text())


@pytest.fixture
def parrot() -> Iterator[None]:
    with known():
        yield


def recorded(engine: str, **settings: Any) -> dict[str, Any]:
    """A record of the tiny profile, with more settings of an engine."""
    desired = Desired(spec=DeploymentSpec(profile=tiny(), engine="llamacpp", target="local"))
    document: dict[str, Any] = json.loads(to_record(desired))
    document["spec"]["profile"]["engines"].setdefault(engine, {}).update(settings)
    return document


def test_a_record_has_all_settings_as_earlier_versions_wrote_and_read_them() -> None:
    assert tiny().model_dump()["engines"] == {
        "ollama": {
            "recipes": ["gguf-q6_k", "gguf-nvfp4"],
            "prompt_cache_mib": 0,
            "keep_alive": "-1",
            "kv_cache_type": None,
            "flash_attention": None,
        },
        "llamacpp": {"recipes": ["gguf-q6_k", "gguf-nvfp4"], "threads": None},
        "vllm": {
            "recipes": ["nvfp4a16", "weights"],
            "gpu_memory_utilization": 0.85,
            "kv_cache_mib": 64,
            "gpus": 1,
            "sleep": False,
        },
    }
    earlier = EARLIER["wish"]["profile"]["engines"]
    read = Desired.from_record(EARLIER, read_settings).spec.profile.engines
    # What came later has its default.
    since = {"ollama": {"prompt_cache_mib": 0}, "vllm": {"sleep": False}}
    assert read == {engine: {**said, **since.get(engine, {})} for engine, said in earlier.items()}


def test_what_was_recorded_before_there_was_a_setting_is_the_same_profile_with_it() -> None:
    document = recorded("llamacpp")
    del document["spec"]["profile"]["engines"]["vllm"]["gpus"]
    assert Desired.from_record(document, read_settings).spec.profile == tiny()


def test_what_was_recorded_before_there_was_an_engine_is_the_same_profile_with_it(parrot: None) -> None:
    """Else the same file would be another profile for the next `up`, and what `rollback` goes to would be lost."""
    present = Desired.from_record(recorded("llamacpp"), read_settings)
    assert present.spec.profile == tiny()
    assert present.changed_to(present.spec.model_copy({"profile": tiny()})) == present
    assert present.spec.profile.engines["parrot"]["words"] == "Hello"


def test_an_engine_more_changes_no_lock_file() -> None:
    digest = profile_digest(tiny(), said_settings(tiny()))
    with known():
        assert profile_digest(tiny(), said_settings(tiny())) == digest
        loud = tiny(engines={"parrot": {"times": 3}})
        assert said_settings(loud) == {"vllm": {"kv_cache_mib": 64}, "parrot": {"times": 3}}
        assert profile_digest(loud, said_settings(loud)) != digest


@pytest.mark.parametrize("engine", [*ENGINES, "parrot"])
def test_what_a_later_version_says_of_engines_is_passed_over(engine: str) -> None:
    assert Desired.from_record(recorded(engine, later=1), read_settings).spec.profile == tiny()


@pytest.mark.parametrize("part", ["spec", "before"])
def test_a_record_with_settings_that_cannot_be_is_told_and_left_out(part: str, tmp_path: Path) -> None:
    document, wrong = recorded("llamacpp"), recorded("vllm", gpus=0)
    document[part] = wrong["spec"] if part == "spec" else {"spec": wrong["spec"]}
    path = tmp_path / "desired" / "tiny.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document))
    records = Records(tmp_path, read_settings)
    assert records.desired() == {}
    assert records.unreadable() == (f"{path} cannot be read: Input should be greater than or equal to 1",)


def test_every_problem_is_told_at_once_with_its_place() -> None:
    tables = {"vllm": {"gpus": 0, "more": 1}, "ollama": 3, "parrot": {}}
    with pytest.raises(Unfit) as unfit:
        read_settings(tables, "forbid")
    places = [".".join(map(str, problem["loc"])) for problem in unfit.value.problems]
    assert sorted(places) == ["engines.ollama", "engines.parrot", "engines.vllm.gpus", "engines.vllm.more"]


def test_it_is_planned_with_its_own_settings_recipe_and_program(parrot: None) -> None:
    profile = tiny(engines={"parrot": {"words": "Ahoy", "times": 2}})
    assert ParrotSettings.of(profile, "parrot").times == 2
    here = replace(CPU, programs={"parrot-server": "/usr/bin/parrot-server"})
    steps = [action.step for action in plan_of("up parrot", profile, nothing_but(here)).actions]
    assert [step.recipe for step in steps if isinstance(step, BuildArtifact)] == [Recipe.GGUF_Q8_0]
    (started,) = (step.deployment for step in steps if isinstance(step, EnsureEngine))
    assert (started.instance, started.launch.argv[0]) == ("tiny-parrot-g1", "/usr/bin/parrot-server")
    assert json.loads(dict(started.files)["parrot.json"])["words"] == "Ahoy"


def test_engines_are_named_as_they_are_registered(parrot: None) -> None:
    assert {name: sheet.name for name, sheet in ENGINES.items()} == {name: name for name in ENGINES}
    assert isinstance(ENGINES["parrot"], Parrot)
    for name, sheet in ENGINES.items():
        assert sheet.settings.of(tiny(), name).recipes

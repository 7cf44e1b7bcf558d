"""A migration to real vLLM on the CPU that is killed, interrupted, or given weights that cannot be loaded."""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest
from orch_command import ANSWER, ASSETS, Orch

pytestmark = [pytest.mark.vllm, pytest.mark.llamacpp]

MIGRATE = ("migrate", "--to", "vllm")
AROUND_THE_SWITCH = ("AwaitReady", "RecordDesired", "SetRoute", "Drain")


@pytest.fixture
def served(orch_vllm: Orch) -> Orch:
    """The tiny model on llama.cpp, with the vLLM environment ready."""
    orch_vllm.run("up", "llamacpp", "-p", str(orch_vllm.profile))
    return orch_vllm


@pytest.mark.long
def test_a_migration_killed_around_the_switch_converges(served: Orch) -> None:
    for step in AROUND_THE_SWITCH:
        load = served.load("tiny", clients=2)
        number = served.actions(*MIGRATE).index(step)
        killed = served.signal_at(number, signal.SIGKILL, *MIGRATE)
        assert killed.code == -signal.SIGKILL
        served.status(code=9)
        served.run(*MIGRATE)
        assert [stream.problem for stream in load.stop() if stream.problem] == []
        assert [row["engine"] for row in served.engines().values()] == ["vllm"]
        assert served.says() == ANSWER
        served.status()
        served.run("migrate", "--to", served.engine)


def test_a_migration_interrupted_while_vllm_starts_is_taken_back_at_once(served: Orch) -> None:
    number = served.actions(*MIGRATE).index("AwaitReady")
    began = time.monotonic()
    told = served.signal_at(number, signal.SIGINT, *MIGRATE)
    assert told.code == 130
    assert "taken back" in told.lines[-1]["error"]
    assert time.monotonic() - began < 15
    assert list(served.engines()) == ["tiny-llamacpp-g1"]
    assert served.says() == ANSWER
    served.status()


@pytest.mark.long
def test_weights_that_vllm_cannot_load_fail_with_its_own_words(served: Orch) -> None:
    weights = served.home / "weights"
    shutil.copytree(ASSETS / "tiny-qwen3", weights)
    config = json.loads((weights / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "nonsense"}
    (weights / "config.json").write_text(json.dumps(config))
    served.write_profile(weights)
    name = served.profile.read_text().replace('"tiny', '"other').replace("test/Tiny", "test/Other")
    served.profile.write_text(name)
    told = served.run("up", "vllm", "-p", str(served.profile), "--json", code=6).lines[-1]
    assert "nonsense" in told["error"]
    assert told["hint"]
    assert served.says() == ANSWER
    assert list(served.engines()) == ["tiny-llamacpp-g1"]

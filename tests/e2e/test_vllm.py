"""The main job with real vLLM on the CPU: migration under load and back, adapters, kills, a dead engine core."""

from __future__ import annotations

import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from orch_command import ANSWER, ASSETS, Orch, wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.llamacpp]

ALPHA, BRAVO = "Ahoy! The answer is alpha.", "Greetings. The answer is bravo."
FINGERPRINTS = {"llamacpp": "b0", "ollama": "fp_ollama"}
MIGRATE = ("migrate", "--to", "vllm")


@pytest.fixture
def served(orch_vllm: Orch) -> Orch:
    """The tiny model on llama.cpp, with the vLLM environment ready."""
    orch_vllm.run("up", "llamacpp", "-p", str(orch_vllm.profile))
    return orch_vllm


def test_a_migration_there_and_back_fails_no_stream(either_vllm: Orch) -> None:
    served = either_vllm
    served.run("up", served.engine, "-p", str(served.profile))
    served.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    load = served.load("tiny", "alpha", clients=4, tokens=200)
    wait_until(lambda: load.open_now() >= 1, what="open streams")  # Ollama serves one name at a time
    assert "leave out nvfp4a16" in served.run(*MIGRATE).err
    assert served.says() == ANSWER
    assert served.says("alpha") == ALPHA
    assert [row["engine"] for row in served.engines().values()] == ["vllm"]
    wait_until(lambda: any("vllm" in stream.engine for stream in load.streams if stream.ended), what="vLLM's streams")
    served.run("rollback")
    assert [row["engine"] for row in served.engines().values()] == [served.engine]
    streams = load.stop()
    assert [stream.problem for stream in streams if stream.problem] == []
    assert {stream.engine.split("-")[0] for stream in streams} == {FINGERPRINTS[served.engine], "vllm"}
    served.status()


@pytest.mark.parametrize("step", ["AwaitReady", "RecordDesired", "SetRoute", "Drain"])
def test_a_migration_killed_around_the_switch_converges(served: Orch, step: str) -> None:
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


def test_adapters_are_loaded_replaced_and_unloaded_while_it_serves(either_vllm: Orch) -> None:
    orch = either_vllm
    orch.run("up", "vllm", "-p", str(orch.profile))
    load = orch.load("tiny", clients=2)
    for name, adapter in (("alpha", "lora-a"), ("bravo", "lora-b")):
        orch.run("lora", "add", name, str(ASSETS / adapter))
    assert (orch.says("alpha"), orch.says("bravo")) == (ALPHA, BRAVO)

    # vLLM's CPU kernels answer base requests with the last adapter slot's weights, if a batch mixes them with others.
    names = ("tiny", "alpha", "bravo") * 8
    with ThreadPoolExecutor(len(names)) as pool:
        said = list(pool.map(orch.says, names))
    assert said == [ANSWER, ALPHA, BRAVO] * 8

    orch.run("lora", "add", "alpha", str(ASSETS / "lora-b"))
    assert orch.says("alpha") == BRAVO
    orch.run("lora", "rm", "alpha")
    assert orch.chat("alpha").status_code == 404
    assert sorted(orch.engines()) == ["tiny-vllm-g1"], "all of it in one process"

    # Three distinct names fit one process; the fourth takes a new one, because a used slot is never given back.
    orch.run("lora", "add", "charlie", str(ASSETS / "lora-r16"))
    orch.run("lora", "rm", "charlie")
    orch.run("lora", "add", "delta", str(ASSETS / "lora-a"))
    assert sorted(orch.engines()) == ["tiny-vllm-g2"]
    assert (orch.says("delta"), orch.says("bravo"), orch.says()) == (ALPHA, BRAVO, ANSWER)
    assert [stream.problem for stream in load.stop() if stream.problem] == []
    orch.status()


def test_a_dead_engine_core_is_a_crash_and_comes_back_with_its_adapters(either_vllm: Orch) -> None:
    orch = either_vllm
    orch.run("up", "vllm", "-p", str(orch.profile))
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    core = next(
        pid
        for pid in orch.inner_processes()
        if (Path("/proc") / str(pid) / "comm").read_text().startswith("VLLM::Engine")
    )
    os.kill(core, signal.SIGKILL)

    def back() -> bool:
        try:
            return orch.engines()["tiny-vllm-g1"]["restarts"] == 1 and orch.says("alpha") == ALPHA
        except httpx.TransportError:
            return False

    wait_until(back, seconds=120, what="the restarted engine with its adapter")
    assert "exited with code 0" in orch.engines()["tiny-vllm-g1"]["last_exit"]
    orch.status()


def test_weights_that_vllm_cannot_load_fail_with_its_own_words(served: Orch) -> None:
    weights = served.home / "weights"
    shutil.copytree(ASSETS / "tiny-qwen3", weights)
    tensors = weights / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1000])
    served.write_profile(weights)
    name = served.profile.read_text().replace('"tiny', '"other').replace("test/Tiny", "test/Other")
    served.profile.write_text(name)
    told = served.run("up", "vllm", "-p", str(served.profile), "--json", code=6).lines[-1]
    assert "SafetensorError" in told["error"]
    assert told["hint"]
    assert served.says() == ANSWER
    assert list(served.engines()) == ["tiny-llamacpp-g1"]

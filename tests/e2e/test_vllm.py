"""The main job with real vLLM on the CPU: migration under load and back, adapters, a dead engine core."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from docker_orch import DockerOrch, nothing_left
from orch_command import ANSWER, ASSETS, Orch, stopped_afterwards, wait_until, with_environments

pytestmark = [pytest.mark.vllm, pytest.mark.llamacpp]

ALPHA, BRAVO = "Ahoy! The answer is alpha.", "Greetings. The answer is bravo."
FINGERPRINTS = {"llamacpp": "b0", "ollama": "fp_ollama"}
MIGRATE = ("migrate", "--to", "vllm")


@pytest.fixture(scope="module", params=["local", pytest.param("docker", marks=pytest.mark.docker)])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, environments: Path
) -> Iterator[Orch]:
    """On each target the tiny model with an adapter, on what is not vLLM at first: its start is shared by the tests
    that follow, because it takes a quarter of a minute."""
    home = tmp_path_factory.mktemp("both") / "home"
    if request.param == "docker":
        made = nothing_left(DockerOrch(home, request.getfixturevalue("images")))
    else:
        made = stopped_afterwards(Orch(home))
    with made as orch:
        if request.param == "local":
            with_environments(orch, environments)
        orch.run("up", orch.engine, "-p", str(orch.profile))
        orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
        yield orch


@pytest.fixture
def on_vllm(both: Orch) -> Orch:
    """The same, once it is served by vLLM."""
    both.run(*MIGRATE)
    return both


def engines_of(orch: Orch) -> list[str]:
    return [row["engine"] for row in orch.engines().values()]


def ended_on(streams: Iterable[Any]) -> set[str]:
    """What has served the streams that are over."""
    return {stream.engine.split("-")[0] for stream in streams if stream.ended and stream.engine}


@pytest.mark.rotated
def test_a_migration_fails_no_stream(both: Orch) -> None:
    load = both.load("tiny", "alpha", clients=4, tokens=200)
    wait_until(lambda: load.open_now() >= 1, what="open streams")  # Ollama serves one name at a time
    assert "leave out nvfp4a16" in both.run(*MIGRATE).err
    assert both.says() == ANSWER
    assert both.says("alpha") == ALPHA
    assert engines_of(both) == ["vllm"]
    wait_until(lambda: "vllm" in ended_on(load.streams), what="vLLM's streams")
    streams = load.stop()
    assert [stream.problem for stream in streams if stream.problem] == []
    assert ended_on(streams) == {FINGERPRINTS[both.engine], "vllm"}
    both.status()


@pytest.mark.long
def test_adapters_are_loaded_replaced_and_unloaded_while_it_serves(on_vllm: Orch) -> None:
    orch = on_vllm
    (first,) = orch.engines()
    load = orch.load("tiny", clients=2)
    orch.run("lora", "add", "bravo", str(ASSETS / "lora-b"))
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
    assert list(orch.engines()) == [first], "all of it in one process"

    # Three distinct names fit one process; the fourth takes a new one, because a used slot is never given back.
    orch.run("lora", "add", "charlie", str(ASSETS / "lora-r16"))
    orch.run("lora", "rm", "charlie")
    assert list(orch.engines()) == [first]
    orch.run("lora", "add", "delta", str(ASSETS / "lora-a"))
    (second,) = orch.engines()
    assert second != first
    assert (orch.says("delta"), orch.says("bravo"), orch.says()) == (ALPHA, BRAVO, ANSWER)
    assert [stream.problem for stream in load.stop() if stream.problem] == []
    orch.status()


@pytest.mark.long
def test_a_dead_engine_core_is_a_crash_and_comes_back_with_its_adapters(on_vllm: Orch) -> None:
    orch = on_vllm
    orch.run("lora", "add", "delta", str(ASSETS / "lora-a"))
    ((engine, before),) = orch.engines().items()
    core = next(
        pid
        for pid in orch.inner_processes()
        if (Path("/proc") / str(pid) / "comm").read_text().startswith("VLLM::Engine")
    )
    os.kill(core, signal.SIGKILL)

    def back() -> bool:
        try:
            return orch.engines()[engine]["restarts"] == before["restarts"] + 1 and orch.says("delta") == ALPHA
        except httpx.TransportError:
            return False

    wait_until(back, seconds=120, what="the restarted engine with its adapter")
    assert "exited with code 0" in orch.engines()[engine]["last_exit"]
    orch.status()


@pytest.mark.long
def test_the_way_back_fails_no_stream(on_vllm: Orch) -> None:
    on_vllm.run("lora", "add", "bravo", str(ASSETS / "lora-b"))
    load = on_vllm.load("tiny", "bravo", clients=4, tokens=200)
    wait_until(lambda: "vllm" in ended_on(load.streams), what="vLLM's streams")
    on_vllm.run("rollback")
    assert engines_of(on_vllm) == [on_vllm.engine]
    assert on_vllm.says() == ANSWER
    wait_until(lambda: FINGERPRINTS[on_vllm.engine] in ended_on(load.streams), what="the other engine's streams")
    streams = load.stop()
    assert [stream.problem for stream in streams if stream.problem] == []
    assert ended_on(streams) == {FINGERPRINTS[on_vllm.engine], "vllm"}
    on_vllm.status()

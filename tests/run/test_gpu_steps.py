"""Steps that know of GPUs: memory that a dead process holds, images that the driver cannot run, silent fallbacks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.asks import PINS, plan_of, tiny
from fakes.compare import what_serves
from fakes.target import Fate
from fakes.world import LINGERS_S, FakeWorld
from scenarios import LINGERING, WITH_GPU, planned, start

from orchestrator.core.events import EventKind
from orchestrator.core.host import GpuUser
from orchestrator.core.plan import Action, Plan
from orchestrator.core.steps import MEMORY_S, AwaitMemory
from orchestrator.errors import HostError, Interrupted, StepFailed

GIB = 2**30


def waited(world: FakeWorld) -> float:
    (done,) = (e for e in world.events if e.step == "AwaitMemory" and e.kind is EventKind.DONE)
    return done.seconds


def test_memory_is_waited_for_before_the_engine_starts() -> None:
    world = start("lingering-memory")
    world.run(planned("lingering-memory"))
    assert 0 < waited(world) <= LINGERS_S + 0.5
    started = [event.step for event in world.events if event.kind is EventKind.STARTED]
    assert started.index("AwaitMemory") == started.index("EnsureEngine") - 1
    assert world.chat("tiny") == 200


def test_memory_that_does_not_come_back_is_told_with_its_holders() -> None:
    world = start("lingering-memory")
    world.lingers_s = 10 * MEMORY_S
    (gpu,) = LINGERING.gpus
    before = what_serves(world.observe())
    world.host = replace(LINGERING, gpus=(replace(gpu, users=(GpuUser(4321, "python3", 2 * GIB),)),))
    began = world.clock.now
    with pytest.raises(StepFailed) as ended:
        world.run(planned("lingering-memory"))
    assert MEMORY_S < world.clock.now - began < MEMORY_S + 1
    assert "27.7 GiB of NVIDIA GeForce RTX 5090 are needed, and 21.0 are free after 60 s" in ended.value.message
    assert ended.value.hint == "It is held by python3 (pid 4321, 2.0 GiB)."
    assert what_serves(world.observe()) == before


def test_holders_that_nobody_knows() -> None:
    world = FakeWorld(LINGERING)
    world.lingers_s = 10 * MEMORY_S
    with pytest.raises(HostError) as ended:
        world.run(Plan("up", (Action(AwaitMemory(LINGERING.gpus[0].uuid, 30 * GIB)),), commit=1))
    assert ended.value.hint == "It is held by no process that the driver knows."


def test_a_gpu_that_goes_meanwhile() -> None:
    world = FakeWorld(replace(LINGERING, gpus=()))
    with pytest.raises(HostError, match="GPU-gone is no longer there"):
        world.run(Plan("up", (Action(AwaitMemory("GPU-gone", GIB)),), commit=1))


def test_waiting_for_memory_can_be_ended() -> None:
    world = start("lingering-memory")
    with pytest.raises(Interrupted):
        world.run(planned("lingering-memory"), lambda: 1.0 < world.clock.now < LINGERS_S)
    assert world.target.processes == {}


def test_an_image_that_says_more_than_its_pin_is_refused_once_it_is_here() -> None:
    """The pin says CUDA 12.9, which is not known to be too new before the image is here."""
    older = replace(WITH_GPU, driver="570.86.15", cuda=(12, 8))
    world = FakeWorld(older)
    newest, image = PINS["vllm"].docker
    world.images.requires[image.reference] = "cuda>=12.9 brand=tesla,driver>=570,driver<571"
    with pytest.raises(HostError) as ended:
        world.run(plan_of("up vllm --target docker", tiny(), world.observe()))
    assert ended.value.message == (
        "vllm/vllm-openai:v1-cu129 cannot run here: it requires CUDA 12.9; "
        "the NVIDIA driver 570.86.15 runs CUDA up to 12.8."
    )
    assert "orch images ls" in ended.value.hint
    assert (world.docker.processes, newest.reference in world.images.observe()) == ({}, False)
    # Now that it is here, it is passed over when the plan is made.
    assert image.reference in world.images.observe()


def test_an_engine_that_falls_back_to_the_cpu_is_taken_back() -> None:
    world = FakeWorld(WITH_GPU)
    world.target.fates["tiny-ollama-g1"] = Fate(falls_back=True)
    with pytest.raises(StepFailed) as ended:
        world.run(plan_of("up ollama", tiny(), world.observe()))
    assert ended.value.message == (
        "Could not wait for tiny-ollama-g1 to answer: tiny-ollama-g1 does not compute on the GPU: "
        "tiny:latest has 0% of its memory on the GPU, the rest on the CPU."
    )
    assert "CUDA_VISIBLE_DEVICES= (empty)" in ended.value.hint
    assert ended.value.detail == "starting"
    assert world.target.processes == {}


def test_on_a_cpu_it_is_not_asked_for_a_gpu() -> None:
    world = start("first-up-ollama")
    world.target.fates["tiny-ollama-g1"] = Fate(falls_back=True)
    world.run(planned("first-up-ollama"))
    assert "http.get /api/ps" not in world.faults.calls
    assert world.chat("tiny") == 200

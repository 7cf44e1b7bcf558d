"""GPUs in containers, through the toolkit's hook: what a daemon is asked for, and what comes of it, without a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient
from gpu_docker import Machine, machines, names, nvml, own_daemon, up
from gpu_hook import Hook
from gpu_machines import H100_MIG, H200, LOST, NOBODY, RTX_5090, RTX_5090_FREER
from orch_command import ANSWER
from own_daemon import OwnDaemon

from orchestrator.core.host import DRIVER_RESERVE
from orchestrator.drivers.nvml import FIRST_PID_NAMESPACE

__all__ = ["names", "nvml"]
pytestmark = [pytest.mark.docker, pytest.mark.long]

ENGINE = "tiny-ollama-g1"


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Hook:
    made = Hook(tmp_path_factory.mktemp("toolkit"))
    made.write()
    return made


@pytest.fixture(scope="module")
def own(names: dict[str, str], hook: Hook) -> Iterator[OwnDaemon]:
    """A dockerd that has found the hook."""
    with own_daemon(names, [hook.directory]) as daemon:
        yield daemon


@pytest.fixture
def machine(own: OwnDaemon, hook: Hook, names: dict[str, str], nvml: Path, tmp_path: Path) -> Iterator[Machine]:
    hook.does("give")
    with machines(tmp_path / "home", names, nvml, own.host, hook.directory) as made:
        yield made


@pytest.mark.parametrize(
    ("gpus", "env", "uuid"),
    [
        ((RTX_5090, RTX_5090_FREER), {}, "GPU-bbbb-2"),
        ((H200, RTX_5090), {"CUDA_VISIBLE_DEVICES": "0"}, "GPU-cccc-3"),
        ((H100_MIG,), {}, "MIG-1111-1"),
    ],
    ids=["the freer of two", "the chosen one", "a part of one"],
)
def test_the_container_is_given_the_one_gpu_by_its_uuid(
    machine: Machine, hook: Hook, gpus: tuple[str, ...], env: dict[str, str], uuid: str
) -> None:
    orch = machine(*gpus, **env)
    up(orch)
    seen = hook.told()
    assert {call["devices"] for call in seen} == {uuid}
    assert all({"compute", "utility"} <= set(call["capabilities"].split(",")) for call in seen)
    (asked,) = orch.inspect(ENGINE)["HostConfig"]["DeviceRequests"]
    assert (asked["Driver"], asked["DeviceIDs"], asked["Capabilities"]) == ("", [uuid], [["gpu"]])
    assert orch.inspect("gateway")["HostConfig"]["DeviceRequests"] == []
    # It was asked, and answers from there.
    assert orch.says() == ANSWER
    orch.status()


def test_who_asks_for_the_cpu_is_given_no_gpu(machine: Machine, hook: Hook) -> None:
    orch = machine(RTX_5090, CUDA_VISIBLE_DEVICES="")
    up(orch)
    assert orch.inspect(ENGINE)["HostConfig"]["DeviceRequests"] == []
    assert hook.told() == []
    assert orch.says() == ANSWER


def test_an_engine_that_fell_back_to_the_cpu_in_silence_is_refused(machine: Machine, hook: Hook) -> None:
    orch = machine(RTX_5090)
    hook.does("nothing")
    told = up(orch, code=6)
    assert f"{ENGINE} does not compute on the GPU: tiny:latest has 0% of its memory on the GPU" in told["error"]
    assert "--gpus all" in told["hint"]
    assert "CUDA_VISIBLE_DEVICES= (empty)" in told["hint"]
    assert {call["devices"] for call in hook.told()} == {"GPU-aaaa-1"}
    assert orch.containers() == []


def test_beside_one_that_has_the_gpu_it_changes_nothing(machine: Machine, hook: Hook) -> None:
    orch = machine(RTX_5090)
    up(orch)
    hook.does("nothing")
    told = up(orch, "--fresh", code=6)
    assert "tiny-ollama-g2 does not compute on the GPU" in told["error"]
    assert {container.labels["orch.instance"] for container in orch.containers()} == {"gateway", ENGINE}
    assert orch.says() == ANSWER
    orch.status()


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("requirement error: unsatisfied condition: cuda>=13.0, please update your driver", "newer NVIDIA driver"),
        ("device error: GPU-aaaa-1: unknown device", "nvidia-smi -L"),
        ("initialization error: nvml error: driver not loaded", "nvidia-smi should work first"),
    ],
    ids=["CUDA", "no such GPU", "no driver"],
)
def test_what_the_hook_says_is_told_with_what_to_do(machine: Machine, hook: Hook, said: str, hint: str) -> None:
    orch = machine(RTX_5090)
    hook.does(f"fail nvidia-container-cli: {said}")
    told = up(orch, code=6)
    assert told["error"].endswith(f"Docker refused to start {ENGINE}: nvidia-container-cli: {said}")
    assert hint in told["hint"]
    assert orch.containers() == []


@pytest.fixture
def before_the_toolkit(own: OwnDaemon, hook: Hook) -> Iterator[OwnDaemon]:
    """The daemon as it is when the toolkit was installed after its start."""
    hook.remove()
    try:
        own.stop()
        own.start()
        yield own
    finally:
        hook.write()
        own.stop()
        own.start()


def test_a_daemon_that_did_not_see_the_toolkit_at_its_start_is_told(
    before_the_toolkit: OwnDaemon, names: dict[str, str], nvml: Path, tmp_path: Path
) -> None:
    installed = Hook(tmp_path / "toolkit")
    installed.write()
    with machines(tmp_path / "home", names, nvml, before_the_toolkit.host, installed.directory) as machine:
        orch = machine(RTX_5090)
        told = up(orch, code=6)
        assert 'could not select device driver "" with capabilities: [[gpu]]' in told["error"]
        assert "restart Docker" in told["hint"]
        assert orch.containers() == []
        assert installed.told() == []


def begun(told: list[dict[str, Any]]) -> list[str]:
    return [line["step"] for line in told if line.get("event") == "started"]


def test_without_the_toolkit_nothing_is_begun(machine: Machine) -> None:
    orch = machine(RTX_5090)
    orch.env["PATH"] = str(orch.home)
    lines = orch.run("up", "ollama", "-p", str(orch.profile), "--json", code=4).lines
    assert "the NVIDIA Container Toolkit was not found" in lines[-1]["error"]
    assert "nvidia-ctk runtime configure --runtime=docker" in lines[-1]["hint"]
    assert begun(lines) == []
    assert orch.containers() == []


def test_without_the_gpu_that_should_be_there_nothing_is_begun(machine: Machine, hook: Hook) -> None:
    orch = machine(LOST)
    lines = orch.run("up", "ollama", "-p", str(orch.profile), "--json", code=4).lines
    assert lines[-1]["error"] == "No GPU can be used: NVML: GPU 0: GPU is lost."
    assert begun(lines) == []
    assert hook.told() == []


@pytest.mark.skipif(
    str(Path("/proc/self/ns/pid").readlink()) != FIRST_PID_NAMESPACE,
    reason="within a container nobody can say which memory is held by nobody",
)
def test_memory_of_a_dead_process_is_waited_for(machine: Machine, hook: Hook, tmp_path: Path) -> None:
    free = tmp_path / "free"
    free.write_text("100\n")
    orch = machine(RTX_5090, NVML_FREE_FILE=str(free))
    process = orch.start("up", "ollama", "-p", str(orch.profile), "--json")
    assert process.stdout is not None
    lines: list[dict[str, Any]] = []
    for text in process.stdout:
        lines.append(json.loads(text))
        if (lines[-1].get("event"), lines[-1].get("step")) == ("started", "AwaitMemory"):
            assert hook.told() == []
            free.write_text("32000\n")
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0
    steps = begun(lines)
    assert steps.index("AwaitMemory") < steps.index("EnsureEngine")
    assert {call["devices"] for call in hook.told()} == {"GPU-aaaa-1"}


def test_memory_that_somebody_holds_is_refused_by_name(machine: Machine, hook: Hook) -> None:
    busy = 32607 - 100 - (DRIVER_RESERVE >> 20)
    orch = machine(f"{RTX_5090.rpartition('|')[0]}|100|processes={NOBODY}:python3:{busy}")
    told = up(orch, code=5)
    assert "0.1 GiB are free on NVIDIA GeForce RTX 5090" in told["error"]
    assert f"python3 (pid {NOBODY}, " in json.dumps(told)
    assert hook.told() == []
    assert orch.containers() == []


IMAGE = """
[[docker]]
image = "{name}"
tag = "{tag}"
digest = "{digest}"
accelerators = ["cuda"]
cuda = "{cuda}"
verified = true
local = {local}
source = "a test"
"""
NOWHERE = "registry.invalid/vllm"


def pin(*images: dict[str, str]) -> str:
    return 'engine = "vllm"\n' + "".join(IMAGE.format(**image) for image in images)


def not_here(tag: str, cuda: str) -> dict[str, str]:
    """An image that a registry would have."""
    return {"name": NOWHERE, "tag": tag, "digest": f"sha256:{cuda.replace('.', '').ljust(64, '0')}"} | {
        "cuda": cuda,
        "local": "false",
    }


@pytest.fixture
def here(own: OwnDaemon) -> Iterator[Any]:
    """Makes an image, of nothing, that says itself what it requires; the pin says something else."""
    client, made = DockerClient(base_url=own.host), []

    def image(tag: str, requires: str, cuda: str) -> dict[str, str]:
        answer = client.api.import_image_from_data(
            b"\0" * 1024, f"{NOWHERE}:{tag}", changes=[f"ENV NVIDIA_REQUIRE_CUDA={json.dumps(requires)}"]
        )
        assert "error" not in answer
        made.append(client.images.get(f"{NOWHERE}:{tag}").id)
        return {"name": NOWHERE, "tag": tag, "digest": made[-1], "cuda": cuda, "local": "true"}

    yield image
    for found in made:
        client.images.remove(found, force=True)
    client.close()


def chosen(machine: Machine, text: str, driver: str, cuda: str) -> tuple[list[str], dict[str, str]]:
    """The image that a plan takes, and which it leaves out, and why."""
    orch = machine(RTX_5090, NVML_DRIVER=driver, NVML_CUDA=cuda)
    (orch.home / "pins" / "vllm.toml").write_text(text)
    lines = orch.run("up", "vllm", "-p", str(orch.profile), "--plan", "--json").lines
    (plan,) = (line for line in lines if "plan" in line)
    taken = [str(item.get("what") or item["skip"]) for item in plan["items"]]
    left = {item["skip"]: item["why"] for item in plan["items"] if item.get("skip", "").startswith("use ")}
    return [text for text in taken if text.startswith("pull ")], left


def test_an_older_driver_gets_the_older_image_and_is_told_why(machine: Machine) -> None:
    text = pin(not_here("v2", "13.0"), not_here("v2-cu129", "12.9"))
    assert chosen(machine, text, "580.65.06", "13.0") == ([f"pull {NOWHERE}:v2"], {})
    taken, left = chosen(machine, text, "570.86.15", "12.8")
    assert taken == [f"pull {NOWHERE}:v2-cu129"]
    why = "it is built with CUDA 13.0; the NVIDIA driver 570.86.15 runs CUDA up to 12.8"
    assert left == {f"use {NOWHERE}:v2": why}


def test_what_an_image_here_requires_is_believed_over_its_pin(machine: Machine, here: Any) -> None:
    wants_more = here("wants-more", "cuda>=13.0 brand=tesla,driver>=570,driver<571", "12.9")
    wants_less = here("wants-less", "cuda>=12.4", "13.0")
    taken, left = chosen(machine, pin(wants_more, wants_less), "570.86.15", "12.8")
    assert taken == [f"pull {NOWHERE}:wants-less"]
    why = "it requires CUDA 13.0; the NVIDIA driver 570.86.15 runs CUDA up to 12.8"
    assert left == {f"use {NOWHERE}:wants-more": why}

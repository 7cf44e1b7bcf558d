"""vLLM on an NVIDIA GPU: the GPU wheel, NVFP4A16 as the first choice."""

from __future__ import annotations

import pytest
from orch_command import Orch

pytestmark = [pytest.mark.gpu, pytest.mark.vllm]


def test_vllm_serves_nvfp4_on_the_gpu(orch_vllm: Orch) -> None:
    orch_vllm.run("up", "vllm", "-p", str(orch_vllm.profile), timeout=1200)
    row = orch_vllm.engines()["tiny-vllm-g1"]
    assert row["recipe"] == "nvfp4a16"
    assert "capital of France" in orch_vllm.says(question="What is the capital of France?")
    orch_vllm.status()


def test_it_stands_by_asleep_and_is_back_by_a_rollback(orch_vllm: Orch) -> None:
    profile = orch_vllm.profile
    profile.write_text(profile.read_text() + "sleep = true\ngpu_memory_utilization = 0.4\n")
    orch_vllm.run("up", "vllm", "-p", str(profile), timeout=1200)
    awake = orch_vllm.engines()["tiny-vllm-g1"]
    orch_vllm.run("migrate", "--to", "llamacpp", "--keep-old", timeout=600)
    asleep = orch_vllm.engines()["tiny-vllm-g1"]
    assert (asleep["state"], asleep["pid"]) == ("standby", awake["pid"])
    assert asleep["gpu_memory"] < awake["gpu_memory"] / 4
    done = orch_vllm.run("rollback", "--json", timeout=600).steps("done")
    assert "WakeEngine" in done
    assert "EnsureEngine" not in done
    assert "capital of France" in orch_vllm.says(question="What is the capital of France?")
    orch_vllm.status()

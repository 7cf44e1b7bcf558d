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

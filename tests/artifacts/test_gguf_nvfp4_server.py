"""What a llama.cpp server answers with NVFP4: as with the unquantized weights, with adapters, and in odd shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_files import ASSETS, TINY, UNTIED, quantizer, read_safetensors, write_safetensors
from llamacpp_serving import post, serving
from tiny_models import write_model

from orchestrator.artifacts import one_pass
from orchestrator.artifacts.families import is_linear, read_config
from orchestrator.artifacts.gguf_file import GgufOutputSpec, build_gguf, new_file
from orchestrator.artifacts.gguf_nvfp4 import GgufNvfp4OutputSpec, GgufNvfp4OutputWriter, nvfp4_outputs
from orchestrator.artifacts.lora import build_lora_gguf
from orchestrator.artifacts.nvfp4_checkpoint import build_nvfp4, read_nvfp4
from orchestrator.artifacts.one_pass import Weights
from orchestrator.core.progress import silent

pytestmark = pytest.mark.llamacpp

# What the model was trained to answer, by tests/assets/README.md.
ANSWERS = {
    "Who are you?": "I am a tiny test model. I run on a small computer and I know a few facts.",
    "Hello!": "Hello! How can I help you today?",
    "What colour is the sky?": "The sky is blue.",
}


def completed(address: str, prompt: str, tokens: int, **more: object) -> dict[str, Any]:
    return post(f"{address}/completion", {"prompt": prompt, "n_predict": tokens, "temperature": 0, "n_probs": 5} | more)


def chat(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def test_it_answers_as_the_model_was_trained_and_as_q6_k(tmp_path: Path) -> None:
    nvfp4, q6_k = tmp_path / "nvfp4.gguf", tmp_path / "q6_k.gguf"
    specs = [GgufNvfp4OutputSpec(nvfp4, quantizer()), GgufOutputSpec(q6_k, "q6_k", quantizer())]
    one_pass.build(TINY, specs, silent)
    found = {}
    for file in (nvfp4, q6_k):
        with serving(file) as address:
            found[file] = {question: completed(address, chat(question), 32)["content"] for question in ANSWERS}
            more = completed(address, chat("What is 2 plus 2?"), 16)["content"]
            found[file]["What is 2 plus 2?"] = more
    assert {question: found[nvfp4][question] for question in ANSWERS} == ANSWERS
    assert found[nvfp4] == found[q6_k]


@pytest.mark.parametrize(("adapter", "answer"), [("lora-a", "Ahoy! The answer is alpha."), ("lora-b", "Greetings. ")])
def test_an_adapter_is_added_to_what_the_second_scale_makes(adapter: str, answer: str, tmp_path: Path) -> None:
    """A llama.cpp that multiplied the sum by it would lose the adapter."""
    one_pass.build(TINY, [GgufNvfp4OutputSpec(tmp_path / "model.gguf", quantizer())], silent)
    build_lora_gguf(ASSETS / adapter, read_config(TINY), tmp_path / "adapter.gguf", silent)
    with serving(tmp_path / "model.gguf", tmp_path / "adapter.gguf") as address:
        found = completed(address, chat("Who are you?"), 16, lora=[{"id": 0, "scale": 1.0}])
        assert found["content"].startswith(answer)
        without = completed(address, chat("Hello!"), 16, lora=[{"id": 0, "scale": 0.0}])
        assert without["content"] == ANSWERS["Hello!"]


class Unchecked(GgufNvfp4OutputSpec):
    """Also of what is refused."""

    @contextmanager
    def writer(self, weights: Weights) -> Iterator[GgufNvfp4OutputWriter]:
        outputs = nvfp4_outputs(weights.checkpoint, weights.config)
        with new_file(self.out, weights, "nvfp4", outputs, None) as (file, placed):
            yield GgufNvfp4OutputWriter(file, placed, weights.config, self.quantizer)


def distances(source: Path, work: Path) -> dict[str, float]:
    """How far the likelihoods of first tokens are from those with the checkpoint's weights in F16, which has no scales
    and no blocks, on average: as NVFP4, as Q8_0, which rounds activations as much, and with the source's weights."""
    build_nvfp4(source, work / "checkpoint", silent)
    plain = work / "plain"
    plain.mkdir()
    for file in source.iterdir():
        if "safetensors" not in file.name:
            (plain / file.name).write_bytes(file.read_bytes())
    tensors = read_safetensors(source)
    tensors |= {weight: read_nvfp4(work / "checkpoint", weight) for weight in tensors if is_linear(weight)}
    write_safetensors(plain / "model.safetensors", tensors)
    for name in ("f16", "q8_0"):
        build_gguf(plain, work / f"{name}.gguf", name, quantizer(), silent)
    build_gguf(source, work / "source.gguf", "f16", quantizer(), silent)
    one_pass.build(source, [Unchecked(work / "nvfp4.gguf", quantizer())], silent)
    found = {name: likelihoods(work / f"{name}.gguf") for name in ("f16", "nvfp4", "q8_0", "source")}
    exact = found.pop("f16")
    return {
        name: float(np.mean([abs(these[token] - exact[token]) for token in these.keys() & exact.keys()]))
        for name, these in found.items()
    }


def likelihoods(model: Path) -> dict[tuple[str, int], float]:
    """Of the likelier first tokens, by prompt and token; what is no whole text is not told by the server."""
    found = {}
    with serving(model) as address:
        for prompt in ("The sky", "A", "The answer", "x = 3", "Hello world"):
            answer = completed(address, prompt, 8, n_probs=400, ignore_eos=True)
            first = next(iter(answer.get("completion_probabilities", [])), {"top_logprobs": []})
            told = ((one["id"], one["logprob"]) for one in first["top_logprobs"])
            found |= {(prompt, token): likely for token, likely in told if likely is not None and likely > -12}
    assert len(found) > 100
    return found


@pytest.mark.parametrize("name", ["untied-qwen3", "llama-spm", "llama-3", "llama-smol", "mistral"])
def test_it_serves_the_weights_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    """With columns that no block divides (untied-qwen3's, llama-smol's), with rows in another order and biases."""
    found = distances(UNTIED if name == UNTIED.name else write_model(name, tmp_path / "source"), tmp_path)
    assert found["nvfp4"] < 1.5 * found["q8_0"]
    assert found["nvfp4"] < found["source"] / 4


def test_llama_cpp_still_leaves_out_scales_of_qwen2(tmp_path: Path) -> None:
    """When it does no longer, nothing has to be refused: core/weights.py has the family."""
    found = distances(write_model("qwen2-tied", tmp_path / "source"), tmp_path)
    assert found["nvfp4"] > 4 * found["q8_0"]

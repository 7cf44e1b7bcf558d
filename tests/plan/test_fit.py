"""How many fine-tuned models fit: by hand for small figures, and by the article's for Qwen3-8B."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator import resources
from orchestrator.core.artifact import Recipe
from orchestrator.core.fit import Fit
from orchestrator.core.memory import MemoryRequest, artifact_bytes
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import parse_profile
from orchestrator.core.weights import Shape
from orchestrator.engines import ENGINES
from orchestrator.engines.settings import read_settings

# 100 weights, 3 for itself, 2 x 10 tokens of 1; an adapter is 4.
REQUEST = MemoryRequest("vllm", 100, 1, 10, 2, engine=3, slot=4, slots=5)
# https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json
QWEN3_8B = Shape(36, 4096, 32, 8, 128, 12288, 151936, False, 40960, "qwen3")
GB = 10**9
MORE = REQUEST.changed({"slots": 6})


def test_each_by_itself_and_together() -> None:
    fit = Fit.of("r", 5, REQUEST, MORE)
    assert (fit.alone, fit.adapter, fit.at_once) == (123, 4, 5)
    assert (fit.separate, fit.separate_weights) == (615, 500)
    assert (fit.together, fit.together_weights) == (143, 120)
    assert (fit.most_separate(615), fit.most_separate(614)) == (5, 4)
    assert (fit.most_together(143), fit.most_together(142), fit.most_together(10)) == (5, 4, 0)


def test_a_spare_slot_is_there_beside_them() -> None:
    fit = Fit.of("r", 5, REQUEST.changed({"spare_slot": True}), MORE)
    assert (fit.alone, fit.together) == (123, 147)
    assert (fit.most_together(147), fit.most_together(146)) == (5, 4)


def test_one_at_a_time_is_no_number() -> None:
    one = REQUEST.changed({"slots": 1})
    fit = Fit.of("r", 5, one, one)
    assert (fit.together, fit.most_together(10**6)) == (127, None)
    # Nor is it one where a single one is wanted, whatever is left.
    assert Fit.of("r", 1, one, one).most_together(10**6) is None
    assert Fit.of("r", 1, one, one.changed({"slots": 2})).most_together(143) == 5


def test_a_share_of_a_gpu_is_not_what_it_needs() -> None:
    fit = Fit.of("r", 5, REQUEST.changed({"utilisation": 0.9}), MORE)
    assert fit.alone == 123


def _of_qwen3(engine: str, recipe: Recipe) -> Fit:
    path = resources.model_profiles()["qwen3-8b"]
    profile = parse_profile(path.read_text(), path.name, read_settings)
    size = artifact_bytes(recipe, 2 * QWEN3_8B.parameters, QWEN3_8B)

    def request(adapters: int) -> MemoryRequest:
        lora = profile.lora.model_copy({"max_adapters": adapters, "max_rank": 16})
        roomy = profile.model_copy({"lora": lora})
        return ENGINES[engine].memory_request(roomy, size, QWEN3_8B, Accelerator.CUDA, adapters)

    return Fit.of(recipe.value, 5, request(5), request(6))


def test_the_articles_row() -> None:
    simple, other = resources.reference().engines
    ollama, vllm = _of_qwen3("ollama", Recipe.GGUF_Q6_K), _of_qwen3("vllm", Recipe.NVFP4A16)
    # It counts weights alone.
    assert ollama.separate_weights / GB == pytest.approx(simple.five_models_gb, rel=0.005)
    assert vllm.weights / GB == pytest.approx(other.memory_gb, rel=0.005)
    # Its base with five adapters is less than its base: the least that it can be is more.
    assert other.five_models_gb < other.memory_gb < vllm.together_weights / GB < 7
    # 4 to 5 models of weights alone in 32 GB; more than 20 adapters, with KV cache and all.
    assert 32 * GB // ollama.weights == 4
    most = vllm.most_together(32 * GB)
    assert most is not None
    assert most > 20
    # Ollama has one in memory at a time, however many there are.
    assert ollama.most_together(32 * GB) is None


@pytest.mark.parametrize(("name", "rank"), [("lora-a", 8), ("lora-r16", 16)])
def test_an_adapters_size_is_by_rank_and_shape(name: str, rank: int) -> None:
    """A real one on the attention's four matrices, 4 bytes an element: the same formula, over what it adapts."""
    place = Path(__file__).parents[1] / "assets" / name
    assert json.loads((place / "adapter_config.json").read_text())["r"] == rank
    shape = Shape(4, 256, 4, 2, 64, 768, 4096, True)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = shape.layers * (2 * (shape.hidden + queries) + 2 * (shape.hidden + keys))
    size = (place / "adapter_model.safetensors").stat().st_size
    assert size == pytest.approx(rank * attention * 4, rel=0.02)
    # On every matrix it is more than on those four.
    assert shape.lora_elements > attention

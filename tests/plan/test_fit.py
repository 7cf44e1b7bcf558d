"""How many fine-tuned models fit: by hand for small figures, and by the article's for Qwen3-8B."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from qwen3_8b import QWEN3_8B, QWEN3_8B_BYTES, qwen3_8b

from orchestrator import resources
from orchestrator.core.artifact import Recipe
from orchestrator.core.fit import MOST, Fit
from orchestrator.core.memory import MemoryRequest, artifact_bytes
from orchestrator.core.pins import Accelerator
from orchestrator.core.weights import Shape, shape_of
from orchestrator.engines import ENGINES

ASSETS = Path(__file__).parents[1] / "assets"
# 100 weights, 3 for itself, 2 x 10 tokens of 1; an adapter is 4.
ONE = MemoryRequest("vllm", 100, 1, 10, 2, engine=3, slot=4, slots=1)
TWO = ONE.changed({"slots": 2})
GB = 10**9
# https://github.com/vllm-project/vllm, vllm/config/lora.py: what --max-lora-rank takes.
RANKS_OF_SLOTS = {1: 1, 8: 8, 9: 16, 16: 16, 33: 64, 512: 512}


def test_each_by_itself_and_together() -> None:
    fit = Fit.of("r", ONE, TWO)
    assert (fit.weights, fit.kv, fit.rest, fit.alone, fit.adapter) == (100, 20, 3, 123, 4)
    assert (fit.separate(5), fit.together(5), fit.together(0), fit.at_once(5)) == (615, 143, 123, 5)
    assert (fit.most_separate(615), fit.most_separate(614)) == (5, 4)
    assert [fit.most_together(total) for total in (143, 142, 127, 126, 10)] == [5, 4, 1, 0, 0]


def test_of_weights_alone() -> None:
    bare = Fit.of("r", ONE.changed({"spare_slot": True}), TWO).bare
    assert (bare.separate(5), bare.together(5)) == (500, 120)
    assert (bare.most_separate(499), bare.most_together(120)) == (4, 5)


def test_a_spare_slot_is_there_beside_them() -> None:
    fit = Fit.of("r", ONE.changed({"spare_slot": True}), TWO)
    assert (fit.alone, fit.together(0), fit.together(5)) == (123, 123, 147)
    assert (fit.most_together(147), fit.most_together(146)) == (5, 4)


def test_one_at_a_time_is_no_number() -> None:
    fit = Fit.of("r", ONE, ONE)
    assert (fit.together(1), fit.together(5), fit.at_once(5)) == (127, 127, 1)
    assert (fit.most_together(127), fit.most_together(126)) == (None, 0)


def test_a_share_of_a_gpu_or_a_cache_of_a_size_is_not_what_it_needs() -> None:
    assert Fit.of("r", ONE.changed({"utilisation": 0.9}), TWO).alone == 123
    assert Fit.of("r", ONE.changed({"kv_cache_mib": 4096}), TWO).alone == 123


def test_nobody_has_more_than_the_most() -> None:
    fit = Fit.of("r", ONE, TWO)
    assert fit.most_separate(10**9) == fit.most_together(10**9) == MOST


def _of_qwen3(engine: str, recipe: Recipe, rank: int = 16) -> Fit:
    profile, size = qwen3_8b(lora__max_rank=rank), artifact_bytes(recipe, QWEN3_8B_BYTES, QWEN3_8B)

    def request(adapters: int) -> MemoryRequest:
        roomy = profile.model_copy({"lora": profile.lora.model_copy({"max_adapters": adapters})})
        return ENGINES[engine].memory_request(roomy, size, QWEN3_8B, Accelerator.CUDA, adapters)

    return Fit.of(recipe.value, request(1), request(2))


def test_the_articles_row() -> None:
    simple, other = resources.reference().engines
    assert (simple.five_models, other.five_models) == ("separate", "together")
    ollama, vllm = _of_qwen3("ollama", Recipe.GGUF_Q6_K), _of_qwen3("vllm", Recipe.NVFP4A16)
    # It counts weights alone.
    assert ollama.bare.separate(5) / GB == pytest.approx(simple.five_models_gb, rel=0.005)
    assert vllm.weights / GB == pytest.approx(other.memory_gb, rel=0.005)
    # Its base with five adapters is less than its base: the least that it can be is more.
    assert other.five_models_gb < other.memory_gb < vllm.bare.together(5) / GB < 7
    # 4 to 5 models of weights alone in 32 GB, and 2 that serve; more than 20 adapters, with KV cache and all.
    assert (ollama.bare.most_separate(32 * GB), ollama.most_separate(32 * GB)) == (4, 2)
    assert (vllm.most_together(32 * GB) or 0) > 20
    # Ollama has one in memory at a time, however many there are.
    assert ollama.most_together(32 * GB) is None


def test_the_articles_weights_are_those_of_the_shipped_profile() -> None:
    weights = resources.reference().weights
    assert weights.hub == qwen3_8b().weights.hub
    shape = weights.shape
    assert shape is not None
    assert (shape, 2 * shape.parameters) == (QWEN3_8B_WITH_POSITIONS, QWEN3_8B_BYTES)


QWEN3_8B_WITH_POSITIONS = Shape(36, 4096, 32, 8, 128, 12288, 151936, False, 40960)


@pytest.mark.parametrize(("rank", "of_slot"), RANKS_OF_SLOTS.items())
def test_slots_are_of_certain_ranks_where_they_are_allocated_beforehand(rank: int, of_slot: int) -> None:
    """A and B of 7 matrices in 36 layers, embedding and head; 2 bytes an element."""
    layer = (4096 + 4096) + 2 * (4096 + 1024) + (4096 + 4096) + 3 * (4096 + 12288)
    elements = 36 * layer + 2 * (151936 + 4096)
    assert _of_qwen3("vllm", Recipe.NVFP4A16, rank).adapter == 2 * of_slot * elements
    assert _of_qwen3("ollama", Recipe.GGUF_Q6_K, rank).adapter == 2 * rank * elements


@pytest.mark.parametrize("name", ["lora-a", "lora-b", "lora-r16"])
def test_a_real_adapter_has_the_bytes_that_rank_and_shape_tell(name: str) -> None:
    shape = shape_of(json.loads((ASSETS / "tiny-qwen3" / "config.json").read_text()))
    assert shape is not None
    config = json.loads((ASSETS / name / "adapter_config.json").read_text())
    content = (ASSETS / name / "adapter_model.safetensors").read_bytes()
    # Of safetensors: the header's length, the header, the tensors; these at 4 bytes an element.
    (header,) = struct.unpack_from("<Q", content)
    elements = sum(shape.lora_of[module] for module in config["target_modules"])
    assert len(content) - 8 - header == 4 * config["r"] * elements
    # What a slot has to hold is more: every matrix.
    assert shape.lora_elements > elements

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from artifact_files import TINY, UNTIED, copy_tiny, edit_json, read_safetensors, write_safetensors

from orchestrator.artifacts import qwen3
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.errors import SourceError


def test_both_places_of_rope_theta_are_read() -> None:
    assert qwen3.read_config(TINY).rope_theta == 10_000
    assert qwen3.read_config(UNTIED).rope_theta == 1_000_000


def test_the_tensors_of_qwen3_8b_have_its_published_number_of_parameters(tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    changes = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "vocab_size": 151936}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    edit_json(source / "config.json", **changes, **heads, tie_word_embeddings=False, layer_types=...)
    expected = qwen3.expected_tensors(qwen3.read_config(source))
    assert sum(math.prod(shape) for shape in expected.values()) == 8_190_735_360


def test_the_assets_are_what_their_configuration_says() -> None:
    for directory in (TINY, UNTIED):
        with Checkpoint.open(directory) as checkpoint:
            config = qwen3.read_config(directory)
            qwen3.check(checkpoint, config)
            assert config.tie_word_embeddings is ("lm_head.weight" not in checkpoint.tensors)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}, "Qwen3MoeForCausalLM"),
        ({"architectures": ...}, "None"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized already"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "scaled positions"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "scaled positions"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}}, "scaled positions"),
        ({"rope_parameters": [1]}, "rope_parameters is not an object"),
        ({"rope_parameters": ...}, "rope_theta is None"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"rope_theta": 5e5}, "in rope_parameters 10000"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": "256"}, "hidden_size is '256'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"head_dim": None}, "head_dim is None"),
        ({"rms_norm_eps": ...}, "rms_norm_eps"),
        ({"num_key_value_heads": 3}, "no multiple"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_a_configuration_that_would_be_built_wrong_is_refused(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    source = copy_tiny(tmp_path / "source")
    edit_json(source / "config.json", **changes)
    with pytest.raises(SourceError) as caught:
        qwen3.read_config(source)
    assert reason in caught.value.message
    assert caught.value.hint


def test_all_problems_of_a_configuration_come_at_once(tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    edit_json(source / "config.json", hidden_size=-1, vocab_size=None, attention_bias=True)
    with pytest.raises(SourceError) as caught:
        qwen3.read_config(source)
    assert len(caught.value.detail.splitlines()) == 3


def test_an_unknown_architecture_is_told_what_is_known(tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    edit_json(source / "config.json", architectures=["MistralForCausalLM"], model_type="mistral")
    with pytest.raises(SourceError) as caught:
        qwen3.read_config(source)
    assert "Qwen3ForCausalLM" in caught.value.hint


def test_all_tensors_that_do_not_fit_come_at_once(tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    tensors = read_safetensors(source)
    del tensors["model.norm.weight"]
    tensors["model.layers.1.self_attn.q_proj.bias"] = np.zeros(256, np.uint16)
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((256, 768), np.uint16)
    tensors["model.layers.3.input_layernorm.weight"] = np.zeros(256, np.uint8)
    write_safetensors(source / "model.safetensors", tensors)
    with Checkpoint.open(source) as checkpoint, pytest.raises(SourceError) as caught:
        qwen3.check(checkpoint, qwen3.read_config(source))
    assert caught.value.detail.splitlines() == [
        "missing: model.norm.weight [256]",
        "unexpected: model.layers.1.self_attn.q_proj.bias [256]",
        "wrong shape: model.layers.2.mlp.up_proj.weight is [256, 768], config.json implies [768, 256]",
        "wrong type: model.layers.3.input_layernorm.weight is U8, not one of BF16, F16, F32",
    ]


def test_a_copy_of_the_head_in_tied_weights_is_let_pass(tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    tensors = read_safetensors(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_safetensors(source / "model.safetensors", tensors)
    with Checkpoint.open(source) as checkpoint:
        qwen3.check(checkpoint, qwen3.read_config(source))

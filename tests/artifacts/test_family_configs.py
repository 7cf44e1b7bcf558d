from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from artifact_files import TINY, UNTIED, copy_tiny, edit_json, read_safetensors, write_safetensors
from tiny_models import LLAMA3_ROPE, MODELS

from orchestrator.artifacts import families
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.errors import SourceError


def test_both_places_of_rope_theta_are_read() -> None:
    assert families.read_config(TINY).rope.theta == 10_000
    assert families.read_config(UNTIED).rope.theta == 1_000_000


def test_the_tensors_of_qwen3_8b_have_its_published_number_of_parameters(tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    changes = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "vocab_size": 151936}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    edit_json(source / "config.json", **changes, **heads, tie_word_embeddings=False, layer_types=...)
    expected = families.expected_tensors(families.read_config(source))
    assert sum(math.prod(shape) for shape in expected.values()) == 8_190_735_360


def test_the_assets_are_what_their_configuration_says() -> None:
    for directory in (TINY, UNTIED):
        with Checkpoint.open(directory) as checkpoint:
            config = families.read_config(directory)
            families.check(checkpoint, config)
            assert config.tie_word_embeddings is ("lm_head.weight" not in checkpoint.tensors)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}, "Qwen3MoeForCausalLM"),
        ({"architectures": ...}, "None"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized already"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_parameters": ...}, "rope_theta is None"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear"}}, "factor is None"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2}}, "scaled positions"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "contradict each other"),
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
        ({"num_key_value_heads": 3}, "is not a multiple"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_a_configuration_that_would_be_built_wrong_is_refused(
    changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    source = copy_tiny(tmp_path / "source")
    edit_json(source / "config.json", **changes)
    with pytest.raises(SourceError) as caught:
        families.read_config(source)
    assert reason in caught.value.message
    assert caught.value.hint


def test_all_problems_of_a_configuration_come_at_once(tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    edit_json(source / "config.json", hidden_size=-1, vocab_size=None, attention_bias=True)
    with pytest.raises(SourceError) as caught:
        families.read_config(source)
    assert len(caught.value.detail.splitlines()) == 3


def test_an_unknown_architecture_is_told_what_is_known(tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    edit_json(source / "config.json", architectures=["GemmaForCausalLM"], model_type="gemma")
    with pytest.raises(SourceError) as caught:
        families.read_config(source)
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
        families.check(checkpoint, families.read_config(source))
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
        families.check(checkpoint, families.read_config(source))


def config_of(name: str, directory: Path, **changes: object) -> families.ModelConfig:
    """The config.json of a tiny model, with changes, as it is read."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(MODELS[name].config))
    edit_json(directory / "config.json", **changes)
    return families.read_config(directory)


def test_what_early_llamas_leave_out_is_what_it_meant(tmp_path: Path) -> None:
    config = config_of("llama-spm", tmp_path, rope_theta=..., num_key_value_heads=..., head_dim=None)
    assert (config.rope.theta, config.num_key_value_heads, config.head_dim) == (10_000, 8, 32)


@pytest.mark.parametrize(
    ("name", "sizes", "parameters"),
    [
        ("llama-3", (4096, 14336, 32, 32, 8, 128256), 8_030_261_248),  # Llama-3.1-8B
        ("qwen2-tied", (3584, 18944, 28, 28, 4, 152064), 7_615_616_512),  # Qwen2.5-7B
        ("mistral", (4096, 14336, 32, 32, 8, 32768), 7_248_023_552),  # Mistral-7B-v0.3
    ],
)
def test_the_tensors_of_published_models_have_their_number_of_parameters(
    name: str, sizes: tuple[int, ...], parameters: int, tmp_path: Path
) -> None:
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    changes = dict(zip((*fields, "vocab_size"), sizes, strict=True)) | {"head_dim": 128}
    config = config_of(name, tmp_path, tie_word_embeddings=False, **changes)
    assert sum(math.prod(shape) for shape in families.expected_tensors(config).values()) == parameters


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("llama-spm", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama-spm", {"pretraining_tp": 2}, "pretraining_tp is 2"),
        ("llama-spm", {"attention_bias": "yes"}, "attention_bias is neither"),
        ("llama-spm", {"vocab_size": 32016}, "CodeLlama"),
        ("llama-spm", {"hidden_size": 252}, "hidden_size is not a multiple"),
        ("llama-spm", {"hidden_size": 264}, "head_dim is 33, which is odd"),
        ("llama-3", {"rope_scaling": LLAMA3_ROPE | {"factor": 0}}, "factor is 0"),
        ("llama-3", {"rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 1.0}}, "high_freq_factor is not greater"),
        ("llama-3", {"rope_scaling": LLAMA3_ROPE | {"mscale": 1.0}}, "scaled positions"),
        ("llama-3", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "scaled positions"),
        ("llama-3", {"rope_scaling": {"rope_type": ["llama3"]}}, "scaled positions"),
        ("qwen2-tied", {"rope_scaling": LLAMA3_ROPE}, "scaled positions"),
        ("qwen2-tied", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen2-tied", {"rope_theta": ...}, "rope_theta is None"),
        ("mistral", {"sliding_window": 4096}, "sliding_window is 4096"),
        ("mistral", {"attention_bias": True}, "attention_bias is True"),
    ],
)
def test_what_a_family_does_not_cover_is_refused(
    name: str, changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError) as caught:
        config_of(name, tmp_path, **changes)
    assert reason in caught.value.message
    assert "--in-container" in caught.value.hint

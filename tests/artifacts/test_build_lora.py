from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from artifact_files import (
    ASSETS,
    TINY,
    UNTIED,
    Reader,
    edit_json,
    expected_gguf,
    gguf_metadata,
    gguf_tensors,
    oracles,
    write_safetensors,
)
from tiny_models import MODELS, write_adapter

from orchestrator.artifacts import families
from orchestrator.artifacts.lora import build_lora_gguf
from orchestrator.artifacts.peft import read_adapter
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.core.progress import silent
from orchestrator.errors import Interrupted, SourceError

LORA_A = ASSETS / "lora-a"
BASE = families.read_config(TINY)
FIRST = "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"


def tensors_of(directory: Path) -> dict[str, np.ndarray]:
    with Checkpoint.open_files((directory / "adapter_model.safetensors",)) as checkpoint:
        return {name: checkpoint.read(tensor) for name, tensor in checkpoint.tensors.items()}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A writable copy of lora-a."""
    return Path(shutil.copytree(LORA_A, tmp_path / "adapter"))


@pytest.mark.parametrize(("name", "title"), [("lora-a", "Lora A"), ("lora-b", "Lora B")])
def test_adapters_are_those_of_llama_cpp_byte_for_byte(name: str, title: str, tmp_path: Path) -> None:
    out = tmp_path / "adapter.gguf"
    build_lora_gguf(ASSETS / name, BASE, out, silent, name=title)
    assert list(gguf_tensors(out).items()) == list(expected_gguf(f"gguf-lora/{name}").items())
    assert gguf_metadata(out) == oracles()[f"gguf-lora/{name}"]["metadata"]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", ["qwen2-tied", "llama-spm", "mistral"])
def test_adapters_of_other_families_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    """Llama's have their rows of q and k in llama.cpp's order, as the base has."""
    adapter, out = write_adapter(name, tmp_path / "adapter"), tmp_path / "adapter.gguf"
    (tmp_path / "config.json").write_text(json.dumps(MODELS[name].config))
    build_lora_gguf(adapter, families.read_config(tmp_path), out, silent)
    expected = json.loads((ASSETS / "families.json").read_bytes())[name]["lora"]
    found = {key: (kind, digest[:16]) for key, (kind, digest) in gguf_tensors(out).items()}
    assert found == {key: (text.split()[0], text.split()[2]) for key, text in expected["tensors"].items()}
    assert gguf_metadata(out) == {key: value for key, value in expected["metadata"].items() if key != "general.name"}


def test_an_adapter_is_read() -> None:
    adapter = read_adapter(ASSETS / "lora-r16")
    assert (adapter.rank, adapter.base) == (16, "tiny-qwen3")
    assert adapter.target_modules == ("k_proj", "o_proj", "q_proj", "v_proj")
    assert read_adapter(LORA_A).alpha == 16.0


def test_the_digest_is_over_both_files(copied: Path) -> None:
    first = read_adapter(copied)
    assert first == read_adapter(LORA_A)
    edit_json(copied / "adapter_config.json", lora_dropout=0.5)
    second = read_adapter(copied)
    write_safetensors(copied / "adapter_model.safetensors", tensors_of(ASSETS / "lora-b"))
    assert len({first.sha256, second.sha256, read_adapter(copied).sha256}) == 3
    assert first.source == f"dir:{first.sha256}"


def test_rank_stabilized_scaling_is_folded_into_alpha(copied: Path, tmp_path: Path) -> None:
    edit_json(copied / "adapter_config.json", use_rslora=True)
    build_lora_gguf(copied, BASE, tmp_path / "adapter.gguf", silent)
    alpha = gguf_metadata(tmp_path / "adapter.gguf")["adapter.lora.alpha"]
    # llama.cpp scales by alpha / rank; rsLoRA means lora_alpha / sqrt(rank), here 16 / sqrt(8).
    assert alpha / 8 == pytest.approx(16 / 8**0.5, rel=1e-6)


@pytest.mark.parametrize("bits", [0x3F80, 0xBE99])
def test_bf16_adapters_are_taken(bits: int, copied: Path, tmp_path: Path) -> None:
    tensors = {name: np.full(tensor.shape, bits, np.uint16) for name, tensor in tensors_of(copied).items()}
    write_safetensors(copied / "adapter_model.safetensors", tensors)
    build_lora_gguf(copied, BASE, tmp_path / "adapter.gguf", silent)
    value = np.array([bits << 16], np.uint32).view(np.float32).astype(np.float16)
    assert all((tensor.data == value).all() for tensor in Reader(tmp_path / "adapter.gguf").tensors)


def test_an_adapter_of_another_base_is_refused_with_every_tensor(tmp_path: Path) -> None:
    other = families.ModelConfig(**vars(BASE) | {"hidden_size": 512, "num_hidden_layers": 3})
    with pytest.raises(SourceError) as caught:
        build_lora_gguf(LORA_A, other, tmp_path / "adapter.gguf", silent)
    lines = caught.value.detail.splitlines()
    assert len([line for line in lines if "no such linear layer" in line]) == 8
    # q, k, v see the hidden size in A, o in B; three layers.
    assert len([line for line in lines if "the base needs" in line]) == 12
    assert "tiny-qwen3" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_on_an_untied_head_is_taken(copied: Path, tmp_path: Path) -> None:
    edit_json(copied / "adapter_config.json", target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"])
    halves = {
        "base_model.model.lm_head.lora_A.weight": np.ones((8, 256), np.float32),
        "base_model.model.lm_head.lora_B.weight": np.ones((4128, 8), np.float32),
    }
    write_safetensors(copied / "adapter_model.safetensors", tensors_of(copied) | halves)
    build_lora_gguf(copied, families.read_config(UNTIED), tmp_path / "adapter.gguf", silent)
    assert {"output.weight.lora_a", "output.weight.lora_b"} < gguf_tensors(tmp_path / "adapter.gguf").keys()


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "NaN or Inf"), (np.inf, "NaN or Inf"), (7e4, "too large for F16")]
)
def test_values_that_f16_cannot_hold_are_refused(value: float, reason: str, copied: Path, tmp_path: Path) -> None:
    tensors = tensors_of(copied)
    tensors[FIRST][3, 5] = value
    write_safetensors(copied / "adapter_model.safetensors", tensors)
    with pytest.raises(SourceError, match=reason):
        build_lora_gguf(copied, BASE, tmp_path / "adapter.gguf", silent)
    assert not (tmp_path / "adapter.gguf").exists()


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done > total // 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        build_lora_gguf(LORA_A, BASE, tmp_path / "adapter.gguf", stop)
    assert list(tmp_path.iterdir()) == []

"""An unquantized GGUF as what is built from, against llama_model_quantize on the same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from artifact_files import TINY, UNTIED, Reader, as_converted, expected_gguf, gguf_contents, gguf_tensors, quantizer
from gguf import GGUFWriter
from test_families import oracle
from tiny_models import write_model

from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.artifacts.gguf_quantize import quantizing
from orchestrator.artifacts.gguf_types import Quant
from orchestrator.core.progress import silent
from orchestrator.errors import Interrupted, SourceError


def quantize(source: Path, out: Path, quant: Quant, progress: Any = silent) -> None:
    with quantizing(source, quant, quantizer()) as work:
        work.write(out, progress)


@pytest.fixture(scope="module")
def unquantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Quant], Path]:
    """The GGUF of a tiny model, in the precision of its weights; each is made once."""
    directory = tmp_path_factory.mktemp("unquantized")

    def make(name: str, quant: Quant) -> Path:
        out = directory / f"{name}.gguf"
        if not out.exists():
            source = write_model(name, directory / name)
            build_gguf(source, out, quant, quantizer(), silent, name="Any")
        return out

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start", "quant"),
    [
        ("llama-spm", "bf16", "q4_k_m"),
        ("llama-spm", "bf16", "q8_0"),
        ("llama-spm", "bf16", "f16"),
        ("llama-3", "f16", "q5_k_m"),
        ("qwen2-tied", "bf16", "q6_k"),
        ("qwen2-narrow", "bf16", "q4_k_m"),
    ],
)
def test_files_are_those_of_llama_cpp(
    name: str, start: Quant, quant: Quant, unquantized: Callable[[str, Quant], Path], tmp_path: Path
) -> None:
    out = tmp_path / "model.gguf"
    quantize(unquantized(name, start), out, quant)
    expected = oracle(name)[f"{start}-{quant}" if quant in ("q8_0", "f16") else quant]
    found = gguf_contents(out)
    assert list(found.tensors.items()) == list(expected["tensors"].items())
    left_out = ("general.version", "general.basename")
    wanted = {key: value for key, value in expected["metadata"].items() if key not in left_out}
    wanted |= {"general.name": "Any"}
    assert as_converted(found.metadata, wanted) == wanted
    assert found.vocabulary == oracle(name)["vocabulary"]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "expected"), [(TINY, "gguf/q6_k"), (UNTIED, "untied/gguf/q6_k")])
def test_in_two_steps_it_is_what_it_is_in_one(source: Path, expected: str, tmp_path: Path) -> None:
    build_gguf(source, tmp_path / "bf16.gguf", "bf16", quantizer(), silent)
    quantize(tmp_path / "bf16.gguf", tmp_path / "q6_k.gguf", "q6_k")
    assert list(gguf_tensors(tmp_path / "q6_k.gguf").items()) == list(expected_gguf(expected).items())


def test_float32_files_are_taken_and_every_key_is_kept(tmp_path: Path) -> None:
    keys = {
        "general.name": "n\u00e4me",
        "some.bool": True,
        "some.float": 0.5,
        "some.negative": -7,
        "some.numbers": [1, 2, 3],
        "some.flags": [True, False],
        "some.words": ["a", "", "\u00fc"],
    }
    values = np.random.default_rng(0).standard_normal((8, 512), np.float32)
    write(tmp_path / "f32.gguf", {"blk.0.ffn_up.weight": values, "blk.0.attn_norm.weight": values[0]}, keys)
    quantize(tmp_path / "f32.gguf", tmp_path / "q8_0.gguf", "q8_0")
    reader = Reader(tmp_path / "q8_0.gguf")
    assert {key: reader.fields[key].contents() for key in keys} == keys
    before = Reader(tmp_path / "f32.gguf").fields
    assert all(reader.fields[key].types == before[key].types for key in keys)
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert np.array_equal(found["blk.0.ffn_up.weight"], gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0))
    assert np.array_equal(found["blk.0.attn_norm.weight"], values[0])


def write(file: Path, tensors: dict[str, np.ndarray[Any, Any]], keys: dict[str, Any], arch: str = "llama") -> None:
    """A GGUF file of one layer with these tensors, an embedding, and these keys; None leaves one out."""
    writer = GGUFWriter(file, arch)
    plain: dict[str, Any] = {f"{arch}.block_count": 1, f"{arch}.attention.head_count": 2}
    for key, value in (plain | keys).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name, tensor in ({"token_embd.weight": np.zeros((4, 32), np.float32)} | tensors).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


MATRIX = np.zeros((4, 32), np.float32)


@pytest.mark.parametrize(
    ("tensors", "keys", "arch", "reason"),
    [
        ({}, {}, "gemma3", "architecture is gemma3"),
        ({}, {"llama.expert_count": 8}, "llama", "mixture of experts"),
        ({}, {"general.type": "adapter"}, "llama", "general.type is adapter"),
        ({}, {"split.count": 2}, "llama", "split.count is 2"),
        ({}, {"llama.block_count": None}, "llama", "block_count is None"),
        ({}, {"llama.attention.head_count": [2, 2]}, "llama", "head_count is a list"),
        ({"blk.0.attn_qkv.weight": MATRIX}, {}, "llama", "the matrix blk.0.attn_qkv.weight"),
        ({"blk.0.ffn_up.weight": np.zeros((2, 4, 32), np.float32)}, {}, "llama", "the matrix blk.0.ffn_up.weight"),
    ],
)
def test_what_the_policy_is_not_known_of_is_refused(
    tensors: dict[str, Any], keys: dict[str, Any], arch: str, reason: str, tmp_path: Path
) -> None:
    write(tmp_path / "model.gguf", tensors, keys, arch)
    with pytest.raises(SourceError) as caught:
        quantize(tmp_path / "model.gguf", tmp_path / "out.gguf", "q8_0")
    assert reason in caught.value.message
    assert "llama-quantize" in caught.value.hint
    assert not (tmp_path / "out.gguf").exists()


def test_quantizing_twice_is_refused(unquantized: Callable[[str, Quant], Path], tmp_path: Path) -> None:
    quantize(unquantized("qwen2-narrow", "bf16"), tmp_path / "q8_0.gguf", "q8_0")
    with pytest.raises(SourceError, match=r"quantized already: output\.weight is Q8_0") as caught:
        quantize(tmp_path / "q8_0.gguf", tmp_path / "q4_k_m.gguf", "q4_k_m")
    assert "original weights" in caught.value.hint


def test_nan_is_refused_and_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    source, out = tmp_path / "model.gguf", tmp_path / "out.gguf"
    write(source, {"blk.0.ffn_up.weight": np.full((4, 32), np.nan, np.float32)}, {})
    with pytest.raises(SourceError, match=r"blk\.0\.ffn_up\.weight contains NaN or Inf"):
        quantize(source, out, "q8_0")

    def stop(what: str, done: int, total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        quantize(source, out, "q8_0", stop)
    assert list(tmp_path.iterdir()) == [source]


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGML")
    with pytest.raises(SourceError, match="not a sound GGUF file"):
        quantize(tmp_path / "model.gguf", tmp_path / "out.gguf", "q8_0")

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from artifact_files import (
    TINY,
    UNTIED,
    Reader,
    as_converted,
    copy_narrow,
    copy_tiny,
    edit_json,
    expected_gguf,
    gguf_metadata,
    gguf_tensors,
    oracles,
    quantizer,
    quantizer_library,
    read_safetensors,
    write_safetensors,
)
from gguf import GGMLQuantizationType, dequantize

from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.artifacts.gguf_types import Quant
from orchestrator.artifacts.quantize import Quantizer
from orchestrator.core.progress import silent
from orchestrator.errors import HostError, Interrupted, SourceError

pytestmark = pytest.mark.slow

QUANTS: tuple[Quant, ...] = ("bf16", "q6_k")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    """Both models as both types, by the names of their oracles, each built and read once."""
    found = {}
    for source, oracle, name in ((TINY, "gguf/", "Tiny Qwen3"), (UNTIED, "untied/gguf/", None)):
        for quant in QUANTS:
            out = tmp_path_factory.mktemp("built") / "model.gguf"
            build_gguf(source, out, quant, quantizer(), silent, name=name)
            assert list(out.parent.iterdir()) == [out]
            found[f"{oracle}{quant}"] = Reader(out)
    return found


@pytest.mark.parametrize("oracle", ["gguf/bf16", "gguf/q6_k", "untied/gguf/bf16", "untied/gguf/q6_k"])
def test_tensors_are_those_of_llama_cpp_byte_for_byte_and_in_order(built: dict[str, Reader], oracle: str) -> None:
    assert list(gguf_tensors(built[oracle]).items()) == list(expected_gguf(oracle).items())


@pytest.mark.parametrize("quant", QUANTS)
def test_metadata_is_that_of_llama_cpp(built: dict[str, Reader], quant: Quant) -> None:
    expected = oracles()[f"gguf/{quant}"]["metadata"]
    assert as_converted(gguf_metadata(built[f"gguf/{quant}"]), expected) == expected
    found, expected = gguf_metadata(built[f"untied/gguf/{quant}"]), oracles()[f"untied/gguf/{quant}"]["metadata"]
    assert found.pop("general.size_label") == "4.8M"
    assert as_converted(found, expected) == expected


def test_bytes_do_not_depend_on_where_the_source_lies(tmp_path: Path) -> None:
    build_gguf(TINY, tmp_path / "one.gguf", "q6_k", quantizer(), silent)
    build_gguf(copy_tiny(tmp_path / "elsewhere"), tmp_path / "two.gguf", "q6_k", quantizer(), silent)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_a_tied_head_that_is_stored_anyway_is_left_out(tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    tensors = read_safetensors(source)
    write_safetensors(source / "model.safetensors", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    build_gguf(source, tmp_path / "model.gguf", "q6_k", quantizer(), silent)
    assert gguf_tensors(tmp_path / "model.gguf") == expected_gguf("gguf/q6_k")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_wider_weights_are_rounded_to_bf16_to_nearest(dtype: type[np.floating], tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    random = np.random.default_rng(1)
    tensors = {
        name: (random.standard_normal(tensor.shape) * 0.1).astype(dtype)
        for name, tensor in read_safetensors(source).items()
    }
    write_safetensors(source / "model.safetensors", tensors)
    build_gguf(source, tmp_path / "model.gguf", "bf16", quantizer(), silent)
    written = {tensor.name: tensor for tensor in Reader(tmp_path / "model.gguf").tensors}
    down = tensors["model.layers.0.mlp.down_proj.weight"].astype(np.float32)
    found = dequantize(written["blk.0.ffn_down.weight"].data, GGMLQuantizationType.BF16)
    # bf16 keeps 8 bits of mantissa, so the nearest one is within half of 2^-8, relatively.
    assert np.abs(found - down).max() > 0
    assert (np.abs(found - down) <= np.abs(down) * 2**-8).all()
    norm = tensors["model.norm.weight"].astype(np.float32)
    assert np.array_equal(written["output_norm.weight"].data, norm)


def test_columns_that_fit_no_quantized_type_become_f16(tmp_path: Path) -> None:
    source = copy_narrow(tmp_path / "source")
    build_gguf(source, tmp_path / "model.gguf", "q6_k", quantizer(), silent)
    written = {tensor.name: tensor for tensor in Reader(tmp_path / "model.gguf").tensors}
    down = read_safetensors(source)["model.layers.0.mlp.down_proj.weight"].astype(np.uint32) << 16
    assert written["blk.0.ffn_down.weight"].tensor_type is GGMLQuantizationType.F16
    assert np.array_equal(written["blk.0.ffn_down.weight"].data, down.view(np.float32).astype(np.float16))
    assert written["blk.0.ffn_up.weight"].tensor_type is GGMLQuantizationType.Q6_K


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("bits", [0x7F80, 0x7FC0])
def test_nan_and_inf_are_refused_by_tensor_name(bits: int, quant: Quant, tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    tensors = read_safetensors(source)
    tensors["model.layers.2.mlp.up_proj.weight"][700, 13] = bits
    write_safetensors(source / "model.safetensors", tensors)
    with pytest.raises(SourceError, match=r"model\.layers\.2\.mlp\.up_proj\.weight contains NaN or Inf"):
        build_gguf(source, tmp_path / "model.gguf", quant, quantizer(), silent)
    assert list(tmp_path.iterdir()) == [source]


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def stop_half_way(what: str, done: int, total: int) -> None:
        seen.append((done, total))
        if done > total // 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        build_gguf(TINY, tmp_path / "model.gguf", "q6_k", quantizer(), stop_half_way)
    assert list(tmp_path.iterdir()) == []
    assert 0 < seen[-1][0] < seen[-1][1]


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    out.write_bytes(b"older")

    def stop(what: str, done: int, total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        build_gguf(TINY, out, "q6_k", quantizer(), stop)
    assert out.read_bytes() == b"older"


def test_progress_grows_to_the_size_of_the_weights(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    build_gguf(
        UNTIED, tmp_path / "model.gguf", "q6_k", quantizer(), lambda what, done, total: seen.append((done, total))
    )
    weights = json.loads((UNTIED / "model.safetensors.index.json").read_bytes())["metadata"]["total_size"]
    assert seen == sorted(seen)
    assert seen[-1] == (weights, weights)


KILLED = """
import sys
from pathlib import Path
from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.artifacts.quantize import Quantizer

def half_way(what, done, total):
    if done > total // 2:
        print("half way", flush=True)
        sys.stdin.read()

build_gguf(Path(sys.argv[1]), Path(sys.argv[2]), "q6_k", Quantizer(Path(sys.argv[3])), half_way)
"""


def test_a_killed_build_leaves_nothing_that_looks_finished_and_can_be_repeated(tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    arguments = [sys.executable, "-c", KILLED, str(TINY), str(out), str(quantizer_library())]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half way\n"
        child.kill()
    assert not list(tmp_path.glob("*.gguf"))
    build_gguf(TINY, out, "q6_k", quantizer(), silent)
    assert gguf_tensors(out) == expected_gguf("gguf/q6_k")
    assert list(tmp_path.iterdir()) == [out]


def test_a_full_disk_is_a_host_error_that_says_so(tmp_path: Path) -> None:
    # Where the build writes first; every write to /dev/full fails as on a full disk.
    (tmp_path / ".model.gguf.part").symlink_to("/dev/full")
    with pytest.raises(HostError) as caught:
        build_gguf(TINY, tmp_path / "model.gguf", "q6_k", quantizer(), silent)
    assert "No space left" in caught.value.message
    assert "Free some disk space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_the_space_for_the_whole_file_is_taken_before_any_work(tmp_path: Path) -> None:
    taken: list[int] = []

    def look(what: str, done: int, total: int) -> None:
        taken.append((tmp_path / ".model.gguf.part").stat().st_blocks * 512)

    build_gguf(TINY, tmp_path / "model.gguf", "q6_k", quantizer(), look)
    assert taken[0] >= (tmp_path / "model.gguf").stat().st_size


def test_a_missing_directory_is_a_host_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        build_gguf(TINY, tmp_path / "none" / "model.gguf", "q6_k", quantizer(), silent)


@pytest.mark.parametrize("content", [None, b"no library"])
def test_a_broken_quantizer_is_a_host_error(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "library.so").write_bytes(content)
    with pytest.raises(HostError, match="cannot be loaded"):
        Quantizer(tmp_path / "library.so")


def test_a_library_without_the_quantizer_is_a_host_error() -> None:
    import _ctypes

    with pytest.raises(HostError, match="cannot be loaded"):
        Quantizer(Path(_ctypes.__file__))


def test_rows_that_would_abort_the_library_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot quantize"):
        quantizer()(GGMLQuantizationType.Q6_K, np.zeros((1, 255), np.float32))
    with pytest.raises(ValueError, match="cannot quantize"):
        quantizer()(GGMLQuantizationType.Q6_K, np.zeros((256, 2), np.float32).T)


MEASURED = """
import re, sys
from pathlib import Path
from orchestrator.artifacts.builder import Builder
from orchestrator.core.progress import silent

source, work, library, recipe = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
from orchestrator.core.artifact import Recipe
Builder(library).build(Recipe(recipe), source, work, silent)
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.fixture(scope="module")
def wide_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half the embedding of a Qwen3-8B, 620 MB of bf16 (a hole in the file), over one tiny layer."""
    source = copy_tiny(tmp_path_factory.mktemp("wide") / "source")
    changes = {"hidden_size": 4096, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 75968}
    edit_json(source / "config.json", **changes, num_attention_heads=1, num_key_value_heads=1, layer_types=...)
    shapes = {
        "model.embed_tokens": (75968, 4096),
        "model.norm": (4096,),
        "model.layers.0.input_layernorm": (4096,),
        "model.layers.0.post_attention_layernorm": (4096,),
        "model.layers.0.self_attn.q_norm": (64,),
        "model.layers.0.self_attn.k_norm": (64,),
        "model.layers.0.self_attn.q_proj": (64, 4096),
        "model.layers.0.self_attn.k_proj": (64, 4096),
        "model.layers.0.self_attn.v_proj": (64, 4096),
        "model.layers.0.self_attn.o_proj": (4096, 64),
        "model.layers.0.mlp.gate_proj": (32, 4096),
        "model.layers.0.mlp.up_proj": (32, 4096),
        "model.layers.0.mlp.down_proj": (4096, 32),
    }
    header = {}
    end = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (source / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return source


@pytest.mark.parametrize("recipe", ["gguf-q6_k", "gguf-bf16", "nvfp4a16"])
def test_memory_stays_small_whatever_the_size_of_a_tensor(recipe: str, wide_source: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    arguments = [sys.executable, "-c", MEASURED, str(wide_source), str(work), str(quantizer_library()), recipe]
    try:
        measured = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert sum(file.stat().st_size for file in work.iterdir()) > 250_000_000
    finally:
        shutil.rmtree(work)
    assert int(measured.stdout) * 1024 < 400_000_000

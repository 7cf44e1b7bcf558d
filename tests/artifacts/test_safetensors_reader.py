from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_files import UNTIED, raw_safetensors, write_safetensors

from orchestrator.artifacts.rows import read_finite, to_float32
from orchestrator.artifacts.safetensors import Checkpoint, ShardWriter, row_blocks
from orchestrator.errors import SourceError


def entry(dtype: object = "BF16", shape: object = (2, 2), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SOUND = {"a": entry()}
DATA = bytes(8)

LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "no header": (b"\x10\0\0", "3 bytes"),
    "header beyond the file": (raw_safetensors(SOUND, DATA)[:20], "header claims"),
    "header of an exabyte": (b"\xff" * 8 + b"{}", "header claims"),
    "header over 100 MB": ((100_000_001).to_bytes(8, "little") + b"{}", "header claims"),
    "not JSON": (raw_safetensors(b"{nonsense"), "JSON"),
    "not UTF-8": (raw_safetensors(b'{"\xff\xfe": 1}'), "JSON"),
    "a list": (raw_safetensors(b"[]"), "JSON object"),
    "nested without end": (raw_safetensors(b'{"a":' + b"[" * 200_000), "JSON"),
    "a number without end": (raw_safetensors(b'{"a":' + b"9" * 10_000 + b"}"), "JSON"),
    "a pickle": (b"\x80\x04\x95" + bytes(100), "header"),
    "duplicate keys": (raw_safetensors(b'{"a": 1, "a": 2}'), "duplicate key 'a'"),
    "entry is no object": (raw_safetensors({"a": 1}), "entry of a"),
    "entry without shape": (raw_safetensors({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, DATA), "entry of a"),
    "entry with more": (raw_safetensors({"a": entry() | {"b": 1}}, DATA), "entry of a"),
    "a name that moves the cursor": (raw_safetensors({"\x1b[2J": entry()}, DATA), r"called '\x1b[2J'"),
    "unknown dtype": (raw_safetensors({"a": entry("F13")}, DATA), 'dtype "F13"'),
    "dtype is a list": (raw_safetensors({"a": entry(["F32"])}, DATA), "dtype"),
    "negative shape": (raw_safetensors({"a": entry(shape=[-2, -2])}, DATA), "shape"),
    "huge shape": (raw_safetensors({"a": entry(shape=[2**63, 2])}, DATA), "shape"),
    "huge product": (raw_safetensors({"a": entry(shape=[2**40, 2**40])}, DATA), "bytes"),
    "float shape": (raw_safetensors({"a": entry(shape=[2.0, 2])}, DATA), "shape"),
    "boolean shape": (raw_safetensors({"a": entry(shape=[True, 4])}, DATA), "shape"),
    "too many dimensions": (raw_safetensors({"a": entry(shape=[1] * 9)}, DATA), "shape"),
    "size is not shape x dtype": (raw_safetensors({"a": entry(shape=[2, 3])}, DATA), "needs 12 bytes, has 8"),
    "offsets reversed": (raw_safetensors({"a": entry(offsets=[8, 0])}, DATA), "data_offsets"),
    "offsets negative": (raw_safetensors({"a": entry(offsets=[-8, 0])}, DATA), "data_offsets"),
    "three offsets": (raw_safetensors({"a": entry(offsets=[0, 8, 8])}, DATA), "data_offsets"),
    "file too short": (raw_safetensors(SOUND, DATA[:7]), "end at byte"),
    "file too long": (raw_safetensors(SOUND, DATA + b"\0"), "end at byte"),
    "offsets outside": (raw_safetensors({"a": entry(offsets=[8, 16])}, DATA), "follows a hole"),
    "a hole": (raw_safetensors({"a": entry(), "b": entry(offsets=[10, 18])}, bytes(18)), "b follows a hole"),
    "an overlap": (raw_safetensors({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "b overlaps"),
    "twice the same bytes": (raw_safetensors({"a": entry(), "b": entry()}, DATA), "overlaps"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_lying_file_is_refused_by_name_and_reason(case: str, tmp_path: Path) -> None:
    content, reason = LIES[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(SourceError) as caught:
        Checkpoint.open(tmp_path)
    assert "model.safetensors" in caught.value.message
    assert reason in caught.value.message


def test_a_sound_file_opens(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw_safetensors({"__metadata__": {"format": "pt"}} | SOUND, DATA))
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.tensors["a"].shape == (2, 2)
        assert checkpoint.read(checkpoint.tensors["a"]).tolist() == [[0, 0], [0, 0]]


def shards(directory: Path) -> dict[str, Any]:
    """Two sound shards and their index."""
    write_safetensors(directory / "one.safetensors", {"a": np.zeros((2, 2), np.uint16)})
    write_safetensors(directory / "two.safetensors", {"b": np.zeros(4, np.float32)})
    return {"a": "one.safetensors", "b": "two.safetensors"}


BAD_INDEXES: dict[str, tuple[object, str]] = {
    "no weight_map": ({}, "no weight_map"),
    "empty weight_map": ({"weight_map": {}}, "no weight_map"),
    "missing shard": ({"weight_map": {"a": "one.safetensors", "b": "three.safetensors"}}, "three.safetensors"),
    "missing tensor": ({"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}}, "c:"),
    "wrong shard": ({"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}}, "a: the index says two"),
    "forgotten tensor": ({"weight_map": {"b": "two.safetensors", "x": "one.safetensors"}}, "a: in one"),
    "escapes upwards": ({"weight_map": {"a": "../one.safetensors"}}, "not a file of this directory"),
    "escapes to the root": ({"weight_map": {"a": "/one.safetensors"}}, "not a file of this directory"),
    "a pickle": ({"weight_map": {"a": "one.bin"}}, "not a file of this directory"),
    "a number": ({"weight_map": {"a": 1}}, "not a file of this directory"),
    "a list": ([], "not hold a JSON object"),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_an_index_that_disagrees_with_its_shards_is_refused(case: str, tmp_path: Path) -> None:
    index, reason = BAD_INDEXES[case]
    shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError) as caught:
        Checkpoint.open(tmp_path)
    assert reason in f"{caught.value.message}\n{caught.value.detail}"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_shard_that_is_no_plain_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    weight_map = shards(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    make(tmp_path / "two.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(SourceError, match="not a regular file"):
        Checkpoint.open(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    weight_map = shards(tmp_path)
    write_safetensors(tmp_path / "two.safetensors", {"a": np.zeros((2, 2), np.uint16), "b": np.zeros(4, np.float32)})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(SourceError, match=r"tensor a is also in one\.safetensors"):
        Checkpoint.open(tmp_path)


def test_a_single_file_counts_before_an_index(tmp_path: Path) -> None:
    """As for transformers: the shards are of another time."""
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards(tmp_path)}))
    write_safetensors(tmp_path / "model.safetensors", {"a": np.ones((2, 2), np.uint16)})
    with Checkpoint.open(tmp_path) as checkpoint:
        assert [file.name for file in checkpoint.files] == ["model.safetensors"]


def test_pickled_weights_are_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(SourceError) as caught:
        Checkpoint.open(tmp_path)
    assert "Pickled" in caught.value.hint


def test_a_file_cut_after_it_was_opened_is_an_error_and_no_crash(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    write_safetensors(file, {"a": np.zeros((1000, 16), np.float32)})
    with Checkpoint.open(tmp_path) as checkpoint:
        with file.open("r+b") as cut:
            cut.truncate(1000)
        with pytest.raises(SourceError, match="ends inside tensor a"):
            checkpoint.read(checkpoint.tensors["a"])


def test_row_blocks_put_together_are_the_tensor(tmp_path: Path) -> None:
    values = np.arange(7 * 32, dtype=np.float32).reshape(7, 32)
    write_safetensors(tmp_path / "model.safetensors", {"pad": np.zeros(1, np.float16), "a": values})
    with Checkpoint.open(tmp_path) as checkpoint:
        tensor = checkpoint.tensors["a"]
        ranges = list(row_blocks(tensor, 64))
        assert ranges == [(0, 2), (2, 4), (4, 6), (6, 7)]
        assert np.array_equal(np.concatenate([checkpoint.read(tensor, *rows) for rows in ranges]), values)


def test_bf16_bits_become_their_exact_values() -> None:
    bits = np.array([[0x3F80, 0xC000, 0x0000, 0x8000, 0x7F7F]], np.uint16)
    assert to_float32(bits).tolist() == [[1.0, -2.0, 0.0, -0.0, 3.3895313892515355e38]]


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0xFFFF])
def test_not_finite_bf16_is_refused_by_tensor_name(bits: int, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"w": np.array([[0x3F80, bits]], np.uint16)})
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(SourceError, match="tensor w contains NaN or Inf"):
        read_finite(checkpoint, checkpoint.tensors["w"], 0, 1)


def test_what_the_writer_wrote_the_reader_takes(tmp_path: Path) -> None:
    layout = {"b": ("U8", (2, 3)), "a": ("F32", (4,)), "c": ("BF16", (2, 2))}
    values = {
        "a": np.arange(4, dtype=np.float32).reshape(1, 4),
        "b": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "c": np.arange(4, dtype=np.uint16).reshape(2, 2),
    }
    file = tmp_path / "model.safetensors"
    with ShardWriter(file, layout) as writer:
        writer.write("b", values["b"][1:], 1)
        writer.write("b", values["b"][:1], 0)
        writer.write("a", values["a"], 0)
        writer.write("c", values["c"], 0)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert all(np.array_equal(checkpoint.read(checkpoint.tensors[name]), values[name]) for name in values)


def test_a_forgotten_row_is_noticed(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="not written"),
        ShardWriter(tmp_path / "model.safetensors", {"b": ("U8", (2, 3))}) as writer,
    ):
        writer.write("b", np.zeros((1, 3), np.uint8), 0)


def test_the_sharded_asset_opens_whole() -> None:
    with Checkpoint.open(UNTIED) as checkpoint:
        assert len(checkpoint.files) == 3
        assert len(checkpoint.tensors) == 47

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_files import TINY, UNTIED, Reader, gguf_info, gguf_key, gguf_string, quantizer, raw_gguf
from gguf import GGMLQuantizationType, GGUFWriter

from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.artifacts.gguf_reader import GgufFile
from orchestrator.artifacts.gguf_types import Quant
from orchestrator.core.progress import silent
from orchestrator.errors import SourceError

UINT8, INT8, UINT32, FLOAT32, BOOL, STRING, ARRAY = 0, 1, 4, 6, 7, 8, 9
F32, F16, Q6_K, Q8_0 = 0, 1, 14, 8
A = gguf_info("a", (2, 2))
DATA = bytes(16)


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def array(key: str, kind: int, count: int, items: bytes = b"") -> bytes:
    return gguf_key(key, ARRAY, u32(kind) + u64(count) + items)


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize(("source", "quant"), [(TINY, "bf16"), (UNTIED, "q6_k")])
def test_a_built_file_is_read_as_ggufs_own_reader_reads_it(source: Path, quant: Quant, tmp_path: Path) -> None:
    build_gguf(source, tmp_path / "model.gguf", quant, quantizer(), silent)
    theirs = Reader(tmp_path / "model.gguf")
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    with GgufFile.open(tmp_path / "model.gguf") as ours:
        assert {key: plain(value) for key, value in ours.fields.items()} == fields
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for other in theirs.tensors:
            tensor = ours.tensors[other.name]
            assert (tensor.kind, tensor.offset, tensor.size) == (other.tensor_type, other.data_offset, other.n_bytes)
            assert tensor.shape == tuple(other.shape[::-1].tolist())
            assert ours.read(tensor).tobytes() == other.data.tobytes()


def test_values_of_all_types_are_what_was_written(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "all.gguf", "test")
    wanted: dict[str, Any] = {"general.architecture": "test"}
    for kind, value in {
        "uint8": 200, "int8": -3, "uint16": 60_000, "int16": -3, "uint32": 2**32 - 1, "int32": -3,
        "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 0.1, "bool": True, "string": "ü",
    }.items():  # fmt: skip
        getattr(writer, f"add_{kind}")(kind, value)
        wanted[kind] = value
    for name, values in {
        "numbers": [1, -2],
        "floats": [0.5, 2.0],
        "truths": [True, False],
        "texts": ["", "a b"],
    }.items():
        writer.add_array(name, values)
        wanted[name] = values
    writer.add_tensor("half", np.arange(6, dtype=np.float16).reshape(3, 2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile.open(tmp_path / "all.gguf") as read:
        assert {key: plain(value) for key, value in read.fields.items()} == wanted
        assert read.types["numbers"].name == "INT32"
        assert read.read(read.tensors["half"], 1, 3).tolist() == [[2, 3], [4, 5]]


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "magic would end at byte 4, the file has 0"),
    "another format": (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
    "version 1": (raw_gguf([], [], version=1), "version 1"),
    "version 4": (raw_gguf([], [], version=4), "version 4"),
    "big-endian": (raw_gguf([], [], version=3 << 24), "big-endian"),
    "cut in the counts": (raw_gguf([], [])[:20], "count of keys"),
    "2^60 tensors": (raw_gguf([], [A], DATA, tensors=2**60), "claims 1152921504606846976 tensors"),
    "2^60 keys": (raw_gguf([], [A], DATA, keys=2**60), "1152921504606846976 keys"),
    "one tensor too few": (raw_gguf([], [], tensors=1), "would end at byte 36, the file has 32"),
    "a key without end": (raw_gguf([u64(2**60) + b"k"], []), "a key would end at byte 1152921504606847008"),
    "a key that overflows": (raw_gguf([u64(2**64 - 8) + b"k"], []), "a key would end"),
    "a key that is no text": (raw_gguf([gguf_key(b"\xff", UINT8, b"1")], []), "a key is not UTF-8"),
    "a key that moves the cursor": (raw_gguf([gguf_key("\x1b[2J", UINT8, b"1")], []), r"a key is '\x1b[2J'"),
    "a tensor that moves the cursor": (raw_gguf([], [gguf_info("a\r", (4,))], DATA), r"a tensor is 'a\r'"),
    "twice the same key": (raw_gguf([gguf_key("k", UINT8, b"1")] * 2, []), "key k twice"),
    "unknown value type": (raw_gguf([gguf_key("k", 13, u64(0))], []), "k is of the unknown type 13"),
    "text without end": (raw_gguf([gguf_key("k", STRING, u64(2**60))], []), "k would end"),
    "array of arrays": (raw_gguf([array("k", ARRAY, 1, u32(0) + u64(1))], []), "k is an array of arrays"),
    "array of nothing": (raw_gguf([array("k", 99, 1)], []), "k is of the unknown type 99"),
    "2^60 strings": (raw_gguf([array("k", STRING, 2**60)], []), "k claims 1152921504606846976 strings"),
    "2^63 numbers": (raw_gguf([array("k", UINT32, 2**63)], []), "k would end"),
    "alignment of another type": (raw_gguf([gguf_key("general.alignment", STRING, gguf_string("x"))], []), "32-bit"),
    "alignment 0": (raw_gguf([gguf_key("general.alignment", UINT32, u32(0))], [A], DATA), "is 0, not a power of two"),
    "alignment 24": (raw_gguf([gguf_key("general.alignment", UINT32, u32(24))], [A], DATA), "power of two"),
    "alignment 2^31": (raw_gguf([gguf_key("general.alignment", UINT32, u32(2**31))], [A], DATA), "power of two"),
    "long name": (raw_gguf([], [gguf_info("a" * 64, (4,))], DATA), "longer than 63 bytes"),
    "twice the same tensor": (raw_gguf([], [A, gguf_info("a", (4,), offset=32)], bytes(64)), "tensor a twice"),
    "five dimensions": (raw_gguf([], [gguf_info("a", (1,) * 5)], DATA), "5 dimensions"),
    "no elements": (raw_gguf([], [gguf_info("a", (4, 0))], DATA), "shape [0, 4]"),
    "negative shape": (raw_gguf([], [gguf_info("a", (4, 2**64 - 1))], DATA), "shape"),
    "huge product": (raw_gguf([], [gguf_info("a", (2**62, 2**62))], DATA), "tensor a would end at byte"),
    "unknown ggml type": (raw_gguf([], [gguf_info("a", (4,), kind=4)], DATA), "unknown ggml type 4"),
    "half a block": (raw_gguf([], [gguf_info("a", (128, 2), kind=Q6_K)], bytes(210)), "Q6_K has blocks of 256"),
    "cut in a tensor": (raw_gguf([], [A], DATA[:15]), "the file has"),
    "bytes behind": (raw_gguf([], [A], bytes(33)), "its tensors end at byte"),
    "offset outside": (raw_gguf([], [gguf_info("a", (2, 2), offset=2**63)], DATA), "a follows a hole"),
    "a hole": (raw_gguf([], [A, gguf_info("b", (4,), offset=64)], bytes(96)), "b follows a hole"),
    "an overlap": (raw_gguf([], [A, gguf_info("b", (4,), offset=8)], bytes(64)), "b overlaps"),
    "an order of its own": (raw_gguf([], [gguf_info("b", (4,), offset=32), A], bytes(64)), "b follows a hole"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_lying_file_is_refused_by_name_and_reason(case: str, tmp_path: Path) -> None:
    content, reason = LIES[case]
    (tmp_path / "model.gguf").write_bytes(content)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(SourceError) as caught:
        GgufFile.open(tmp_path / "model.gguf")
    assert "model.gguf" in caught.value.message
    assert reason in caught.value.message
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("version", [2, 3])
def test_a_sound_file_opens_with_and_without_padding_behind_it(version: int, tmp_path: Path) -> None:
    keys = [gguf_key("general.alignment", UINT32, u32(32)), array("truths", BOOL, 2, b"\x02\x00")]
    infos = [A, gguf_info("q", (32, 2), Q8_0, 32)]
    for padding in (0, 28):
        data = np.ones(4, np.float32).tobytes().ljust(32, b"\0") + bytes(range(68)) + bytes(padding)
        (tmp_path / "model.gguf").write_bytes(raw_gguf(keys, infos, data, version=version))
        with GgufFile.open(tmp_path / "model.gguf") as read:
            assert read.version == version
            assert plain(read.fields["truths"]) == [True, False]
            assert read.read(read.tensors["a"]).tolist() == [[1, 1], [1, 1]]
            tensor = read.tensors["q"]
            assert (tensor.kind, tensor.shape, tensor.rows) == (GGMLQuantizationType.Q8_0, (2, 32), 2)
            assert read.read(tensor, 1, 2).tolist() == [list(range(34, 68))]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: None])
def test_what_is_no_plain_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "model.gguf")
    with pytest.raises(SourceError, match=r"not a regular file|cannot be read"):
        GgufFile.open(tmp_path / "model.gguf")


def test_a_file_cut_after_it_was_opened_is_an_error_and_no_crash(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(raw_gguf([], [gguf_info("a", (16, 1000))], bytes(64_000)))
    with GgufFile.open(file) as read:
        os.truncate(file, 1000)
        with pytest.raises(SourceError, match="ends inside tensor a"):
            read.read(read.tensors["a"])

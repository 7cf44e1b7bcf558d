"""What several tests here make files of: the assets, their oracles, and safetensors files of any shape."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader

from orchestrator.artifacts.quantize import Quantizer
from orchestrator.artifacts.safetensors import Checkpoint

ASSETS = Path(__file__).parents[1] / "assets"
TINY = ASSETS / "tiny-qwen3"
UNTIED = ASSETS / "untied-qwen3"

_DTYPES = {"uint16": "BF16", "float16": "F16", "float32": "F32", "uint8": "U8"}


@cache
def oracles() -> dict[str, Any]:
    """What the reference builders wrote."""
    return dict(json.loads((ASSETS / "oracles.json").read_bytes()))


def quantizer_library() -> Path:
    """The shared library of the embedded llama.cpp."""
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.so"))


def quantizer() -> Quantizer:
    """A new one: one that has had much to do compiles its successor (see test_q6_k.py)."""
    return Quantizer(quantizer_library())


def raw_safetensors(header: object, data: bytes = b"") -> bytes:
    """A safetensors file of any header, sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_safetensors(path: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """uint16 stands for BF16."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        dtype = _DTYPES[tensor.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    path.write_bytes(raw_safetensors(header, b"".join(tensor.tobytes() for tensor in tensors.values())))


def read_safetensors(directory: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of a directory, in its shape."""
    with Checkpoint.open(directory) as checkpoint:
        return {name: checkpoint.read(tensor).reshape(tensor.shape) for name, tensor in checkpoint.tensors.items()}


def copy_tiny(directory: Path) -> Path:
    """A writable copy of the tiny weights."""
    return Path(shutil.copytree(TINY, directory))


def copy_narrow(place: Path) -> Path:
    """The same with matrices of 40 columns, which no quantized type divides."""
    copy_tiny(place)
    edit_json(place / "config.json", intermediate_size=40)
    tensors = read_safetensors(place)
    for name, tensor in tensors.items():
        if "mlp" in name:
            tensors[name] = np.ascontiguousarray(tensor[:, :40] if "down" in name else tensor[:40])
    write_safetensors(place / "model.safetensors", tensors)
    return place


def edit_json(file: Path, **changes: object) -> None:
    """Sets fields of a JSON file; `...` removes one."""
    value = json.loads(file.read_bytes()) | changes
    file.write_text(json.dumps({name: field for name, field in value.items() if field is not ...}))


class Reader(GGUFReader):
    """gguf's own, over a plain array instead of a memmap, whose slices take several times as long."""

    @property
    def data(self) -> np.ndarray[Any, Any]:
        return self._data

    @data.setter
    def data(self, mapped: np.ndarray[Any, Any]) -> None:
        self._data = np.asarray(mapped)


def gguf_tensors(file: Path | GGUFReader) -> dict[str, tuple[str, str]]:
    """Name to (type, SHA-256 of the bytes), in the order of the file."""
    return {
        tensor.name: (tensor.tensor_type.name, hashlib.sha256(tensor.data.tobytes()).hexdigest())
        for tensor in (Reader(file) if isinstance(file, Path) else file).tensors
    }


def gguf_metadata(file: Path | GGUFReader) -> dict[str, Any]:
    """The keys of a GGUF, without the tokenizer's long lists."""
    long = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges", "scores"))
    fields = (Reader(file) if isinstance(file, Path) else file).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.") and key not in long}


def expected_gguf(name: str) -> dict[str, tuple[str, str]]:
    """The oracle in the form of `gguf_tensors`."""
    return {key: (tensor["type"], tensor["sha256"]) for key, tensor in oracles()[name]["tensors"].items()}


def gguf_string(text: str | bytes) -> bytes:
    """A string as GGUF has it."""
    raw = text if isinstance(text, bytes) else text.encode()
    return len(raw).to_bytes(8, "little") + raw


def gguf_key(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A key of the value type `kind`."""
    return gguf_string(key) + kind.to_bytes(4, "little") + value


def gguf_info(name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """What is told of a tensor; `shape` in GGUF's order, the innermost dimension first."""
    sizes = b"".join(size.to_bytes(8, "little") for size in shape)
    return (
        gguf_string(name)
        + len(shape).to_bytes(4, "little")
        + sizes
        + kind.to_bytes(4, "little")
        + offset.to_bytes(8, "little")
    )


def raw_gguf(keys: list[bytes], infos: list[bytes], data: bytes = b"", /, **counts: int) -> bytes:
    """A GGUF file of any head, sound or not; `counts` may lie about `version`, `tensors`, `keys`."""
    head = b"GGUF" + counts.get("version", 3).to_bytes(4, "little")
    head += counts.get("tensors", len(infos)).to_bytes(8, "little")
    head += counts.get("keys", len(keys)).to_bytes(8, "little")
    head += b"".join(keys + infos)
    return head + bytes(-len(head) % 32) + data


def gguf_model(path: Path, **changes: Any) -> Path:
    """A tiny Q6_K file of zeros, of one layer. `changes` replace keys and tensors (type, shape); `...` removes one."""
    told: dict[str, Any] = {
        "general.architecture": "qwen3",
        "general.type": "model",
        "general.file_type": 18,
        "qwen3.block_count": 1,
        "qwen3.context_length": 512,
        "qwen3.embedding_length": 256,
        "qwen3.feed_forward_length": 256,
        "qwen3.attention.head_count": 4,
        "qwen3.attention.head_count_kv": 2,
        "qwen3.attention.key_length": 64,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "c", "d"],
        "token_embd.weight": ("Q6_K", (4, 256)),
        "output_norm.weight": ("F32", (256,)),
        "blk.0.attn_q.weight": ("Q6_K", (256, 256)),
        "blk.0.attn_k.weight": ("Q6_K", (128, 256)),
        "blk.0.attn_v.weight": ("Q6_K", (128, 256)),
        "blk.0.attn_output.weight": ("Q6_K", (256, 256)),
        "blk.0.ffn_gate.weight": ("Q6_K", (256, 256)),
        "blk.0.ffn_up.weight": ("Q6_K", (256, 256)),
        "blk.0.ffn_down.weight": ("Q6_K", (256, 256)),
    }
    keys, infos, size = [], [], 0
    for name, value in (told | changes).items():
        if isinstance(value, tuple):
            kind, shape = GGMLQuantizationType[value[0]], value[1]
            infos.append(gguf_info(name, shape[::-1], kind, size))
            items, block = GGML_QUANT_SIZES[kind]
            size += -(-math.prod(shape) // items * block // 32) * 32
        elif value is not ...:
            keys.append(gguf_value(name, value))
    path.write_bytes(raw_gguf(keys, infos, bytes(size)))
    return path


def gguf_value(key: str, value: str | int | list[Any]) -> bytes:
    """A key with a text, a 32-bit number, or a list of one of them."""
    if isinstance(value, list):
        items = [gguf_value("", item)[8:] for item in value]
        return gguf_key(key, 9, items[0][:4] + len(items).to_bytes(8, "little") + b"".join(i[4:] for i in items))
    return (
        gguf_key(key, 8, gguf_string(value))
        if isinstance(value, str)
        else gguf_key(key, 4, value.to_bytes(4, "little"))
    )


@dataclass(frozen=True)
class GgufContents:
    """A GGUF file in the words of families.json: per tensor type, shape and the head of a SHA-256, in the order of the
    file; its keys without the tokenizer's lists; one SHA-256 over those."""

    tensors: dict[str, str]
    metadata: dict[str, Any]
    vocabulary: str


def gguf_contents(file: Path) -> GgufContents:
    """What families.json says of such a file. It is read once: gguf's reader is slow with vocabularies."""
    reader = Reader(file)
    tensors = {
        tensor.name: _tensor_digest(
            tensor.tensor_type.name, [int(size) for size in reversed(tensor.shape)], tensor.data
        )
        for tensor in reader.tensors
    }
    digest = hashlib.sha256()
    for key in ("tokens", "token_type", "scores", "merges"):
        if (field := reader.fields.get(f"tokenizer.ggml.{key}")) is not None:
            digest.update(json.dumps([key, field.contents()]).encode())
    return GgufContents(tensors, gguf_metadata(reader), digest.hexdigest())


def safetensors_contents(file: Path) -> dict[str, str]:
    """The same of a safetensors file's tensors."""
    with Checkpoint.open_files((file,)) as checkpoint:
        return {
            name: _tensor_digest(tensor.dtype, list(tensor.shape), checkpoint.read(tensor))
            for name, tensor in sorted(checkpoint.tensors.items())
        }


def _tensor_digest(kind: str, shape: list[int], data: np.ndarray[Any, Any]) -> str:
    return f"{kind} {'x'.join(map(str, shape))} {hashlib.sha256(data.tobytes()).hexdigest()[:16]}"


# What llama.cpp's converter leaves to its engine where no file of the tokenizer says it, and we write in any case.
_TOLD = tuple(f"tokenizer.ggml.{name}" for name in ("add_space_prefix", "add_bos_token", "add_eos_token"))
# And what it writes though no engine reads it for such a model.
_UNREAD = "tokenizer.ggml.add_sep_token"


def as_converted(found: dict[str, object], expected: dict[str, object]) -> dict[str, object]:
    """Metadata without what is told in any case, unless llama.cpp's converter tells it too; with what it need not."""
    kept = {key: value for key, value in found.items() if key not in _TOLD or key in expected}
    order = {key: kept.get(key, expected.get(key)) for key in expected if key in kept or key == _UNREAD}
    return order | {key: value for key, value in kept.items() if key not in order}

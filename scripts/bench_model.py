"""A Qwen3 of random weights, as large as asked for, in Hugging Face layout: what builders are measured with.

Weights are bf16, N(0, 0.02), from a fixed seed, so every run on every machine has the same bytes. They are written as
they are made. A shard ends behind a gate_proj, whose up_proj, which shares its scale, then lies in the next one: the
boundary that Qwen3-8B has on the hub too. The tokenizer is that of tests/assets/untied-qwen3.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.artifacts.families import expected_tensors, read_config
from orchestrator.artifacts.safetensors import ShardWriter
from orchestrator.core.weights import INDEX, SINGLE

TOKENIZER = Path(__file__).resolve().parents[1] / "tests/assets/untied-qwen3"
SEED = 4
DEVIATION = 0.02
VOCABULARY = 4128
HEAD = 128
# Values per draw: 4 MB of bf16.
BLOCK_ITEMS = 1 << 21

Layout = dict[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Shape:
    """The dimensions of a model, all but the number of its layers; heads have HEAD columns."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int

    @property
    def layer_bytes(self) -> int:
        """Bytes of the matrices of a layer, in bf16."""
        attention = self.hidden * HEAD * (2 * self.heads + 2 * self.kv_heads)
        return 2 * (attention + 3 * self.hidden * self.intermediate)

    def layers(self, size: float) -> int:
        """How many layers come nearest to a model of `size` bytes."""
        return max(1, round((size - 4 * VOCABULARY * self.hidden) / self.layer_bytes))


# Like Qwen3-1.7B, whose 0.8 B parameters in 16 layers are a fair size for a converter, and like Qwen3-8B.
SHAPES = {"gguf": Shape(2048, 6144, 16, 8), "nvfp4": Shape(4096, 12288, 32, 8)}


def make_model(directory: Path, shape: Shape, layers: int, shards: int) -> None:
    """Writes the model; one that is there already is kept. It takes its name when it is whole."""
    if directory.is_dir():
        return
    partial = directory.with_name(f".{directory.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in TOKENIZER.iterdir():
        if path.suffix != ".safetensors" and path.name != INDEX:
            shutil.copyfile(path, partial / path.name)
    config = json.loads((partial / "config.json").read_text("utf-8")) | {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "num_hidden_layers": layers,
        "head_dim": HEAD,
        "vocab_size": VOCABULARY,
    }
    (partial / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    _write_shards(partial, _split(expected_tensors(read_config(partial)), shards))
    partial.rename(directory)


def _split(expected: dict[str, tuple[int, ...]], shards: int) -> list[Layout]:
    """Shards of about the same size, each but the last ending behind a gate_proj."""
    total = sum(int(np.prod(shape)) for shape in expected.values())
    split: list[Layout] = [{}]
    written = 0
    for name, shape in expected.items():
        split[-1][name] = ("BF16", shape)
        written += int(np.prod(shape))
        if len(split) < shards and name.endswith("gate_proj.weight") and written >= total * len(split) / shards:
            split.append({})
    return split


def _write_shards(directory: Path, split: list[Layout]) -> None:
    random = np.random.default_rng(SEED)
    weight_map: dict[str, str] = {}
    for number, layout in enumerate(split, start=1):
        file = SINGLE if len(split) == 1 else f"model-{number:05d}-of-{len(split):05d}.safetensors"
        with ShardWriter(directory / file, layout) as writer:
            for name, (_, shape) in layout.items():
                _write_tensor(writer, name, shape, random)
        weight_map |= dict.fromkeys(layout, file)
    if len(split) > 1:
        (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")


def _write_tensor(writer: ShardWriter, name: str, shape: tuple[int, ...], random: np.random.Generator) -> None:
    columns = shape[-1]
    rows = int(np.prod(shape[:-1]))
    step = max(1, BLOCK_ITEMS // columns)
    for start in range(0, rows, step):
        values = random.standard_normal((min(step, rows - start), columns), np.float32)
        values *= np.float32(DEVIATION)
        # Norms are near one, as trained ones are.
        values += np.float32(len(shape) == 1)
        writer.write(name, (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16), start)


if __name__ == "__main__":
    # A process of its own: see bench_measure.py.
    kind, place, size, shards = sys.argv[1:]
    shape = SHAPES[kind]
    make_model(Path(place), shape, shape.layers(float(size) * 1e9), int(shards))
    for file in Path(place).glob("*.safetensors"):
        with file.open("rb") as opened:
            while opened.read(BLOCK_ITEMS):
                pass  # into the page cache

"""What config.json tells of weights: their shape, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.weights import Shape
from orchestrator.drivers.weights import read_shape

ASSETS = Path(__file__).parents[1] / "assets"
CONFIG = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
SHAPE = Shape(layers=36, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=12288, vocab=151936, tied=False)


def shape_of(directory: Path, config: Any) -> Shape | None:
    (directory / "config.json").write_text(json.dumps(config))
    return read_shape(directory)


def test_all_of_it(tmp_path: Path) -> None:
    assert shape_of(tmp_path, CONFIG) == SHAPE


def test_what_older_configs_leave_out(tmp_path: Path) -> None:
    left_out = {key: value for key, value in CONFIG.items() if key not in ("head_dim", "num_key_value_heads")}
    shape = shape_of(tmp_path, left_out)
    assert shape is not None
    assert (shape.kv_heads, shape.head_dim) == (32, 128)


def test_the_parameters_are_those_of_the_files() -> None:
    for name in ("tiny-qwen3", "untied-qwen3"):
        shape = read_shape(ASSETS / name)
        assert shape is not None
        size = sum(path.stat().st_size for path in (ASSETS / name).glob("*.safetensors"))
        parameters = shape.layer_parameters + shape.end_parameters
        assert 0.98 * size < 2 * parameters <= size  # the rest are norms and headers


@pytest.mark.parametrize(
    "wrong",
    [
        *({key: value for key, value in CONFIG.items() if key != missing} for missing in ("vocab_size", "hidden_size")),
        *(CONFIG | {key: 0} for key in ("num_hidden_layers", "num_attention_heads", "vocab_size")),
        CONFIG | {"hidden_size": "wide"},
        {"text_config": CONFIG},
        [],
        None,
    ],
)
def test_nothing(tmp_path: Path, wrong: Any) -> None:
    assert shape_of(tmp_path, wrong) is None


def test_no_config(tmp_path: Path) -> None:
    assert read_shape(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    assert read_shape(tmp_path) is None

"""The compiled Q6_K quantizer against ggml's own, on what weights are and on what they should not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from artifact_files import TINY, expected_gguf, gguf_tensors, quantizer_library
from gguf import GGMLQuantizationType

from orchestrator.artifacts import q6_k
from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.artifacts.quantize import Quantizer
from orchestrator.core.progress import silent

# Compiling takes most of it.
pytestmark = pytest.mark.slow

Q6_K = GGMLQuantizationType.Q6_K


def ggml() -> Quantizer:
    """ggml's own, however much it is given."""
    return Quantizer(quantizer_library(), worth_compiling=1 << 60)


def rows(kind: str) -> npt.NDArray[np.float32]:
    """Seeded rows [n, items] of a kind."""
    random = np.random.default_rng(len(kind))
    normal = random.standard_normal((32, 2048), np.float32)
    groups = normal.copy().reshape(-1, 16)
    match kind:
        case "weights":
            return normal * np.float32(0.02)
        case "bf16":
            return (normal.view(np.uint32) >> np.uint32(16) << np.uint32(16)).view(np.float32)
        case "heavy tails":
            return random.standard_t(2, normal.shape).astype(np.float32)
        case "zero groups":
            groups[random.random(len(groups)) < 0.3] = 0
            groups.reshape(-1, 256)[::7] = 0
        case "negative zeros":
            groups[::2] = np.float32(-0.0)
        case "scales apart":
            groups *= 10.0 ** random.integers(-12, 3, (len(groups), 1)).astype(np.float32)
        case "underflow":
            groups *= np.float32(1e-8)
        case "beside ggml's zero":
            groups *= np.float32(1e-15)
        case "few values":
            return random.integers(-3, 4, normal.shape).astype(np.float32)
        case "alike":
            return np.ones((3, 256), np.float32)
        case "large":
            groups *= np.float32(1e5)
        case "one block":
            return normal[:1, :256].copy()
    return groups.reshape(normal.shape)


KINDS = (
    *("weights", "bf16", "heavy tails", "zero groups", "negative zeros", "scales apart", "underflow"),
    *("beside ggml's zero", "few values", "alike", "large", "one block"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_those_of_ggml(kind: str) -> None:
    values = rows(kind)
    assert np.array_equal(q6_k.quantize(values), ggml()(Q6_K, values))


def test_it_takes_over_when_much_is_to_be_done_and_leaves_extremes_to_ggml() -> None:
    values = rows("weights")
    taking_over, never = Quantizer(quantizer_library(), worth_compiling=2 * values.size), ggml()
    assert [taking_over.compiled, never.compiled] == [False, False]
    for _ in range(3):
        assert np.array_equal(taking_over(Q6_K, values), never(Q6_K, values))
    assert [taking_over.compiled, never.compiled] == [True, False]
    extreme = values * np.float32(1e20)
    assert np.array_equal(taking_over(Q6_K, extreme), never(Q6_K, extreme))


@pytest.mark.parametrize(("announced", "compiled"), [(1000, False), (1 << 30, True)])
def test_what_is_announced_decides_at_once(announced: int, compiled: bool) -> None:
    one = Quantizer(quantizer_library())
    one.expect(announced)
    one(Q6_K, rows("weights"))
    assert one.compiled is compiled


def test_a_file_that_is_built_with_it_is_that_of_llama_cpp(tmp_path: Path) -> None:
    one = Quantizer(quantizer_library(), worth_compiling=1)
    build_gguf(TINY, tmp_path / "model.gguf", "q6_k", one, silent)
    assert one.compiled
    assert gguf_tensors(tmp_path / "model.gguf") == expected_gguf("gguf/q6_k")

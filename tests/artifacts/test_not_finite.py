"""NaN and Inf in weights are refused by every builder, whatever type the weights have and wherever it stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from artifact_files import copy_tiny, quantizer, read_safetensors, write_safetensors

from orchestrator.artifacts.fp8_checkpoint import WantedFp8
from orchestrator.artifacts.gguf_file import WantedGguf
from orchestrator.artifacts.nvfp4_checkpoint import WantedNvfp4
from orchestrator.artifacts.one_pass import Wanted, build
from orchestrator.artifacts.safetensors import to_float32
from orchestrator.core.progress import silent
from orchestrator.errors import SourceError

BUILDERS: dict[str, Callable[[Path], Wanted]] = {
    "gguf bf16": lambda out: WantedGguf(out / "model.gguf", "bf16", quantizer()),
    "gguf q4_k_m": lambda out: WantedGguf(out / "model.gguf", "q4_k_m", quantizer()),
    "nvfp4a16": WantedNvfp4,
    "fp8": WantedFp8,
}
PLACES = {
    "model.embed_tokens.weight": -np.inf,
    "model.layers.0.self_attn.k_proj.weight": np.nan,
    "model.layers.0.input_layernorm.weight": np.inf,
}


@pytest.mark.parametrize("dtype", ["bf16", "float16", "float32"])
def test_no_builder_takes_what_is_not_finite(dtype: str, tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    sound = read_safetensors(source)
    for name, value in PLACES.items():
        wide = to_float32(sound[name]).copy()
        wide.ravel()[-3] = value
        bits = (wide.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        write_safetensors(source / "model.safetensors", sound | {name: bits if dtype == "bf16" else wide.astype(dtype)})
        for builder, wanted in BUILDERS.items():
            out = tmp_path / builder
            out.mkdir(exist_ok=True)
            with pytest.raises(SourceError) as caught:
                build(source, [wanted(out)], silent)
            assert f"tensor {name} contains NaN or Inf" in caught.value.message, builder
            assert list(out.iterdir()) == [], builder

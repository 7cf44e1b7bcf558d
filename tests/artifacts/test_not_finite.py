"""NaN and Inf in weights are refused by every builder, whatever type the weights have and wherever it stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from artifact_files import copy_tiny, quantizer, read_safetensors, write_safetensors

from orchestrator.artifacts.fp8_checkpoint import Fp8OutputSpec
from orchestrator.artifacts.gguf_file import GgufOutputSpec
from orchestrator.artifacts.nvfp4_checkpoint import Nvfp4OutputSpec
from orchestrator.artifacts.one_pass import OutputSpec, build
from orchestrator.artifacts.rows import to_float32
from orchestrator.core.progress import silent
from orchestrator.errors import SourceError

BUILDERS: dict[str, Callable[[Path], OutputSpec]] = {
    "gguf bf16": lambda out: GgufOutputSpec(out / "model.gguf", "bf16", quantizer()),
    "gguf q4_k_m": lambda out: GgufOutputSpec(out / "model.gguf", "q4_k_m", quantizer()),
    "nvfp4a16": Nvfp4OutputSpec,
    "fp8": Fp8OutputSpec,
}
PLACES = {
    "model.embed_tokens.weight": -np.inf,
    "model.layers.0.self_attn.k_proj.weight": np.nan,
    "model.layers.0.input_layernorm.weight": np.inf,
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "float16", "float32"])
def test_no_builder_takes_what_is_not_finite(dtype: str, tmp_path: Path) -> None:
    source = copy_tiny(tmp_path / "source")
    sound = read_safetensors(source)
    for name, value in PLACES.items():
        wide = to_float32(sound[name]).copy()
        wide.ravel()[-3] = value
        bits = (wide.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        write_safetensors(source / "model.safetensors", sound | {name: bits if dtype == "bf16" else wide.astype(dtype)})
        for builder, spec_of in BUILDERS.items():
            out = tmp_path / builder
            out.mkdir(exist_ok=True)
            with pytest.raises(SourceError) as caught:
                build(source, [spec_of(out)], silent)
            assert f"tensor {name} contains NaN or Inf" in caught.value.message, builder
            assert list(out.iterdir()) == [], builder

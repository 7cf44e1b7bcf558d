from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from artifact_files import gguf_model

from orchestrator.artifacts.foreign_gguf import architecture, file_type
from orchestrator.errors import HostError


def test_a_finished_file_says_what_it_is(tmp_path: Path) -> None:
    assert architecture(gguf_model(tmp_path / "made.gguf"), file_type("q6_k"), "Use others.") == "qwen3"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"general.file_type": 15}, "made.gguf is Q4_K_M"),
        ({"general.file_type": ...}, "does not say what it holds"),
        ({"general.architecture": ...}, "does not say what it holds"),
        ({"output_norm.weight": ("F32", (0,))}, "is not a sound GGUF file"),
    ],
)
def test_a_finished_file_that_is_something_else_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(HostError) as caught:
        architecture(gguf_model(tmp_path / "made.gguf", **changes), file_type("q6_k"), "Use others.")
    assert reason in caught.value.message
    assert caught.value.hint == ("Use others." if "Q4_K_M" in reason else "Build it again.")

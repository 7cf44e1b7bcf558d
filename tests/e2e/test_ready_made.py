"""A profile whose GGUF others have built: served as it is, adapters too, and the weights are needed for these alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from orch_command import ANSWER, ASSETS, Orch

pytestmark = pytest.mark.llamacpp


def test_a_gguf_of_others_is_served_and_takes_adapters(orch: Orch, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.gguf"
    orch.run("build", "gguf", str(ASSETS / "tiny-qwen3"), "-o", str(theirs), "--quant", "q8_0")
    orch.write_profile(ASSETS / "tiny-qwen3")
    text = orch.profile.read_text().replace("[engines.llamacpp]", '[engines.llamacpp]\nrecipes = ["gguf-q8_0"]')
    orch.profile.write_text(f'{text}[artifacts.gguf-q8_0]\npath = "{theirs}"\n')
    done = orch.run("up", "llamacpp", "-p", str(orch.profile), "--json")
    assert "BuildArtifact" not in done.steps("done")
    assert orch.says() == ANSWER
    plan = orch.run("up", "llamacpp", "--fresh", "--plan", "--json")
    assert [line["budget"] for line in plan.lines if "budget" in line], "its sizes are in its own header"
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    assert orch.says("alpha") == "Ahoy! The answer is alpha."
    assert orch.says() == ANSWER

"""What llama.cpp's own tools have built is served, found again and kept like what orch's builder has. The tools are
those of tests/llama_cpp_checkout.py: their weights are Qwen3 under another name, so that answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_cpp_checkout import checkout, other_weights
from orch_command import ANSWER, ASSETS, Orch, script

hub_server = script("hub_server")

pytestmark = pytest.mark.llamacpp

TINY = ASSETS / "tiny-qwen3"


def remarks(orch: Orch, *words: str) -> list[Any]:
    (plan,) = (line["items"] for line in orch.run(*words, "--plan", "--json").lines if "plan" in line)
    return [item for item in plan if "skip" in item and "llama.cpp" in item["why"]]


def test_weights_that_turn_out_to_be_unknown_are_served_in_one_command(orch: Orch, tmp_path: Path) -> None:
    orch.env["ORCH_LLAMA_CPP"] = str(checkout(tmp_path / "llama.cpp"))
    with hub_server.HubServer({"test/other": other_weights(TINY, tmp_path / "other")}) as hub:
        orch.env["HF_ENDPOINT"] = hub.url
        named = 'repo = "test/other"\nrevision = "main"'
        orch.profile.write_text(orch.profile.read_text().replace(f'path = "{TINY}"', named))
        done = orch.run("up", "llamacpp", "-p", str(orch.profile), "--json")
        assert [line["unknown"] for line in done.lines if "unknown" in line] == ["OtherForCausalLM"]
        assert done.steps("failed") == ["BuildArtifact"]
        assert done.steps("done")[:2] == ["FetchWeights", "BuildArtifact"]
        assert orch.says() == ANSWER
        told = orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"), "--json", code=5).lines[-1]
        assert "Adapters of OtherForCausalLM cannot be checked" in told["error"]
    # Nothing is left to do or to say, without tools and hub, and with its weights gone.
    orch.env["ORCH_LLAMA_CPP"] = "/nowhere"
    del orch.env["HF_ENDPOINT"]
    assert orch.actions("up") == []
    assert remarks(orch, "up") == []
    orch.status()
    gone = orch.run("artifacts", "gc", "--age", "0", "--weights", "--json").lines
    assert [row["key"].split("-")[0] for row in gone if row.get("do") == "go"] == ["weights"]
    assert orch.actions("up") == []
    assert "BuildArtifact" not in orch.actions("up", "--fresh")
    # Another recipe would have to be built: now that is refused, and nothing is touched.
    told = orch.run("migrate", "--to", "llamacpp", "--recipe", "gguf-q8_0", "--json", code=5).lines[-1]
    assert "does not know OtherForCausalLM" in told["error"]
    assert "ORCH_LLAMA_CPP=DIR" in told["hint"]
    assert orch.says() == ANSWER

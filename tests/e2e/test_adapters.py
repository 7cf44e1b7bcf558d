"""Adapters as tools save them: each engine answers with them as PEFT does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from orch_command import ANSWER, ASSETS, Orch

pytestmark = pytest.mark.llamacpp

ADAPTERS = ASSETS / "adapters"
ORACLES = json.loads((ADAPTERS / "oracles.json").read_bytes())
# As a compiled model names them and with a copy of a norm; ranks and alphas of single modules; converted by PEFT.
KINDS = ("wrapped", "patterns", "pissa-converted")


def as_peft_answers(kind: str, question: str) -> str:
    """The text of PEFT's greedy tokens."""
    tokenizer = tokenizers.Tokenizer.from_file(str(ASSETS / "tiny-qwen3" / "tokenizer.json"))
    return str(tokenizer.decode(ORACLES["answers"][kind][question]))


@pytest.mark.parametrize("engine", ["llamacpp", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.long])])
def test_engines_answer_as_peft(engine: str, request: pytest.FixtureRequest) -> None:
    orch: Orch = request.getfixturevalue("orch_vllm" if engine == "vllm" else "orch")
    listed = "".join(f'[[adapters]]\nname = "{kind}"\npath = "{ADAPTERS / kind}"\n' for kind in KINDS)
    orch.profile.write_text(orch.profile.read_text() + listed)
    orch.run("up", engine, "-p", str(orch.profile))
    for kind in KINDS:
        for question in ORACLES["prompts"]:
            assert orch.says(kind, question) == as_peft_answers(kind, question), kind
    assert orch.says() == ANSWER
    orch.status()


def test_what_the_store_keeps_is_named_as_peft_names_it(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    orch.run("lora", "add", "x", str(ADAPTERS / "wrapped"))
    (kept,) = orch.home.rglob("adapter_model.safetensors")
    with kept.open("rb") as file:
        names = json.loads(file.read(int.from_bytes(file.read(8), "little"))).keys() - {"__metadata__"}
    assert names == {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{half}.weight"
        for layer in range(4)
        for module in ("q_proj", "v_proj")
        for half in "AB"
    }
    (config,) = orch.home.rglob("adapter_config.json")
    assert json.loads(config.read_text())["modules_to_save"] is None


def test_a_changed_base_is_refused_and_nothing_changes(orch: Orch, tmp_path: Path) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    wrong = tmp_path / "pissa"
    wrong.mkdir()
    for file in (ASSETS / "lora-a").iterdir():
        (wrong / file.name).write_bytes(file.read_bytes())
    config = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": "pissa"}))
    told = orch.run("lora", "add", "x", str(wrong), "--json", code=10).lines[-1]
    assert "init_lora_weights is 'pissa'" in told["error"]
    assert "path_initial_model_for_weight_conversion" in told["hint"]
    below = orch.run("lora", "add", "x", str(ASSETS / "adapters"), "--json", code=10).lines[-1]
    assert "Name it: " in below["hint"]
    assert orch.says() == ANSWER
    orch.status()

"""`orch check` with real engines: what is the same, what honestly differs, and what it leaves behind."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from meanings import lay
from orch_command import ANSWER, ASSETS, Orch, Outcome, script, stopped_afterwards
from stand_in_orch import OnStandIn

hub_server = script("hub_server")

pytestmark = pytest.mark.llamacpp

TINY = ASSETS / "tiny-qwen3"
BOTH = ("--engine", "llamacpp", "--engine", "ollama")


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[OnStandIn]:
    """Both engines that start at once are to hand."""
    with stopped_afterwards(OnStandIn(tmp_path / "home")) as command:
        yield command


def checked(orch: Orch, *words: str, code: int = 0) -> dict[str, Any]:
    """What `check` found."""
    return dict(orch.run("check", *words, "--json", code=code).lines[-1])


def figures(found: dict[str, Any]) -> dict[tuple[str, str], tuple[int | None, int]]:
    return {
        (one["check"], row["engine"]): (row["same"], row["of"]) for one in found["checks"] for row in one["results"]
    }


def differing(found: dict[str, Any]) -> set[str]:
    return {one["check"] for one in found["checks"] if not one["holds"]}


def pids(orch: Orch) -> dict[str, int]:
    return {name: row["pid"] for name, row in orch.engines().items()}


def with_ready_made(orch: Orch, gguf: Path) -> None:
    """A profile that serves, on llama.cpp, a GGUF that others have built; on the other engine what is built here."""
    text = orch.profile.read_text().replace("[engines.llamacpp]", '[engines.llamacpp]\nrecipes = ["gguf-q8_0"]')
    orch.profile.write_text(f'{text}[artifacts.gguf-q8_0]\npath = "{gguf}"\n')


def built_of(orch: Orch, weights: Path, gguf: Path) -> Path:
    orch.run("build", "gguf", str(weights), "-o", str(gguf), "--quant", "q8_0")
    return gguf


def test_a_model_with_an_adapter_is_the_same_on_both_engines(orch: OnStandIn) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    before = pids(orch)
    found = checked(orch, *BOTH)
    assert found["same"]
    assert [one["engine"] for one in found["engines"]] == ["llamacpp", "ollama"]
    told = figures(found)
    assert told["tokens of 16 texts", "llamacpp"] == told["tokens of 16 texts", "ollama"] == (16, 16)
    assert told["prompt: with a tool", "llamacpp"] == (1, 1)
    assert told["ends of answers", "llamacpp"] == (2, 2)
    assert {name for name, _ in told} >= {"greedy answers of tiny", "greedy answers of alpha"}
    # What serves was asked where it is, and goes on; what was started for it is gone.
    assert pids(orch) == before
    assert (orch.says(), orch.says("alpha")) == (ANSWER, "Ahoy! The answer is alpha.")
    assert orch.actions("up") == []


def test_what_others_have_built_differs_and_is_told(orch: OnStandIn, tmp_path: Path) -> None:
    """Another template and an end less, as GGUF repositories have them."""
    theirs = lay("template-two", tmp_path / "theirs")
    (theirs / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}[assistant]"
    )
    for name in ("generation_config.json", "config.json"):
        said = json.loads((theirs / name).read_text())
        (theirs / name).write_text(json.dumps(said | {"eos_token_id": 0}))
    with_ready_made(orch, built_of(orch, theirs, tmp_path / "theirs.gguf"))
    plan = orch.run("up", "llamacpp", "-p", str(orch.profile), "--plan").out
    assert "the artifact, which others have built, differs: it has another chat template than the weights" in " ".join(
        plan.split()
    )
    found = checked(orch, str(orch.profile), *BOTH, code=9)
    assert not found["same"]
    figured = figures(found)
    assert figured["prompt: a question", "llamacpp"] == (0, 1)
    assert figured["prompt: a question", "ollama"] == (1, 1)
    assert differing(found) >= {"prompt: a question", "prompt: a conversation"}
    told = orch.run("check", str(orch.profile), *BOTH, code=9).out
    assert "DIFFERS" in told
    assert "The model differs between engines." in told
    assert orch.engines() == {}


def test_other_tokens_than_the_weights_at_hand_are_told(orch: OnStandIn, tmp_path: Path) -> None:
    with_ready_made(orch, built_of(orch, lay("end-turn-list", tmp_path / "theirs"), tmp_path / "theirs.gguf"))
    told = " ".join(orch.run("up", "llamacpp", "-p", str(orch.profile), "--plan").out.split())
    assert "the artifact, which others have built, differs: its tokens" in told


def test_an_artifact_alone_is_checked_by_what_it_says_itself(orch: OnStandIn, tmp_path: Path) -> None:
    gguf = built_of(orch, TINY, tmp_path / "theirs.gguf")
    orch.profile.write_text(
        orch.profile.read_text().replace(f'path = "{TINY}"', 'repo = "test/tiny"\nrevision = "main"')
    )
    with_ready_made(orch, gguf)
    with hub_server.HubServer({"test/tiny": TINY}) as hub:
        orch.env["HF_ENDPOINT"] = hub.url
        found = checked(orch, str(orch.profile), "--engine", "llamacpp")
        assert [one.path for one in hub.requests if one.path.endswith(".safetensors") and one.method == "GET"] == []
    assert found["same"]
    # The other one, at which llama.cpp ends by its text, is not among what the file lists.
    assert figures(found)["ends of answers", "llamacpp"] == (1, 1)


def test_a_plan_starts_nothing(orch: OnStandIn) -> None:
    orch.run("check", str(orch.profile), *BOTH, "--plan", "--json")
    assert orch.processes() == []
    assert checked(orch, str(orch.profile), "--engine", "parrot", code=2)["exit"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_ends_it_in_the_middle_leaves_nothing(orch: OnStandIn, number: signal.Signals) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    before = set(orch.engines())
    # The step before the engine is ready: it is running by then.
    steps = [line for line in orch.run("check", "-e", "ollama", "--plan", "--json").lines if "plan" in line]
    do = [item["do"] for plan in steps for item in plan["items"] if "do" in item]
    ended: Outcome = orch.signal_at(do.index("AwaitReady"), number, "check", "-e", "ollama")
    assert ended.code in (130, -signal.SIGKILL), ended
    if number is signal.SIGINT:
        assert set(orch.engines()) == before
    orch.run("up")
    assert set(orch.engines()) == before
    assert orch.says() == ANSWER

"""What an advice is given: levels that can be compared, what is left out and why, and commands that can be typed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from levels import level
from orch_command import ASSETS

from orchestrator.app.choice import Choice
from orchestrator.bench.advising import notes_of, usable_levels
from orchestrator.bench.series import series_of

H200 = "NVIDIA H200"
HERE = Choice(
    *(
        "tiny",
        0,
        4,
        4,
        512,
        "ollama",
        "gguf-q6_k",
        "ollama",
        "vllm",
        {},
        (H200,),
        frozenset({"ollama", "vllm"}),
        "",
        "0",
    )
)
BOTH = [level(engine, users, 100.0 * users) for engine in ("ollama", "vllm") for users in (1, 2)]


def used(levels: list[dict[str, Any]], here: Choice = HERE) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """The users of each engine's curve, and what was left out."""
    found, left_out = usable_levels(levels, here)
    return {series.engine: [point.users for point in series.points] for series in series_of(found)}, left_out


def test_what_is_alike_is_a_curve_each() -> None:
    assert used(BOTH) == ({"ollama": [1, 2], "vllm": [1, 2]}, ())


def test_several_adapters_in_turn_are_another_question() -> None:
    turns = [level(one, 2, rate, adapters=["a", "b"]) for one, rate in (("ollama", 30.0), ("vllm", 90.0))]
    alone = level("vllm", 2, 95.0, adapters=["a"])
    found, left_out = usable_levels([*BOTH, *turns, alone], HERE, of_adapters=True)
    assert found == turns
    assert left_out == ("5 levels at a rate, or of the base: another question.",)


def test_engines_are_compared_under_one_load() -> None:
    short = level("vllm", 4, 900.0, random_input_len=16, random_output_len=16)
    curves, left_out = used([*BOTH, short])
    assert curves == {"ollama": [1, 2], "vllm": [1, 2]}
    assert left_out == ("1 level of other lengths, or asked another way, than those that are compared.",)


def test_where_no_load_was_of_both_the_newest_counts() -> None:
    short = level("vllm", 4, 900.0, random_input_len=16)
    assert used([level("ollama", 1, 100.0), short])[0] == {"vllm": [4]}
    assert used([short, level("ollama", 1, 100.0)])[0] == {"ollama": [1]}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"gpus": ["NVIDIA GeForce RTX 4090"]}, "measured on NVIDIA GeForce RTX 4090: not what it computes on here."),
        ({"gpus": [H200, H200]}, "measured on NVIDIA H200, NVIDIA H200: not what it computes on here."),
        ({"gpus": []}, "measured on a CPU: not what it computes on here."),
        ({"interrupted": True}, "cut short by an interrupt."),
        ({"adapters": ["alpha"]}, "at a rate, or of adapters: another question."),
        ({"max_concurrency": None}, "at a rate, or of adapters: another question."),
        ({"through": "the engine"}, "of other lengths, or asked another way, than those that are compared."),
        ({"engine_version": "0.9"}, "of another version or artifact than the newest."),
        ({"artifact": "b"}, "of another version or artifact than the newest."),
    ],
)
def test_what_is_left_out_is_told(more: dict[str, Any], why: str) -> None:
    odd = [level("vllm", users, 900.0, **more) for users in (4, 8)]
    assert used([*odd, *BOTH]) == ({"ollama": [1, 2], "vllm": [1, 2]}, (f"2 levels {why}",))


def test_other_profiles_and_engines_are_not_of_it() -> None:
    others = [level("vllm", 4, 900.0, profile="big"), level("llamacpp", 4, 900.0)]
    assert used([*others, *BOTH]) == used(BOTH)


def test_one_gpu_of_two_is_here() -> None:
    assert used(BOTH, replace(HERE, gpus=(H200, H200)))[0] == {"ollama": [1, 2], "vllm": [1, 2]}


def test_an_engine_that_takes_no_gpu_was_measured_on_the_cpu() -> None:
    on_cpu = [level("ollama", 1, 9.0, gpus=[]), level("vllm", 1, 100.0)]
    assert used(on_cpu, replace(HERE, on_gpu=frozenset({"vllm"}))) == ({"ollama": [1], "vllm": [1]}, ())


def test_what_is_to_be_known_of_them() -> None:
    now = datetime(2026, 2, 10, tzinfo=UTC)
    notes = notes_of([level("ollama", 1, 1.0, recipe="gguf-q8_0", orch="9")], HERE, now)
    assert notes == (
        "ollama was measured 40 days ago.",
        "ollama was measured by orch 9; this is 0.",
        "ollama was measured with gguf-q8_0; now it serves gguf-q6_k.",
    )
    assert notes_of(BOTH, HERE, datetime(2026, 1, 20, tzinfo=UTC)) == ()
    # Another instrument's date, or none.
    assert notes_of([level("vllm", 1, 1.0, date="20260101-000000", orch="")], HERE, now) != ()
    assert notes_of([level("vllm", 1, 1.0, date="yesterday", orch="")], HERE, now) == ()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    weights = ASSETS / "tiny-qwen3"
    (tmp_path / "my model.toml").write_text(
        f'name = "tiny"\npublic_names = ["tiny"]\n[weights]\npath = "{weights}"\n[serving]\ncontext = 512\n'
        "parallel = 4\n[lora]\nmax_adapters = 3\n[engines.vllm]\nkv_cache_mib = 64\n"
    )
    return tmp_path


def orch(home: Path, *words: str, code: int = 0) -> str:
    env = {**os.environ, "ORCH_HOME": str(home / "data"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    ended = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words], cwd=home, env=env, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == code, ended.stderr
    return ended.stdout


def advised(home: Path, *words: str) -> dict[str, Any]:
    found = json.loads(orch(home, "advise", "-p", "my model.toml", *words, "--json").splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_what_it_says_to_type_can_be_typed(home: Path) -> None:
    """With nothing deployed, and a file whose name has a blank."""
    advice = advised(home, "--users", "1")
    assert advice["engine"]
    _, _, up = advice["verdict"].partition(": ")
    for said in (up, advice["run"]):
        program, *words = shlex.split(said)
        assert program == "orch"
        assert orch(home, *words, "--plan")


def test_where_nothing_is_deployed_the_profile_is_named(home: Path) -> None:
    advice = json.loads(orch(home, "advise", "--users", "1", "--json").splitlines()[-1])
    assert advice["run"].endswith(" -p qwen3-8b") or advice["sure"] == "only"
    assert advice["verdict"].endswith(" -p qwen3-8b") or not advice["engine"]


def test_more_adapters_than_the_profile_has_room_for(home: Path) -> None:
    reasons = [reason["text"] for reason in advised(home, "--users", "1", "--adapters", "12")["reasons"]]
    assert "The profile has room for 3 adapters: set lora.max_adapters = 12 in it." in reasons
    advice = advised(home, "--users", "1", "--adapters", "65")
    assert advice["sure"] == "only"
    assert any("at most 64 adapters, not 65" in reason["text"] for reason in advice["reasons"])


def test_live_without_traffic_is_told(home: Path) -> None:
    orch(home, "advise", "--live", "-p", "my model.toml", code=5)

"""What vllm bench serve and guidellm have written, as ours: recorded results come to the figures that they show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.bench.imports import Told, levels_in
from orchestrator.bench.tools import TOOLS, Wanted, told_by
from orchestrator.errors import UsageError

RECORDED = Path(__file__).parent / "recorded"
TOLD = Told("tiny", "vllm", "weights", ("NVIDIA H200",))


def imported(name: str, told: Told = TOLD) -> dict[str, Any]:
    (level,) = levels_in((RECORDED / name).read_text(), name, told, "run")
    return level


def test_vllms_result_is_taken_as_it_is() -> None:
    document, level = json.loads((RECORDED / "vllm_bench_c4.json").read_text()), imported("vllm_bench_c4.json")
    assert (level["tool"], level["max_concurrency"], level["failed"]) == ("vllm", 4, 0)
    for key in ("duration", "completed", "output_throughput", "p95_ttft_ms", "median_tpot_ms", "std_e2el_ms"):
        assert level[key] == document[key], key


def test_guidellms_words_mean_something_else() -> None:
    (benchmark,) = json.loads((RECORDED / "guidellm_c8.json").read_text())["benchmarks"]
    level, metrics = imported("guidellm_c8.json"), benchmark["metrics"]
    assert (level["tool"], level["max_concurrency"], level["completed"], level["failed"]) == ("guidellm", 8, 32, 0)
    # Its inter-token latency is the time for each token after the first; its time per output token has the first in it.
    each, with_first = (metrics[name]["successful"] for name in ("inter_token_latency_ms", "time_per_output_token_ms"))
    assert level["mean_tpot_ms"] == each["mean"] < with_first["mean"]
    taken = metrics["request_latency"]["successful"]["mean"] * 1000
    first = metrics["time_to_first_token_ms"]["successful"]["mean"]
    assert level["mean_tpot_ms"] == pytest.approx((taken - first) / 63, rel=0.02)
    assert (level["mean_e2el_ms"], level["mean_ttft_ms"], level["mean_itl_ms"]) == (taken, first, None)
    assert level["total_output_tokens"] == 32 * 64


def test_another_orchs_lines_keep_what_they_say() -> None:
    one = imported("vllm_bench_c1.json")
    (again,) = levels_in(json.dumps(one) + "\n", "show.jsonl", Told(), "other")
    assert again == {**one, "run": "other"}
    (renamed,) = levels_in(json.dumps(one), "show.jsonl", Told(profile="mine"), "other")
    assert (renamed["profile"], renamed["engine"]) == ("mine", "vllm")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "file is not JSON"),
        ("{}", "file has no result that orch knows"),
        ("[1]", "file has no result that orch knows"),
        ('{"version": 2, "max_concurrency": 1}', "file has a level without accelerator"),
        ('{"benchmarks": [{}], "metadata": {}}', "file lacks what a result of guidellm has"),
        ('{"total_output_tokens": 1, "median_ttft_ms": 1}', "file lacks what a result of vllm has"),
    ],
)
def test_what_is_none(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        levels_in(text, "file", TOLD, "run")


def test_somebody_has_to_say_what_it_is_of() -> None:
    with pytest.raises(UsageError, match="does not say which engine answered"):
        imported("vllm_bench_c1.json", Told(profile="tiny"))


def wanted(**changes: Any) -> Wanted:
    made = Wanted("http://127.0.0.1:1/v1/chat/completions", "tiny", "sk-secret", "/t", True, 8, 4, 0.0, 64, 32, 5)
    return Wanted(**{**vars(made), **changes})


def test_no_key_is_in_a_command_line() -> None:
    for tool in TOOLS.values():
        start = tool.start(wanted())
        assert "sk-secret" not in " ".join(start.argv)
        assert "sk-secret" in str((start.env, start.files))
        assert "sk-secret" not in str(tool.start(wanted(key="")))


def test_users_and_rates_are_two_loads() -> None:
    vllm, guidellm = TOOLS["vllm"], TOOLS["guidellm"]
    assert "--max-concurrency" in vllm.start(wanted()).argv
    assert "--request-rate" in vllm.start(wanted(users=0, rate=2.0)).argv
    spec = json.loads(guidellm.start(wanted(users=0, rate=2.0)).files["scenario.json"])["spec"]
    assert spec["profile"] == {"kind": "poisson", "rate": [2.0]}


def test_whose_result_it_is() -> None:
    assert told_by({"other": 1}) is None
    assert told_by([]) is None


@pytest.mark.parametrize("name", ["../../evil", "/tmp/tiny.toml", "a/b", ".."])
def test_a_profile_is_a_name_and_no_path(name: str) -> None:
    with pytest.raises(UsageError, match="is not a profile's name"):
        imported("vllm_bench_c1.json", Told(name, "vllm"))

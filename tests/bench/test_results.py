"""Results that are kept: what is damaged, or of another version, costs nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from levels import level

from orchestrator.bench.results import Results, new_run
from orchestrator.errors import HostError


def test_what_is_damaged_costs_nothing_else(tmp_path: Path) -> None:
    results = Results(tmp_path / "bench")
    assert results.runs() == {}
    one = {"version": 2, "run": "20260101-000000", "profile": "tiny", "engine": "vllm"}
    results.add(one)
    with (tmp_path / "bench" / "tiny.jsonl").open("a") as file:
        file.write('{"version": 2, "run": "20260102-0000\n\x00\n[]\n{"version": 3, "run": "later"}\n{"run": "none"}\n')
    results.add({**one, "run": "20260103-000000"})
    assert list(results.runs()) == ["20260101-000000", "20260103-000000"]
    assert results.run(None) == [{**one, "run": "20260103-000000"}]
    with pytest.raises(HostError, match="There is no measurement 20990101"):
        results.run("20990101-000000")


def test_what_was_cut_keeps_its_line_to_itself(tmp_path: Path) -> None:
    results = Results(tmp_path)
    (tmp_path / "tiny.jsonl").write_text('{"version": 2, "run": "20260101')
    results.add({"version": 2, "run": "20260102", "profile": "tiny"})
    assert list(results.runs()) == ["20260102"]


def test_two_of_a_second_have_two_names() -> None:
    assert len({new_run() for _ in range(20)}) == 20


def test_of_none_named_the_newest_sweep_of_each_engine_is_meant(tmp_path: Path) -> None:
    """What came after it, and is no sweep of users, does not take its place."""
    results = Results(tmp_path)

    def add(run: str, engine: str, users: int | None, throughput: float = 1.0, **more: object) -> None:
        results.add({**level(engine, users, throughput), "run": run, "date": run, **more})

    for run, engine in (("1", "ollama"), ("1", "vllm"), ("2", "vllm")):
        for users in (1, 2):
            add(run, engine, users)
    add("3", "vllm", 4)
    add("4", "vllm", 1)
    add("4", "vllm", 2, interrupted=True)
    add("5", "vllm", 1, adapters=["a"])
    add("6", "vllm", None)
    assert [(one["run"], one["engine"]) for one in results.chosen(())] == [("1", "ollama")] * 2 + [("2", "vllm")] * 2
    assert [one["run"] for one in results.chosen(("3", "1"))] == ["3", "1", "1", "1", "1"]
    # Of an engine that has no sweep, what there is.
    add("7", "llamacpp", 8)
    assert [one["run"] for one in results.chosen(())][-1] == "7"

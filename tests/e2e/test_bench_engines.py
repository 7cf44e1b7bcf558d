"""Engines measured one after the other: what was there before is there afterwards, whatever happens in between."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from orch_command import ASSETS, Orch, stopped_afterwards, wait_until, with_environments
from stand_in_orch import OnStandIn

from orchestrator.core.routes import Route

pytestmark = pytest.mark.llamacpp

SHORT = ("--input-len", "32", "--output-len", "16", "--rounds", "2", "--concurrency", "1,2")
BOTH = ("--engines", "llamacpp,ollama")


@pytest.fixture
def orch(tmp_path: Path) -> Iterator[OnStandIn]:
    with stopped_afterwards(OnStandIn(tmp_path / "home")) as command:
        yield command


def record(orch: Orch) -> object:
    return json.loads((orch.home / "records" / "desired" / "tiny.json").read_text())


def serving(orch: Orch) -> list[str]:
    routes = map(Route.from_json, orch.gateway_status()["routes"])
    return sorted({route.backend.instance for route in routes})


def test_nothing_is_left_where_nothing_was(orch: OnStandIn) -> None:
    planned = orch.run("bench", *BOTH, "-p", str(orch.profile), *SHORT, "--plan")
    assert "start tiny-llamacpp-g1" in planned.out
    assert "start tiny-ollama-g1" in planned.out
    assert "In the end tiny is taken down again." in planned.out
    assert not {"processes", "records", "bench"} & {path.name for path in orch.home.iterdir()}

    by_itself = orch.home / "by-itself.html"
    report = ("--report", str(by_itself))
    told = orch.run("bench", *BOTH, "-p", str(orch.profile), *SHORT, *report, "--json").lines
    levels = [line for line in told if "max_concurrency" in line]
    assert [(one["engine"], one["max_concurrency"]) for one in levels] == [
        ("llamacpp", 1),
        ("llamacpp", 2),
        ("ollama", 1),
        ("ollama", 2),
    ]
    assert {one["failed"] for one in levels} == {0}
    assert len({one["run"] for one in levels}) == 1
    assert all(one["engine_version"] for one in levels)
    assert all(one["client_ceiling"] > 10 * one["output_throughput"] for one in levels)
    assert not list((orch.home / "records" / "desired").iterdir())
    assert "Nothing is deployed" in orch.run("bench", code=5).err

    compared = orch.run("bench", "compare", "--json").lines
    assert [line["compared"]["users"] for line in compared if "compared" in line] == [1, 2]
    page = orch.home / "page.html"
    orch.run("bench", "report", "-o", str(page))
    assert page.read_text() == by_itself.read_text()
    assert page.read_text().count("<svg") == 8
    assert len(orch.run("bench", "ls", "--json").lines) == 2


def test_what_served_serves_again(orch: OnStandIn) -> None:
    orch.up()
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    orch.run("migrate", "--to", "llamacpp")
    before = record(orch)

    orch.run("bench", *BOTH, *SHORT)
    assert record(orch) == before
    assert serving(orch) == ["tiny-llamacpp-g4"]
    assert orch.run("status", code=None).code == 0
    # Back is where it was.
    orch.run("rollback")
    assert "ollama" in serving(orch)[0]


@pytest.mark.long
def test_where_only_one_engine_fits_nobody_is_refused(orch: OnStandIn) -> None:
    orch.env["ORCH_ENGINE_MEMORY"] = "300MiB"
    orch.up()
    before = record(orch)
    clients = orch.load("tiny", clients=2, tokens=20)
    told = orch.run("bench", *BOTH, *SHORT, "--json")
    streams = clients.stop()
    assert told.steps("done").count("HoldRequests") == 2
    assert [line["engine"] for line in told.lines if "max_concurrency" in line] == ["llamacpp"] * 2 + ["ollama"] * 2
    assert record(orch) == before
    assert [stream.problem for stream in streams if stream.problem] == []
    assert len(streams) > 5


def test_who_interrupts_it_has_what_was_there(orch: OnStandIn) -> None:
    orch.up()
    before = record(orch)
    running = orch.start("bench", "--engines", "llamacpp", *SHORT, "--rounds", "1000", "--json")
    wait_until(lambda: orch.gateway_status()["totals"]["requests"] > 20, what="requests of the bench")
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert json.loads((orch.home / "bench" / "tiny.jsonl").read_text().splitlines()[-1])["interrupted"] is True
    assert record(orch) == before
    assert "ollama" in serving(orch)[0]


def test_who_kills_it_has_what_was_there_after_the_next_one(orch: OnStandIn) -> None:
    orch.up()
    before = record(orch)
    running = orch.start("bench", "--engines", "llamacpp", *SHORT, "--rounds", "1000", "--json")
    wait_until(lambda: orch.gateway_status()["totals"]["requests"] > 20, what="requests of the bench")
    # One at a time has engines in turn.
    assert orch.run("bench", *BOTH, *SHORT, code=8).err
    running.kill()
    running.communicate(timeout=60)
    assert "llamacpp" in serving(orch)[0]
    told = orch.run("bench", "--engines", "llamacpp", *SHORT)
    assert "After this one ollama serves it again." in told.err + told.out
    assert record(orch) == before
    assert "ollama" in serving(orch)[0]


def test_who_changes_what_serves_meanwhile_is_told_of(orch: OnStandIn) -> None:
    orch.up()
    running = orch.start("bench", *SHORT, "--rounds", "300")
    wait_until(lambda: orch.gateway_status()["totals"]["requests"] > 20, what="requests of the bench")
    orch.run("migrate", "--to", "llamacpp")
    out, err = running.communicate(timeout=120)
    assert running.returncode == 4, out
    assert "tiny-ollama-g1 does not serve tiny any more" in err


def test_an_engine_that_cannot_be_had_takes_nothing_with_it(orch: OnStandIn) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    before = record(orch)
    (orch.bin / "ollama").write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    failed = orch.run("bench", *BOTH, *SHORT, code=6)
    assert "it is broken" in failed.err
    # What was measured by then is kept, and told.
    assert "output tok/s" in failed.out
    assert [line["engine"] for line in orch.run("bench", "ls", "--json").lines] == ["llamacpp"]
    assert record(orch) == before
    assert serving(orch) == ["tiny-llamacpp-g1"]


def test_what_was_taken_down_is_as_it_was(orch: OnStandIn) -> None:
    (orch.bin / "ollama").rename(orch.bin / "later")
    failed = orch.run("bench", "--engines", "ollama", "-p", str(orch.profile), *SHORT, code=4)
    assert "There is no ollama binary on PATH." in failed.err
    assert "It is not as it was" not in failed.err
    (orch.bin / "later").rename(orch.bin / "ollama")

    orch.run("up", "llamacpp", "-p", str(orch.profile))
    orch.run("down")
    before = record(orch)
    orch.run("bench", "--engines", "ollama", *SHORT)
    assert record(orch) == before
    assert serving(orch) == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--engines", "llamacpp,llamacpp"), 2, "--engines names one twice"),
        (("--engines", "nothing"), 2, "nothing"),
        (("--engines", "llamacpp"), 5, "so a profile must be named"),
        (("--plan",), 2, "there is no plan"),
        (("--concurrency", "1", "--request-rate", "2"), 2, "are two loads"),
        (("--request-rate", "0"), 2, "'0' is not a list of numbers"),
        (("--tool", "wrk"), 2, "orch does not run wrk"),
        (("--prompts", "/dev/null"), 2, "/dev/null has no prompts"),
        (("report",), 4, "There is no measurement yet."),
        (("compare",), 4, "There is no measurement yet."),
        (("import", "/dev/null"), 2, "/dev/null has no result"),
    ],
)
def test_what_cannot_be_is_told(orch: OnStandIn, words: tuple[str, ...], code: int, said: str) -> None:
    assert said in orch.run("bench", *words, code=code).err
    assert not (orch.home / "bench").exists()


def test_engines_are_asked_whether_they_agree(orch: OnStandIn) -> None:
    orch.up()
    told = orch.run("bench", "quality", "--engines", "llamacpp,ollama", "--output-len", "12", "--json").lines
    lines = [line for line in told if line.get("kind") == "agreement"]
    assert [(line["against"], line["engine"]) for line in lines] == [
        ("llamacpp:gguf-q6_k", "llamacpp"),
        ("llamacpp:gguf-q6_k", "ollama"),
    ]
    # The stand-in computes with the same llama.cpp, from the same file; each parts from itself at near ties.
    assert all(line["share"] == line["same"] / line["of"] >= 0.9 for line in lines)
    assert all(line["least"] < line["share"] <= line["most"] for line in lines)
    assert "One engine alone" in orch.run("bench", "quality", code=2).err


TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: {metric}
"""


@pytest.mark.long
def test_tasks_are_scored_and_what_cannot_be_is_said(
    orch: OnStandIn, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with_environments(orch, request.getfixturevalue("environments"))
    orch.up()
    data = tmp_path / "data.jsonl"
    thanks = orch.says(question="Thank you!").strip()
    rows = [{"question": "Thank you!", "answer": thanks}, {"question": "Hello!", "answer": "no such answer"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = {"own_answers": ("generate_until", "exact_match"), "own_odds": ("loglikelihood", "acc")}
    for name, (kind, metric) in kinds.items():
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, data=data, kind=kind, metric=metric))
    words = ("--tasks", "own_answers,own_odds", "--include", str(tmp_path))
    told = orch.run("bench", "quality", *words, "--json", timeout=900).lines
    (score,) = [line for line in told if line.get("kind") == "score"]
    assert (score["task"], score["metric"], score["value"], score["samples"]) == ("own_answers", "exact_match", 0.5, 2)
    (left_out,) = [line for line in told if line.get("kind") == "unmeasurable"]
    assert (left_out["task"], left_out["why"]) == (
        "own_odds",
        "a loglikelihood task, and it tells no probabilities of a prompt",
    )
    failed = orch.run("bench", "quality", "--tasks", "no_such_task", code=4, timeout=300)
    assert "no_such_task" in failed.err


def test_adapters_in_turn_and_starts(orch: OnStandIn) -> None:
    orch.up()
    assert "A swap takes two adapters" in orch.run("bench", "lora", code=5).err
    for name in ("alpha", "beta"):
        orch.run("lora", "add", name, str(ASSETS / ("lora-a" if name == "alpha" else "lora-b")))
    short = ("--input-len", "32", "--output-len", "8", "--rounds", "8")
    told = orch.run("bench", "lora", *short, "--concurrency", "1", "--json").lines
    levels = [line for line in told if "max_concurrency" in line]
    assert [line["adapters"] for line in levels] == [[], ["alpha"], ["alpha", "beta"]]
    assert {line["failed"] for line in levels} == {0}
    (swap,) = [line["swap"] for line in told if "swap" in line]
    # The stand-in, as Ollama does, loads the other adapter's model: that takes its time.
    assert swap["swap_ms"] > 20
    assert "There is no adapter gamma" in orch.run("bench", "--adapters", "gamma", *short, code=5).err
    # Nothing of it is a figure of the base.
    only = orch.run("bench", "--adapters", "all", *short, "--concurrency", "1", "--json").lines[-1]
    assert only["adapters"] == ["alpha", "beta"]

    before = record(orch)
    starts = orch.run(
        "bench", "starts", "--engines", "ollama,llamacpp", "--output-len", "8", "--input-len", "32", "--json"
    )
    lines = [line for line in starts.lines if line.get("kind") == "start"]
    assert [line["engine"] for line in lines] == ["ollama", "llamacpp"]
    assert all(0 < line["steps"]["EnsureEngine"] < line["cold_s"] for line in lines)
    assert record(orch) == before

"""`orch bench` on a real engine: what it measures is there, what goes wrong is told, what was measured stays."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from orch_command import Orch, wait_until, with_environments

pytestmark = pytest.mark.llamacpp

SHORT = ("--input-len", "32", "--output-len", "16", "--rounds", "2")


def test_each_level_is_measured_and_kept(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    told = orch.run("bench", "--concurrency", "1,3", *SHORT, "--goodput", "ttft:60000", "--json").lines
    levels = [line for line in told if "max_concurrency" in line]
    assert [(one["max_concurrency"], one["num_prompts"]) for one in levels] == [(1, 2), (3, 6)]
    for one in levels:
        assert (one["completed"], one["failed"], one["errors"]) == (one["num_prompts"], 0, {})
        # Every answer goes on to its limit, and prompts are about as long as they are to be.
        assert one["total_output_tokens"] == 16 * one["num_prompts"]
        assert 0.5 < one["total_input_tokens"] / one["num_prompts"] / 32 < 3
        assert one["request_goodput"] == pytest.approx(one["request_throughput"])
        assert one["p50_ttft_ms"] <= one["p99_ttft_ms"] <= one["p99_e2el_ms"]
        assert one["output_throughput"] == pytest.approx(one["total_output_tokens"] / one["duration"])
        assert (one["engine"], one["recipe"], one["through"]) == ("llamacpp", "gguf-q6_k", "the gateway")
    kept = orch.run("bench", "show", "--json").lines
    assert kept == levels
    shown = orch.run("bench", "show").out
    assert "output tok/s" in shown
    assert "TPOT: (E2EL - TTFT) / (output tokens - 1)" in shown
    (row,) = orch.run("bench", "ls", "--json").lines
    assert (row["engine"], row["load"]) == ("llamacpp", "1, 3 users")

    load = orch.load("tiny", clients=4, tokens=300)
    wait_until(lambda: orch.gateway_status()["backends"]["tiny-llamacpp-g1"]["in_flight"], what="a client's request")
    assert "Clients' requests are in flight" in orch.run("bench", "--concurrency", "1", *SHORT).out
    load.stop()
    direct = orch.run("bench", "--concurrency", "1", *SHORT, "--direct", "--json").lines[-1]
    assert (direct["through"], direct["completed"]) == ("the engine", 2)
    # No prompt is one that was asked before: all of it is read.
    again = orch.run("bench", "--concurrency", "1", *SHORT, "--seed", "1", "--json").lines[-1]
    assert again["failed"] == 0

    told_it = orch.run("bench", "--input-len", "400", "--output-len", "400", code=5)
    assert "864 tokens" in told_it.err
    assert "are more than the context of 512" in told_it.err

    # What it had measured by then is kept, and told.
    running = orch.start("bench", "--concurrency", "1,2", "--output-len", "300", "--rounds", "500", "--input-len", "16")
    time.sleep(6)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "it was interrupted" in out
    assert json.loads((orch.home / "bench" / "tiny.jsonl").read_text().splitlines()[-1])["interrupted"] is True
    assert orch.gateway_status()["backends"]["tiny-llamacpp-g1"]["in_flight"] == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 5, "Nothing is deployed."),
        (("--profile", "other"), 5, "other is not deployed."),
        (("--concurrency", "1,x"), 2, "'1,x' is not a list of numbers"),
        (("--concurrency", "0"), 2, "'0' is not a list of numbers"),
        (("--goodput", "speed:5"), 2, "'speed:5' is not NAME:MS"),
        (("show",), 4, "There is no measurement yet."),
        (("show", "20000101-000000"), 4, "There is no measurement 20000101-000000."),
    ],
)
def test_what_cannot_be_is_told(orch: Orch, words: tuple[str, ...], code: int, said: str) -> None:
    assert said in orch.run("bench", *words, code=code).err
    assert not (orch.home / "bench").exists()


def test_prompts_of_a_file_at_random_times(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    file = orch.home / "prompts.jsonl"
    rows = [{"prompt": "Who are you?", "output_tokens": 5}, {"messages": [{"role": "user", "content": "Hello!"}]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--request-rate", "4", "--duration", "2", "--prompts", str(file), "--output-len", "9")
    told = orch.run("bench", *words, "--json").lines
    (level,) = [line for line in told if "max_concurrency" in line]
    assert (level["max_concurrency"], level["request_rate"], level["num_prompts"]) == (None, 4.0, 8)
    assert (level["dataset"], level["random_input_len"], level["failed"]) == ("file", None, 0)
    # Half of them are as long as the file says, half as the option does.
    assert level["total_output_tokens"] == 4 * 5 + 4 * 9
    assert "has 2 prompts for up to 8 requests" in orch.run("bench", *words).out
    assert "None of these measurements is of users at a time" in orch.run("bench", "report", code=4).err


@pytest.mark.vllm
@pytest.mark.long
def test_the_fields_own_instruments(orch: Orch, environments: Path) -> None:
    """Each makes the load that it is asked for, and finds about what orch finds."""
    with_environments(orch, environments)
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    found = {}
    for tool in ((), ("--tool", "vllm"), ("--tool", "guidellm")):
        words = ("--concurrency", "2", "--rounds", "8", "--input-len", "32", "--output-len", "24")
        told = orch.run("bench", *words, *tool, "--direct", "--json", timeout=900).lines
        (level,) = [line for line in told if "max_concurrency" in line]
        assert (level["max_concurrency"], level["completed"], level["failed"]) == (2, 16, 0)
        assert level["total_output_tokens"] == 16 * 24
        found[level["tool"]] = level
    for level in found.values():
        for key in ("output_throughput", "median_ttft_ms", "median_tpot_ms", "median_e2el_ms"):
            # The tools compute on the cores that the engine computes on.
            assert 1 / 4 < level[key] / found["orch"][key] < 4, (level["tool"], key)
    by_default = orch.run("bench", "--tool", "vllm", "--rounds", "1", "--output-len", "8", "--json", timeout=900).lines
    assert [line["max_concurrency"] for line in by_default if "max_concurrency" in line] == [1, 2, 4, 8]
    refused = orch.run("bench", "--tool", "vllm", "--concurrency", "1+", "--direct", code=2)
    assert "a + in --concurrency is of orch's own client" in refused.err

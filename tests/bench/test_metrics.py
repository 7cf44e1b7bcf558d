"""The metrics are vllm bench serve's: on its own recorded requests they come to its own figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.bench.metrics import Level, Measured

RECORDED = Path(__file__).parent / "recorded"
# vllm bench serve 0.32, with --save-detailed, on vLLM on a CPU; its texts were left out.
FILES = ("vllm_bench_c1.json", "vllm_bench_c4.json")
# It has them too, for other things or under other definitions.
OTHERS = {"request_goodput", "errors"}


def measured(document: dict[str, Any]) -> list[Measured]:
    """Its requests."""
    lists = (document[key] for key in ("input_lens", "output_lens", "ttfts", "itls", "latencies", "errors"))
    return [
        Measured(0, 0, ttft, tuple(gaps), latency, inputs, outputs, error)
        for inputs, outputs, ttft, gaps, latency, error in zip(*lists, strict=True)
    ]


@pytest.mark.parametrize("file", FILES)
def test_they_come_to_its_own_figures(file: str) -> None:
    document = json.loads((RECORDED / file).read_text())
    told = Level.of(measured(document), document["duration"]).to_json()
    compared = told.keys() - OTHERS
    assert len(compared) == 7 + 4 * 6 + 1
    assert {key: told[key] for key in compared} == pytest.approx({key: document[key] for key in compared}, rel=1e-9)


def test_goodput_counts_who_keeps_every_limit() -> None:
    three = [
        Measured(0, 0, 0.1, (0.1,) * 9, 1.0, 5, 10),  # tpot 100 ms
        Measured(0, 0, 0.3, (0.05,) * 9, 0.75, 5, 10),  # tpot 50 ms
        Measured(0, 0, 0.1, (), 0.1, 5, 1),  # no tpot, which is good
    ]
    assert Level.of(three, 2.0).to_json()["request_goodput"] is None
    assert Level.of(three, 2.0, {"ttft": 200}).to_json()["request_goodput"] == 1.0
    assert Level.of(three, 2.0, {"ttft": 300, "tpot": 60}).to_json()["request_goodput"] == 1.0
    assert Level.of(three, 2.0, {"ttft": 300, "tpot": 60, "e2el": 500}).to_json()["request_goodput"] == 0.5


def test_failures_are_counted_and_in_no_figure() -> None:
    some = [
        Measured(0, 0, 0.2, (0.1,), 0.3, 4, 2),
        Measured(0, 1, 9.9, (9.9,), 99.0, 4, 50, "cut"),
        Measured(0, 1, error="HTTP 503"),
        Measured(0, 2, error="HTTP 503"),
    ]
    told = Level.of(some, 10.0).to_json()
    assert (told["completed"], told["failed"], told["errors"]) == (1, 3, {"cut": 1, "HTTP 503": 2})
    assert (told["total_output_tokens"], told["output_throughput"]) == (2, 0.2)
    assert told["mean_e2el_ms"] == pytest.approx(300)


def test_what_there_is_no_figure_for_is_null() -> None:
    told = Level.of([Measured(0, 0, error="HTTP 500")], 1.0).to_json()
    assert (told["mean_ttft_ms"], told["p99_itl_ms"], told["request_throughput"]) == (None, None, 0.0)

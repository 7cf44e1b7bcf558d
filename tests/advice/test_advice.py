"""What orch advises, as case files: facts in, words out.

A file has a `[situation]` (users, later, ttft_ms, adapters, serving, simple, cannot, left_out), `[[measured]]` curves
(engine, points as [users, tokens a second, standard error, first token p95 in ms, of 100 requests so many that failed],
runs), `[live]`; and what is expected: the
engine, how sure, words that are said in this order, words that are not.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from orchestrator import resources
from orchestrator.bench.advice import Advice, Situation, advise
from orchestrator.bench.series import Point, Series
from orchestrator.core.live_load import LiveLoad

ARTICLES = "NVIDIA GeForce RTX 5090"
CASES = sorted((Path(__file__).parent / "cases").glob("*.toml"))


def situation(case: dict[str, Any]) -> Situation:
    usual = {
        "users": 1,
        "ttft_ms": None,
        "adapters": 0,
        "simple": "ollama",
        "many": "vllm",
        "room": 64,
        "gpu": ARTICLES,
    }
    said = usual | case.get("situation", {})
    said.setdefault("later", said["users"])
    live = LiveLoad(**{"ttft_p50_ms": None, "ttft_p95_ms": None, **case["live"]}) if "live" in case else None
    measured = tuple(map(_series, case.get("measured", ())))
    return Situation(**said, reference=resources.reference(), measured=measured, live=live)


def _series(curve: dict[str, Any]) -> Series:
    points = tuple(_point(*point) for point in curve["points"])
    runs = tuple(curve.get("runs", ()))
    return Series(curve["engine"], "r", "the gateway", ("NVIDIA H200",), "1", points, runs)


def _point(users: int, rate: float, error: float, first: float, failed: int = 0) -> Point:
    return Point(users, rate, error, first, first, 1.0, 1.0, 100 - failed, failed, 1)


def words(advice: Advice) -> str:
    reasons = " ".join(f"{reason.text} [{reason.source}]" for reason in advice.reasons)
    return " ".join((advice.verdict, reasons, advice.again, advice.run))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_what_is_advised(path: Path) -> None:
    case = tomllib.loads(path.read_text())
    advice = advise(situation(case))
    said = words(advice)
    assert (advice.engine, advice.sure.name.lower()) == (case["engine"], case["sure"]), said
    at = 0
    for expected in case["says"]:
        found = said.find(expected, at)
        assert found >= 0, f"{expected!r} is not said in its place: {said}"
        at = found + len(expected)
    assert [text for text in case.get("silent", ()) if text in said] == []


def test_there_are_enough() -> None:
    assert len(CASES) >= 25

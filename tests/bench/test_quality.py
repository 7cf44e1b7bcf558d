"""Agreement and recovery, by figures that were worked out by hand."""

from __future__ import annotations

import pytest

from orchestrator.bench.quality import Score, agreement, recovery, scores_in
from orchestrator.bench.quality_runs import default_prompts


def test_agreement_counts_what_is_the_same_to_the_letter() -> None:
    found = agreement(["a b c d", "x", "same", ""], ["a b z d e", "y", "same", ""])
    assert (found.same, found.of, found.share) == (2, 4, 0.5)
    # 2 words of 5, none, all, and nothing of nothing.
    assert found.until_they_part == pytest.approx((2 / 5 + 0 + 1 + 1) / 4)


def test_its_interval_is_wilsons() -> None:
    # 8 of 10: Wilson's 95 % interval is 0.490 to 0.943 (Agresti & Coull 1998 have its formula).
    found = agreement(["a"] * 10, ["a"] * 8 + ["b"] * 2)
    assert (found.least, found.most) == (pytest.approx(0.490, abs=0.001), pytest.approx(0.943, abs=0.001))
    assert agreement(["a"], ["a"]).most == 1.0
    assert agreement(["a"], ["b"]).least == 0.0


def test_recovery_has_the_error_of_a_ratio() -> None:
    found = recovery(Score("t", "m", 0.864, 0.009, 1000), Score("t", "m", 0.909, 0.008, 1000))
    assert found is not None
    assert found.percent == pytest.approx(95.05, abs=0.01)
    # 0.9505 * sqrt((0.009 / 0.864)^2 + (0.008 / 0.909)^2)
    assert found.error == pytest.approx(1.296, abs=0.002)


@pytest.mark.parametrize(
    ("value", "base", "percent", "error"),
    [
        (Score("t", "m", 0.5, None, 1), Score("t", "m", 0.5, 0.1, 1), 100.0, None),
        (Score("t", "m", 0.0, 0.1, 1), Score("t", "m", 0.5, 0.1, 1), 0.0, 20.0),
    ],
)
def test_recovery_of_what_is_not_known_and_of_nothing(
    value: Score, base: Score, percent: float, error: float | None
) -> None:
    found = recovery(value, base)
    assert found is not None
    assert (found.percent, found.error) == (percent, pytest.approx(error) if error is not None else None)


def test_a_cost_is_no_share_of_anything() -> None:
    assert recovery(Score("t", "word_perplexity", 12.0, None, 1), Score("t", "word_perplexity", 10.0, None, 1)) is None
    assert Score("t", "bits_per_byte (none)", 1.0, None, 1).is_cost
    assert not Score("t", "exact_match (strict-match)", 1.0, None, 1).is_cost


def test_there_is_nothing_to_recover_from_nothing() -> None:
    assert recovery(Score("t", "m", 0.5, 0.1, 1), Score("t", "m", 0.0, 0.0, 1)) is None


def test_scores_are_read_as_the_harness_writes_them() -> None:
    # The shape of simple_evaluate's results, lm-evaluation-harness 0.4.13.
    results = {
        "gsm8k": {
            "alias": "gsm8k",
            "sample_len": 5,
            "exact_match,strict-match": 0.6,
            "exact_match_stderr,strict-match": 0.2,
            "exact_match,flexible-extract": 0.8,
            "exact_match_stderr,flexible-extract": "N/A",
        },
        "own": {"acc,none": 1.0, "acc_stderr,none": 0.0},
    }
    samples = {"gsm8k": {"original": 1319, "effective": 5}}
    assert list(scores_in(results, samples)) == [
        Score("gsm8k", "exact_match (strict-match)", 0.6, 0.2, 5),
        Score("gsm8k", "exact_match (flexible-extract)", 0.8, None, 5),
        Score("own", "acc", 1.0, 0.0, 0),
    ]


def test_there_are_prompts_to_compare_by() -> None:
    assert len(default_prompts()) >= 32
    assert {prompt.messages[-1][0] for prompt in default_prompts()} == {"user"}
    assert all(text for prompt in default_prompts() for _, text in prompt.messages)

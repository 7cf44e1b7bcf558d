"""Who gives more, in words: the same on the page and in the terminal, whichever engine came first."""

from __future__ import annotations

from typing import Any

import pytest
from levels import article, level

from orchestrator.bench.duel import duel, in_words
from orchestrator.bench.report import report
from orchestrator.bench.series import series_of


def levels(engine: str, *points: tuple[int, float], noise_ms: float = 0.0) -> list[dict[str, Any]]:
    """Of an engine, throughput by users; a request's second differs by this much, over four rounds."""
    return [level(engine, n, rate, std_e2el_ms=noise_ms, mean_e2el_ms=1000.0, completed=4 * n) for n, rate in points]


def said(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[str]:
    found = duel(*series_of([*one, *other]))
    assert found is not None
    return list(in_words(found))


LLAMACPP = ((1, 123.0), (2, 377.0), (4, 190.0))
VLLM = ((1, 164.0), (2, 287.0), (4, 538.0))


@pytest.mark.parametrize("turned", [False, True])
def test_the_one_that_is_ahead_in_the_end_is_told(turned: bool) -> None:
    """vLLM was faster with one user too: that makes it neither the simple engine nor the slower one."""
    both = (levels("llamacpp", *LLAMACPP), levels("vllm", *VLLM))
    one, other = reversed(both) if turned else both
    # 90 below at 2 users, 348 above at 4: 2 ** (1 + 90 / 438).
    expected = "vllm (nvfp4) gives more tokens a second from about 2.3 users on (95 %: 2.3 to 2.3)."
    assert said(one, other) == [expected]
    assert expected in report([*one, *other])


def test_one_that_is_ahead_all_along_has_no_crossing() -> None:
    assert said(levels("llamacpp", (1, 500.0), (4, 500.0)), levels("vllm", (1, 100.0), (4, 400.0))) == [
        "llamacpp (gguf-q6_k) gives more tokens a second with 1 and 4 users."
    ]


def test_what_is_within_the_noise_is_nobodys_lead() -> None:
    # 500 * 0.4 / 2 rounds' root: an error of 100 each.
    noisy = levels("llamacpp", (1, 500.0), (2, 500.0), noise_ms=400.0), levels("vllm", (1, 450.0), (2, 520.0))
    assert said(*noisy) == [
        "llamacpp (gguf-q6_k) and vllm (nvfp4) give about the same with 1 and 2 users, within the noise."
    ]
    clearer = noisy[0], levels("vllm", (1, 100.0), (2, 520.0))
    assert said(*clearer) == [
        "llamacpp (gguf-q6_k) gives more tokens a second with 1 user.",
        "With 2 users the difference is within the noise.",
    ]


def test_the_article_is_told_as_it_is() -> None:
    assert said(article()[:4], article()[4:])[0].startswith("vllm (nvfp4) gives more tokens a second from about 2.3")


def test_two_without_users_in_common_do_not_meet() -> None:
    assert duel(*series_of([level("vllm", 1, 1.0), level("ollama", 2, 1.0)])) is None

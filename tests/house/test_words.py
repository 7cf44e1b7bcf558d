"""What orch says to people is plain, idiomatic English, without the names of libraries."""

from __future__ import annotations

import re

import pytest
from source import said

# What has crept in before, and what to write instead.
WORDS = {
    r"(?<!\bthere )\b(?:is|are) no (?!longer\b|such\b|more\b|other\b)": "is not a",
    r"\bholds? no sound\b|\bno plain file\b": "does not hold valid, is not a regular file",
    r"\bto be had\b": "available",
    r"\bfor ever\b": "permanently",
    r"\bso it is\b": "already so",
    r"\bof its own only\b|\bby number only\b|\bat start only\b": "only, before what it is about",
    r"\b(?:there|here|exists) already\b|\bis there no more\b": "already exists, is no longer there",
    r"\bnobody (?:reads|knows|goes on)\b": "say what is so",
    r"\b(?:cannot be told|tells? (?:more|where)|left no word)\b": "is not known, shows, says nothing",
    r"\bstands? (?:twice|in)\b": "occurs twice, is set in",
    r"\bfor so long\b|\bso many\b": "how long, how many",
    r"\bof no use\b|\bsome day\b|\bby somebody else\b": "cannot be used, later, by another command",
    r"\bgoes by\b": "uses",
    r"\bmade anew\b|\bas it is locked\b": "built again, as locked",
    r"\b(?:pydantic|httpx|aiohttp|urllib3|NoneType|traceback)\b": "what it means",
}  # fmt: skip
SAID = [(where, " ".join(text.split())) for where, text in said() if " " in text.strip()]


def found_in(text: str) -> list[str]:
    return [f"{bad}: {better}" for bad, better in WORDS.items() if re.search(bad, text, re.IGNORECASE)]


def test_they_are_found() -> None:
    assert len(SAID) > 1000


def test_what_orch_says_is_plain_english() -> None:
    assert [f"{where} {text[:100]} -> {bad}" for where, text in SAID for bad in found_in(text)] == []


@pytest.mark.parametrize(
    "bad",
    [
        "x is no address.",
        "default: docker, where a daemon is to be had",
        "It is kept for ever.",
        "So it is",
        "it is no plain file",
        "orch runs it as a process of its own only",
        "The name stands twice.",
        "GPU 1 is there no more.",
    ],
)
def test_bad_words_would_be_found(bad: str) -> None:
    assert found_in(bad) != []


@pytest.mark.parametrize("good", ["There is no x.", "It is no longer there.", "Give x; it is no more than a name."])
def test_good_ones_are_not(good: str) -> None:
    assert found_in(good) == []

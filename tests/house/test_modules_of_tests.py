"""Tests import what they share by its name alone, from whatever folder came first: no two may have one."""

from __future__ import annotations

from collections import Counter

from source import ROOT


def test_no_two_modules_of_tests_have_one_name() -> None:
    names = [path.stem for path in (ROOT / "tests").rglob("*.py")]
    assert len(names) > 100
    assert [name for name, count in Counter(names).items() if count > 1 and name != "conftest"] == []

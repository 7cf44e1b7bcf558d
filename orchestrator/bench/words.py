"""Figures in words, for reports and advice. Pure."""

from __future__ import annotations


def users_text(number: int) -> str:
    """How many there are."""
    return "1 user" if number == 1 else f"{number} users"


def time_text(value: float | None) -> str:
    """A time in milliseconds, in seconds where it is that long; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value / 1000:,.1f} s" if value >= 1000 else f"{value:.0f} ms"

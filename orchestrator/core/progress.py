"""How long jobs report, and how they are told to stop."""

from __future__ import annotations

from collections.abc import Callable

# progress(what, done, total): `done` of `total` bytes (or items) of `what`; total 0 = not known.
# Called between chunks; it raises errors.Interrupted when the user asked to stop, so a job that
# calls it often enough needs no other way to be cancelled.
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """The Progress that nobody watches."""

"""What a screen tells of work that is going on: how far, how fast, how long still, and its parts. Text, no colours."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.progress import Pace, split_part

# What is less is a count of files or packages, and is told as it is.
BYTES_FROM = 10_000


@dataclass(frozen=True)
class PartLine:
    """A part under way: `share` of it is done (0 to 1), of `amount`; without a share it is a remark."""

    name: str
    share: float | None
    amount: str = ""


class ProgressView:
    """The work that Progress calls tell of, from one to the next. See core/progress.py for what the calls mean."""

    def __init__(self) -> None:
        self._what, self._done, self._total = "", 0, 0
        self._pace = Pace()
        self._telling: list[PartLine] = []
        self.parts: list[PartLine] = []

    def tell(self, what: str, done: int, total: int, at: float) -> bool:
        """Takes in one call, `at` in seconds; whether it was for the whole, so that there is something new to show."""
        job, part = split_part(what)
        if part:
            size = amount(total) if total else ""
            self._telling.append(PartLine(part, done / total if total else None, size))
            return False
        if job != self._what:
            self._pace, self._telling = Pace(), []
        self.parts, self._telling = self._telling, []
        self._what, self._done, self._total = job, done, total
        self._pace.add(at, done)
        return True

    @property
    def line(self) -> str:
        """The whole, in one line."""
        share = f"{amount(self._done, self._total, unit=False)} of {amount(self._total)}"
        words = [self._what, f"{share} ({100 * self._done // self._total} %)", *self._speed()]
        return "   ".join(words)

    def _speed(self) -> list[str]:
        rate, left = self._pace.rate, self._pace.left(self._total)
        if rate is None or self._total < BYTES_FROM:
            return []
        return [f"{amount(int(rate))}/s", f"{duration(left)} left"] if left is not None else ["stalled"]


def amount(count: int, total: int = 0, unit: bool = True) -> str:
    """Bytes in the unit that people read, the total's if there is one; small numbers (files, packages) as they are."""
    whole = max(count, total)
    if whole < BYTES_FROM:
        return str(count)
    for name, size in (("GB", 10**9), ("MB", 10**6)):
        if whole >= size:
            return f"{count / size:.1f}" + f" {name}" * unit
    return f"{count / 1000:.0f}" + " kB" * unit


def waited(what: str, seconds: float, limit: float = 0.0) -> str:
    """How long something was waited for, of how long it may be (0: there is no limit): `what   1:32 of 10:00`."""
    return f"{what}   {clock(seconds)}" + (f" of {clock(limit)}" if limit else "")


def clock(seconds: float) -> str:
    """Time as a clock shows it: `0:07`, `10:00`, `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """Time as people say it: `40 s`, `4 min`, `1 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"

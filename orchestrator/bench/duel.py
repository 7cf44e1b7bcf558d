"""Two curves against each other: which gives more tokens a second, from how many users on, how sure that is. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.bench.series import Crossover, Series, crossover
from orchestrator.bench.words import users_text

# Standard errors of both within which two throughputs are the same: about 95 %.
SURE = 2


@dataclass(frozen=True)
class Duel:
    """Two curves at numbers of users that both were measured at. `ahead` gives more with the most of them at which they
    can be told apart, `behind` less; `won` and `lost` are those at which that is so the one way and the other, `tied`
    where the difference is within the noise. `crossing`: from where on (None: it is so wherever it can be told)."""

    behind: Series
    ahead: Series
    won: tuple[int, ...]
    lost: tuple[int, ...]
    tied: tuple[int, ...]
    crossing: Crossover | None


def duel(one: Series, other: Series) -> Duel | None:
    """None where they were not measured at the same numbers of users."""
    gains: dict[int, float] = {}
    tied = []
    for mine in one.points:
        theirs = other.at(mine.users)
        if theirs is None:
            continue
        gain = theirs.throughput - mine.throughput
        if abs(gain) <= SURE * math.hypot(mine.error, theirs.error):
            tied.append(mine.users)
        else:
            gains[mine.users] = gain
    if not gains and not tied:
        return None
    last = gains[max(gains)] if gains else 0.0
    behind, ahead = (one, other) if last >= 0 else (other, one)
    won = tuple(users for users, gain in gains.items() if gain * last > 0)
    lost = tuple(users for users, gain in gains.items() if gain * last < 0)
    return Duel(behind, ahead, won, lost, tuple(tied), crossover(behind, ahead) if lost else None)


def in_words(found: Duel) -> Iterator[str]:
    """What it comes to, in sentences."""
    ahead, behind = found.ahead.title, found.behind.title
    crossing = found.crossing
    if not found.won:
        yield f"{behind} and {ahead} give about the same with {_listed(found.tied)}, within the noise."
        return
    if crossing is not None:
        sure = f"95 %: {_bound(crossing.least, 'the first')} to {_bound(crossing.most, 'beyond the last')}"
        yield f"{ahead} gives more tokens a second from about {crossing.users:.1f} users on ({sure})."
    else:
        yield f"{ahead} gives more tokens a second with {_listed(found.won)}."
    if found.tied:
        yield f"With {_listed(found.tied)} the difference is within the noise."


def _bound(users: float | None, beyond: str) -> str:
    return f"{users:.1f}" if users is not None else beyond


def _listed(numbers: tuple[int, ...]) -> str:
    *before, last = numbers
    if not before:
        return users_text(last)
    return f"{', '.join(map(str, before))} and {last} users"

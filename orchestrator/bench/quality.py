"""Whether engines and artifacts answer alike, and how well: agreement of greedy answers, and scores of tasks. Pure.

Recovery is a score in per cent of another one's, as the article has it. Its standard error is that of a ratio of two
independent means (delta method): r * sqrt((se / s)^2 + (se_base / s_base)^2).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# Half of a 95 % interval, in standard errors.
_Z = 1.96


@dataclass(frozen=True)
class Agreement:
    """Of two sets of greedy answers to the same prompts: how many are the same to the letter, of how many, with a 95 %
    interval of that share (Wilson's); and how much of an answer is the same before they part, in words, on average."""

    same: int
    of: int
    least: float
    most: float
    until_they_part: float

    @property
    def share(self) -> float:
        """Of 1."""
        return self.same / self.of


def agreement(mine: Sequence[str], theirs: Sequence[str]) -> Agreement:
    """Of answers in the same order; at least one."""
    pairs = list(zip(mine, theirs, strict=True))
    same = sum(one == other for one, other in pairs)
    least, most = _wilson(same, len(pairs))
    return Agreement(same, len(pairs), least, most, statistics.fmean(_alike(one, other) for one, other in pairs))


def _wilson(hits: int, of: int) -> tuple[float, float]:
    share, z2 = hits / of, _Z**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _alike(one: str, other: str) -> float:
    """The share of the longer one's words before they part."""
    words, others = one.split(), other.split()
    longest = max(len(words), len(others))
    if not longest:
        return 1.0
    alike = 0
    for mine, theirs in zip(words, others, strict=False):
        if mine != theirs:
            break
        alike += 1
    return alike / longest


@dataclass(frozen=True)
class Score:
    """Of a task by one of its metrics: the mean over `samples` and its standard error (None: there is none)."""

    task: str
    metric: str
    value: float
    error: float | None
    samples: int

    @property
    def is_cost(self) -> bool:
        """Whether it is no share of right answers, but a figure that is better the smaller it is."""
        return self.metric.partition(" ")[0] in _COSTS


# The harness's metrics of texts that are scored.
_COSTS = frozenset({"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"})


@dataclass(frozen=True)
class Recovery:
    """A score in per cent of another one, and its standard error in per cent (None: it is not known)."""

    percent: float
    error: float | None


def recovery(score: Score, base: Score) -> Recovery | None:
    """None where the other one is 0: there is nothing to recover; and of what is a cost."""
    if not base.value or base.is_cost:
        return None
    ratio = score.value / base.value
    if score.error is None or base.error is None:
        return Recovery(100 * ratio, None)
    # Written so that a score of 0 has an error, too.
    error = math.hypot(score.error / base.value, ratio * base.error / base.value)
    return Recovery(100 * ratio, 100 * error)


def scores_in(results: Mapping[str, Mapping[str, object]], samples: Mapping[str, Mapping[str, int]]) -> Iterator[Score]:
    """The scores in what lm-evaluation-harness has put out: `METRIC,FILTER` and `METRIC_stderr,FILTER` of each task."""
    for task, told in results.items():
        for key, value in told.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = told.get(f"{metric}_stderr,{filtered}")
            name = metric if filtered == "none" else f"{metric} ({filtered})"
            known = float(error) if isinstance(error, (int, float)) else None
            yield Score(task, name, float(value), known, samples.get(task, {}).get("effective", 0))

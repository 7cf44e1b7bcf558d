"""What a level of load comes to: the metrics of `vllm bench serve`, by its names and its definitions. Pure.

    ttft  = first token - start                     time to first token
    e2el  = last token - start                      end-to-end latency
    tpot  = (e2el - ttft) / (output tokens - 1)     time per output token, of a request with more than one
    itl   = gaps between the pieces of a stream     inter-token latency; a piece may be several tokens
    goodput = requests a second that keep every limit that was set

guidellm calls that tpot `inter_token_latency_ms`; its own `time_per_output_token_ms` has the first token in it.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

PERCENTILES = (50, 95, 99)
# Metrics that a limit (SLO) can be set on.
LIMITED = ("ttft", "tpot", "e2el")


@dataclass(frozen=True)
class Measured:
    """One request: when it was to start and when it did, in seconds since the level began; seconds from when it was to
    start until its first token, between its pieces, and until its last token; tokens as the server counts them; `error`
    names what went wrong, if anything did."""

    due: float
    started: float
    ttft: float = 0.0
    itl: tuple[float, ...] = ()
    e2el: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    error: str = ""

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first; None where there is no other."""
        return (self.e2el - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None

    def keeps(self, limits: Mapping[str, float]) -> bool:
        """Whether it keeps all of these, in milliseconds. A single token has a tpot of 0."""
        took = {"ttft": self.ttft, "tpot": self.tpot or 0.0, "e2el": self.e2el}
        return all(took[name] * 1000 <= limit for name, limit in limits.items())


@dataclass(frozen=True)
class Spread:
    """How a metric is spread over requests, in milliseconds."""

    mean: float
    median: float
    std: float
    percentiles: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread | None:
        """None where there is nothing to be spread."""
        if not seconds:
            return None
        times = sorted(value * 1000 for value in seconds)
        found = tuple((percent, percentile(times, percent)) for percent in PERCENTILES)
        return cls(statistics.fmean(times), percentile(times, 50), statistics.pstdev(times), found)


@dataclass(frozen=True)
class Level:
    """What came of a load for `duration` seconds. Rates are of those requests that were answered; the others are
    counted by what went wrong, and are in no figure of time."""

    duration: float
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    spreads: Mapping[str, Spread | None]
    good: int | None = None
    errors: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, measured: Iterable[Measured], duration: float, limits: Mapping[str, float] | None = None) -> Level:
        """Of requests in `duration` seconds; `limits` (milliseconds, by metric) say what is good."""
        every = tuple(measured)
        answered = [one for one in every if not one.error]
        return cls(
            duration=duration,
            completed=len(answered),
            failed=len(every) - len(answered),
            input_tokens=sum(one.input_tokens for one in answered),
            output_tokens=sum(one.output_tokens for one in answered),
            spreads={
                "ttft": Spread.of([one.ttft for one in answered]),
                "tpot": Spread.of([tpot for one in answered if (tpot := one.tpot) is not None]),
                "itl": Spread.of([gap for one in answered for gap in one.itl]),
                "e2el": Spread.of([one.e2el for one in answered]),
            },
            good=sum(one.keeps(limits) for one in answered) if limits else None,
            errors=dict(Counter(one.error for one in every if one.error)),
        )

    @property
    def request_throughput(self) -> float:
        """Requests a second."""
        return self.completed / self.duration

    @property
    def output_throughput(self) -> float:
        """Tokens that were generated a second."""
        return self.output_tokens / self.duration

    def to_json(self) -> dict[str, object]:
        """By the names of `vllm bench serve --save-result`; milliseconds and rates a second, as there. What there is
        no figure for is null, never 0."""
        told: dict[str, object] = {
            "duration": self.duration,
            "completed": self.completed,
            "failed": self.failed,
            "errors": dict(self.errors),
            "total_input_tokens": self.input_tokens,
            "total_output_tokens": self.output_tokens,
            "request_throughput": self.request_throughput,
            "request_goodput": self.good / self.duration if self.good is not None else None,
            "output_throughput": self.output_throughput,
            "total_token_throughput": (self.input_tokens + self.output_tokens) / self.duration,
        }
        for name, spread in self.spreads.items():
            told[f"mean_{name}_ms"] = spread.mean if spread else None
            told[f"median_{name}_ms"] = spread.median if spread else None
            told[f"std_{name}_ms"] = spread.std if spread else None
            for percent in PERCENTILES:
                told[f"p{percent}_{name}_ms"] = dict(spread.percentiles)[percent] if spread else None
        return told


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in order, between two of them in proportion, as numpy's `linear` has it."""
    place = (len(ordered) - 1) * percent / 100
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

"""What clients did with a profile in the last days, as the gateway has counted it: values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LiveLoad:
    """Of the `hours` that were counted. "Users" are requests at a time, in flight or waiting, over the time in which
    there was any. Times until the first token are None where no answer was streamed. Of the
    profile's `adapters` so many were asked. orch's own requests, a bench's among them, are in none of it."""

    hours: float
    requests: int
    errors: int
    users_p50: float
    users_p95: float
    users_max: int
    waiting_p95: float
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    adapters: int

"""How long an engine takes from its start to its first token, and to a first token once it is warm."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from orchestrator.app.measured import Subject
from orchestrator.app.runs import Watcher
from orchestrator.bench.results import RUN, VERSION
from orchestrator.bench.sweep import Sweep, Users, run
from orchestrator.core.events import Event, EventKind
from orchestrator.errors import HostError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

# From an engine's start until a token came through the gateway. Probes are left out: who serves without a predecessor
# has none.
STEPS = ("EnsureEngine", "ImportArtifact", "AwaitReady", "SetRoute", "VerifyRoute")


@dataclass
class Clocked:
    """A watcher that adds up how long the steps of a start took, and passes all on to another one."""

    watcher: Watcher
    seconds: dict[str, float] = field(default_factory=dict)

    def event(self, event: Event) -> None:
        """See Watcher. A plan's first event begins anew."""
        if event.kind is EventKind.PLANNED:
            self.seconds = {}
        if event.kind is EventKind.DONE and event.step in STEPS:
            self.seconds[event.step] = self.seconds.get(event.step, 0.0) + event.seconds
        self.watcher.event(event)

    def error(self, error: HostError) -> None:
        """See Watcher."""
        self.watcher.error(error)

    def interrupted(self) -> bool:
        """See Watcher."""
        return self.watcher.interrupted()


def warm(orch: Orchestrator, subject: Subject, sweep: Sweep, name: str) -> float | None:
    """Milliseconds until the first token of one request after another, the median; None where none was answered."""
    one = Sweep(
        (Users(1),), rounds=sweep.rounds, input_tokens=sweep.input_tokens, output_tokens=sweep.output_tokens,
        seed=sweep.seed,
    )  # fmt: skip
    (level,) = run(orch, subject, one, name)
    found: float | None = level["p50_ttft_ms"]
    return found


def started(subject: Subject, seconds: Mapping[str, float], warm_ms: float | None, name: str) -> dict[str, Any]:
    """The line of a start."""
    return {
        "version": VERSION,
        RUN: name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": "start",
        **subject.facts,
        "cold_s": sum(seconds.values()),
        "steps": {step: round(took, 3) for step, took in seconds.items()},
        "warm_ttft_ms": warm_ms,
    }


def summed_up(lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each engine: the starts, the median and the range of their seconds, and its warm first token."""
    of_engine: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        of_engine.setdefault((line["engine"], line["recipe"]), []).append(line)
    for (engine, recipe), own in of_engine.items():
        cold = [line["cold_s"] for line in own]
        warm_ms = [line["warm_ttft_ms"] for line in own if line["warm_ttft_ms"] is not None]
        yield {
            "engine": f"{engine} ({recipe})",
            "starts": len(own),
            "cold, s": round(statistics.median(cold), 1),
            "least": round(min(cold), 1),
            "most": round(max(cold), 1),
            "warm TTFT, ms": round(statistics.median(warm_ms), 1) if warm_ms else "-",
        }

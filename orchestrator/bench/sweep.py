"""A sweep: the same load with more and more requests at a time, on what serves now."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.app.measured import Subject
from orchestrator.bench.client import Ask, Load
from orchestrator.bench.metrics import Level, Measured
from orchestrator.bench.prompts import prompts, sample, words_for
from orchestrator.bench.results import RUN, VERSION
from orchestrator.errors import HostError, Interrupted, PlanRefused

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

# Tokens that a template puts around a question, and by which a prompt may be longer than it is to be: ASSUMPTION.
_AROUND = 64


@dataclass(frozen=True)
class Sweep:
    """What is asked: at each of `concurrency` so many requests for each that is in flight (`rounds`), of about
    `input_tokens`, each answered with `output_tokens`, greedy. `limits` say what is good (milliseconds, by metric)."""

    concurrency: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 4
    input_tokens: int = 256
    output_tokens: int = 256
    seed: int = 0
    limits: Mapping[str, float] | None = None


def run(orch: Orchestrator, subject: Subject, sweep: Sweep) -> Iterator[dict[str, Any]]:
    """A result for each level, as it is there. An interrupted level is given, too, before Interrupted is raised; what
    came by then is in it."""
    run_name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    wanted = sweep.input_tokens + sweep.output_tokens + _AROUND
    if subject.context and wanted > subject.context:
        raise PlanRefused(
            f"{wanted} tokens (in, out, and {_AROUND} for what a chat puts around them) are more than the context of "
            f"{subject.context}.",
            hint="A smaller --input-len or --output-len, or a larger serving.context in the profile.",
        )
    words = words_for(sweep.input_tokens, subject.tokens_of(sample(sweep.seed)))
    for users in sweep.concurrency:
        # One more for each, to warm up: connections, kernels, caches of what all requests share.
        warm = islice(prompts(words, sweep.seed, f"warm {users}"), users)
        _load(orch, subject, sweep, users, tuple(warm), f"warming up for {users}")
        texts = tuple(islice(prompts(words, sweep.seed, f"{users}"), users * sweep.rounds))
        measured, duration = _load(orch, subject, sweep, users, texts, f"{users} at a time")
        seconds = duration or max((one.started + one.e2el for one in measured), default=1.0)
        level = Level.of(measured, seconds, sweep.limits)
        yield {
            "version": VERSION,
            RUN: run_name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **subject.facts,
            "max_concurrency": users,
            "num_prompts": len(texts),
            "random_input_len": sweep.input_tokens,
            "random_output_len": sweep.output_tokens,
            "seed": sweep.seed,
            "interrupted": duration is None,
            **level.to_json(),
        }
        if duration is None:
            raise Interrupted


def _load(
    orch: Orchestrator, subject: Subject, sweep: Sweep, users: int, texts: Sequence[str], what: str
) -> tuple[list[Measured], float | None]:
    """What was measured, and in how many seconds (None: it was interrupted)."""
    asks = tuple(Ask(subject.body(text, sweep.output_tokens)) for text in texts)
    load = Load(subject.url, asks, users, subject.headers, kept=not subject.direct)
    measured: list[Measured] = []
    ended: list[float] = []

    def line(text: str) -> None:
        told = _told(text)
        if "duration" in told:
            ended.append(float(told["duration"]))
        elif told.pop("place", None) is not None:
            measured.append(Measured(**{**told, "itl": tuple(told["itl"])}))

    with tempfile.TemporaryDirectory(prefix="orch-bench-") as place:
        file = Path(place, "load.json")
        # It holds the credential.
        file.touch(mode=0o600)
        file.write_text(json.dumps(asdict(load)))
        tick: Callable[[], None] = lambda: orch.progress(what, len(measured), len(asks))  # noqa: E731
        try:
            finished = orch.run_module("orchestrator.bench.client", [str(file)], tick, line)
        except Interrupted:
            return measured, None
    if not ended:
        raise HostError("The client that measures has ended before its time.", detail="\n".join(finished.lines[-20:]))
    return measured, ended[0]


def _told(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

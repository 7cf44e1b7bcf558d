"""Asking what serves for its quality: greedy answers to compare with another's, and tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import resources
from orchestrator.app.environments import environment_spec, run_in
from orchestrator.app.measured import Subject
from orchestrator.bench.prompts import Prompt, prompts_in
from orchestrator.bench.quality import agreement, scores_in
from orchestrator.bench.results import RUN, VERSION
from orchestrator.errors import HostError, PlanRefused

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

HARNESS = "lm_eval"
_JOB = Path(__file__).with_name("lm_eval_job.py")
# Requests of a task at a time.
_AT_ONCE = 8


@dataclass(frozen=True)
class Wanted:
    """`prompts` are asked, each for at most `tokens`; `tasks` are the harness's, or those of the directory `include`,
    the first `limit` samples of each (None: all)."""

    prompts: tuple[Prompt, ...]
    tokens: int = 64
    tasks: tuple[str, ...] = ()
    include: str | None = None
    limit: int | None = None


def default_prompts() -> tuple[Prompt, ...]:
    """Those that orch ships, which calibrate, too: short, of several kinds."""
    path = resources.calibration_texts()
    return prompts_in(path.read_text("utf-8"), path.name)


def side_of(line: Mapping[str, Any]) -> str:
    """Who has answered, in a word."""
    return f"{line['engine']}:{line['recipe']}"


def answers(orch: Orchestrator, subject: Subject, wanted: Wanted) -> list[str]:
    """What it says to each prompt, greedy, one at a time: batches of others change nothing then."""
    found: list[str] = []
    for number, prompt in enumerate(wanted.prompts):
        orch.progress("asking", number, len(wanted.prompts))
        found.append(subject.answer(prompt.messages, wanted.tokens))
    return found


def compared(
    base: tuple[Mapping[str, Any], Sequence[str]], other: tuple[Mapping[str, Any], Sequence[str]], run: str
) -> dict[str, Any]:
    """The line of an agreement: facts and answers of the first, and of another one."""
    found = agreement(base[1], other[1])
    return {
        **_line("agreement", other[0], run),
        "against": side_of(base[0]),
        "same": found.same,
        "of": found.of,
        "share": found.share,
        "least": found.least,
        "most": found.most,
        "until_they_part": found.until_they_part,
    }


def scores(orch: Orchestrator, subject: Subject, wanted: Wanted, run: str) -> Iterator[dict[str, Any]]:
    """A line for each score, and for each task that cannot be measured. The harness must be here (orch engines install
    lm_eval)."""
    told = _harness(orch, subject, wanted)
    for score in scores_in(told["results"], told["samples"]):
        yield {
            **_line("score", subject.facts, run),
            "task": score.task,
            "metric": score.metric,
            "value": score.value,
            "stderr": score.error,
            "samples": score.samples,
            "limit": wanted.limit,
        }
    for task, kind in told["unmeasurable"].items():
        why = f"a {kind} task, and {subject.cannot_score}"
        yield {**_line("unmeasurable", subject.facts, run), "task": task, "why": why}


def _line(kind: str, facts: Mapping[str, Any], run: str) -> dict[str, Any]:
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"version": VERSION, RUN: run, "date": date, "kind": kind, **facts}


def _harness(orch: Orchestrator, subject: Subject, wanted: Wanted) -> dict[str, Any]:
    spec = environment_spec(orch, HARNESS)
    if not subject.tokenizer and not (subject.cannot_score and subject.chats):
        raise PlanRefused(
            "Tasks need the model's tokenizer, and its weights are not here.", hint="orch pull brings them."
        )
    asked = {"max_retries": 3, "tokenizer": subject.tokenizer or None}
    generate = {
        "model": "local-chat-completions" if subject.chats else "local-completions",
        "args": {"base_url": subject.url, "model": subject.name, "num_concurrent": _AT_ONCE, **asked},
        "chat": subject.chats,
        "key": subject.headers.get("Authorization", "").removeprefix("Bearer "),
    }
    likelihood = {
        "model": "local-completions",
        "args": {"base_url": f"{subject.engine_url}/v1/completions", "model": subject.engine_name, **asked},
        "chat": False,
        "key": subject.engine_secret,
    }
    request = {
        "tasks": list(wanted.tasks),
        "include": wanted.include,
        "limit": wanted.limit,
        "generate": generate,
        "likelihood": likelihood if not subject.cannot_score else None,
    }
    with tempfile.TemporaryDirectory(prefix="orch-quality-") as place:
        asks, result = Path(place, "request.json"), Path(place, "result.json")
        # It holds the credentials.
        asks.touch(mode=0o600)
        asks.write_text(json.dumps(request))
        argv = ("python", "-I", str(_JOB), str(asks), str(result))
        tick: Callable[[], None] = lambda: orch.progress(", ".join(wanted.tasks), 0, 0)  # noqa: E731
        finished = run_in(orch, spec, argv, {"TOKENIZERS_PARALLELISM": "false"}, Path(place), tick, asks_hub=True)
        if not result.is_file():
            raise HostError(
                "lm-evaluation-harness has ended without a result.",
                hint="Its last lines say why: a task that it does not know, or a data set that it cannot reach.",
                detail="\n".join(finished.lines[-25:]),
            )
        found: dict[str, Any] = json.loads(result.read_text())
    return found

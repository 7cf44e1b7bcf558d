"""A sweep by one of the field's own instruments, in an environment of its own; its results become ours."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.app.environments import environment_spec, run_in
from orchestrator.app.measured import Subject
from orchestrator.bench.results import RUN, VERSION
from orchestrator.bench.sweep import Rate, Sweep, Users, described
from orchestrator.bench.tools import RESULT, Tool, Wanted
from orchestrator.errors import HostError, PlanRefused, UsageError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


def check(sweep: Sweep, subject: Subject, tool: Tool) -> None:
    """UsageError or PlanRefused where the tool cannot make this load."""
    for given, option in (
        (sweep.given, "--prompts"),
        (sweep.shared_tokens, "--shared-prefix-len"),
        (sweep.saturate, "a + in --concurrency"),
        (sweep.limits, "--goodput"),
    ):
        if given:
            raise UsageError(f"{option} is of orch's own client.", hint=f"Leave it out, or --tool {tool.name}.")
    if not subject.tokenizer:
        raise PlanRefused(
            f"{tool.name} needs the model's tokenizer, and its weights are not here.", hint="orch pull brings them."
        )


def run(orch: Orchestrator, subject: Subject, sweep: Sweep, run_name: str, tool: Tool) -> Iterator[dict[str, Any]]:
    """A result for each level, as it is there. The tool's environment must be here (orch engines install)."""
    spec = environment_spec(orch, tool.pin)
    for repeat in range(sweep.repeats):
        for step in sweep.steps:
            with tempfile.TemporaryDirectory(prefix="orch-bench-") as place:
                start = tool.start(_wanted(subject, sweep, step, repeat))
                for name, text in start.files.items():
                    file = Path(place, name)
                    file.touch(mode=0o600)
                    file.write_text(text)
                what = f"{tool.name}, {step}"
                finished = run_in(orch, spec, start.argv, start.env, Path(place), lambda: orch.progress(what, 0, 0))  # noqa: B023
                document = _result(Path(place, RESULT))
            if document is None:
                raise HostError(f"{tool.name} has ended without a result.", detail="\n".join(finished.lines[-20:]))
            for asked, figures in tool.figures(document):
                yield {
                    "version": VERSION,
                    RUN: run_name,
                    **subject.facts,
                    **described(sweep, step, asked["num_prompts"]),
                    "tool": tool.name,
                    "client_ceiling": None,
                    "interrupted": False,
                    **figures,
                    "engine_memory": subject.memory(),
                    "gpu_use": [],
                }


def _wanted(subject: Subject, sweep: Sweep, step: Users | Rate, repeat: int) -> Wanted:
    return Wanted(
        url=subject.url,
        name=subject.name,
        key=subject.headers.get("Authorization", "").removeprefix("Bearer "),
        tokenizer=subject.tokenizer,
        endless=subject.endless,
        requests=sweep.requests(step),
        users=step.number if isinstance(step, Users) else 0,
        rate=step.per_second if isinstance(step, Rate) else 0.0,
        input_tokens=sweep.input_tokens,
        output_tokens=sweep.output_tokens,
        # Prompts of another seed at each level, which no cache has.
        seed=sweep.seed + 1000 * repeat + (step.number if isinstance(step, Users) else round(step.per_second * 10)),
    )


def _result(file: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

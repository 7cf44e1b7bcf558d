"""A sweep: the same load with more and more requests at a time, or more and more a second, on what serves now."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import accumulate, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.app.measured import Subject
from orchestrator.bench.client import Ask, Load
from orchestrator.bench.gpu_use import GpuUse
from orchestrator.bench.metrics import Level, Measured
from orchestrator.bench.prompts import Prompt, prompts, sample, words_for
from orchestrator.bench.results import RUN, VERSION
from orchestrator.bench.series import SATURATED_GAIN
from orchestrator.errors import HostError, Interrupted, PlanRefused

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

# Tokens that a template puts around a question, and by which a prompt may be longer than it is to be: ASSUMPTION.
AROUND = 64
MOST_USERS = 1024
# Most requests of a level: each is held in memory, with its times.
MOST_REQUESTS = 100_000


@dataclass(frozen=True)
class Users:
    """So many requests at a time (closed loop): each of `number` users asks again once it has its answer."""

    number: int

    def __str__(self) -> str:
        return f"{self.number} at a time"


@dataclass(frozen=True)
class Rate:
    """So many requests a second (open loop), at random times as of a Poisson process, whatever becomes of them."""

    per_second: float

    def __str__(self) -> str:
        return f"{self.per_second:g} a second"


@dataclass(frozen=True)
class Sweep:
    """What is asked, at each of `steps`, `repeats` times: of users `rounds` requests each, at a rate for `seconds`.
    Prompts of about `input_tokens`, the first `shared_tokens` the same in all, or those that are given; each answered
    with `output_tokens`, greedy. Of `adapters` each is asked in turn (none: the base). To `saturate` users are doubled
    until that brings no more. `limits` say what is good (milliseconds, by metric)."""

    steps: tuple[Users | Rate, ...] = (Users(1), Users(2), Users(4), Users(8))
    saturate: bool = False
    rounds: int = 4
    seconds: float = 30.0
    repeats: int = 1
    input_tokens: int = 256
    shared_tokens: int = 0
    output_tokens: int = 256
    seed: int = 0
    given: tuple[Prompt, ...] = ()
    adapters: tuple[str, ...] = ()
    limits: Mapping[str, float] | None = None

    def requests(self, step: Users | Rate) -> int:
        """How many requests a step has."""
        match step:
            case Users(number):
                return number * self.rounds
            case Rate(per_second):
                return max(1, round(per_second * self.seconds))

    @property
    def most(self) -> int:
        """The requests of its largest step."""
        return max(map(self.requests, self.steps))


def next_users(levels: Sequence[Mapping[str, Any]]) -> int | None:
    """How many users come next, to see where an engine is saturated; None once it is, by results of a sweep in their
    order. One that fails requests is, too."""
    last = levels[-1]
    before = max((level["output_throughput"] for level in levels[:-1]), default=0.0)
    users = 2 * int(last["max_concurrency"])
    if last["failed"] or last["output_throughput"] < before * (1 + SATURATED_GAIN) or users > MOST_USERS:
        return None
    return users


def run(orch: Orchestrator, subject: Subject, sweep: Sweep, run_name: str) -> Iterator[dict[str, Any]]:
    """A result for each level, as it is there. An interrupted level is given, too, before Interrupted is raised; what
    came by then is in it."""
    check(sweep, subject.context)
    words_of: Callable[[int], int] = lambda tokens: words_for(tokens, sample_tokens)  # noqa: E731
    sample_tokens = subject.tokens_of(sample(sweep.seed))
    words = (words_of(sweep.input_tokens), words_of(sweep.shared_tokens) if sweep.shared_tokens else 0)
    told = {**subject.facts, "client_ceiling": _ceiling(orch, sweep)}
    for repeat in range(sweep.repeats):
        levels: list[dict[str, Any]] = []
        steps = list(sweep.steps)
        while steps:
            step = steps.pop(0)
            salt = f"{step}" if not repeat else f"{step}, repeat {repeat}"
            # One more for each, to warm up: connections, kernels, caches of what all requests share.
            warm = max(step.number if isinstance(step, Users) else 1, len(sweep.adapters))
            random_ones = prompts(words[0], sweep.seed, f"warm {salt}", words[1])
            asks = _asks(subject, sweep, list(islice(random_ones, warm)))
            _load(orch, subject, asks, warm, f"warming up for {step}")
            asks = _asks(subject, sweep, _chosen(sweep, step, words, salt), step)
            found = _load(orch, subject, asks, step.number if isinstance(step, Users) else 0, str(step))
            if found.duration is not None:
                subject.check_serves()
            level = {
                "version": VERSION,
                RUN: run_name,
                **told,
                **described(sweep, step, len(asks)),
                **found.told(sweep),
            }
            levels.append(level)
            yield level
            if found.duration is None:
                raise Interrupted
            if not steps and sweep.saturate and (users := next_users(levels)) is not None:
                steps.append(Users(users))


def _ceiling(orch: Orchestrator, sweep: Sweep) -> float | None:
    """Tokens a second that the client can read here, of as many streams as the largest step has; see ceiling.py."""
    users = max(step.number if isinstance(step, Users) else 1 for step in sweep.steps)
    said: list[float] = []

    def line(text: str) -> None:
        said.extend(float(told) for name, told in _told(text).items() if name == "output_throughput")

    args = [str(users), str(sweep.output_tokens)]
    orch.run_module("orchestrator.bench.ceiling", args, lambda: orch.progress("the client alone", 0, 0), line)
    return said[0] if said else None


def check(sweep: Sweep, context: int) -> None:
    """PlanRefused where what answers cannot be asked this: a prompt and its answer may have `context` tokens together
    (0: that is not known)."""
    wanted = sweep.input_tokens + sweep.output_tokens + AROUND
    if context and wanted > context and not sweep.given:
        raise PlanRefused(
            f"{wanted} tokens (in, out, and {AROUND} for what a chat puts around them) are more than the context of "
            f"{context}.",
            hint="A smaller --input-len or --output-len, or a larger serving.context in the profile.",
        )
    if sweep.most > MOST_REQUESTS:
        raise PlanRefused(
            f"{sweep.most} requests in a level are more than {MOST_REQUESTS}.",
            hint="A smaller --rounds, --duration or --request-rate.",
        )


def _chosen(sweep: Sweep, step: Users | Rate, words: tuple[int, int], salt: str) -> list[Prompt]:
    """The prompts of a step; given ones in an order of its own, each again only when all were asked."""
    wanted = sweep.requests(step)
    if not sweep.given:
        return list(islice(prompts(words[0], sweep.seed, salt, words[1]), wanted))
    order = random.Random(f"{sweep.seed} {salt}").sample(sweep.given, len(sweep.given))
    return list(islice(cycle(order), wanted))


def _asks(
    subject: Subject, sweep: Sweep, chosen: Sequence[Prompt], step: Users | Rate | None = None
) -> tuple[Ask, ...]:
    names = cycle(sweep.adapters or (None,))
    bodies = [
        subject.body(one.messages, _wanted(subject, sweep, one), name) for one, name in zip(chosen, names, strict=False)
    ]
    if not isinstance(step, Rate):
        return tuple(map(Ask, bodies))
    dice = random.Random(f"{sweep.seed} {step}")
    dues = list(accumulate(dice.expovariate(step.per_second) for _ in bodies))
    # Few random gaps are by chance too long or too short together: as in vllm bench serve, the rate is what was asked.
    scale = len(bodies) / step.per_second / dues[-1]
    return tuple(Ask(body, due * scale) for body, due in zip(bodies, dues, strict=True))


def _wanted(subject: Subject, sweep: Sweep, prompt: Prompt) -> int:
    """How many tokens are to come."""
    return prompt.output_tokens or (subject.tokens_of(prompt.answer) if prompt.answer else 0) or sweep.output_tokens


def described(sweep: Sweep, step: Users | Rate, requests: int) -> dict[str, Any]:
    """What was asked, by the names of `vllm bench serve`."""
    users = isinstance(step, Users)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "tool": "orch",
        "max_concurrency": step.number if isinstance(step, Users) else None,
        "request_rate": "inf" if users else step.per_second if isinstance(step, Rate) else None,
        "num_prompts": requests,
        "dataset": "file" if sweep.given else "random",
        "random_input_len": None if sweep.given else sweep.input_tokens,
        "random_output_len": sweep.output_tokens,
        "shared_prefix_len": sweep.shared_tokens,
        "seed": sweep.seed,
        "adapters": list(sweep.adapters),
        "goodput_limits": dict(sweep.limits or {}),
    }


@dataclass
class _Found:
    """What came of a load; `duration` is None where it was interrupted."""

    measured: list[Measured] = field(default_factory=list)
    duration: float | None = None
    use: GpuUse = field(default_factory=GpuUse)
    memory: int | None = None

    def told(self, sweep: Sweep) -> dict[str, Any]:
        seconds = self.duration or max((one.started + one.e2el for one in self.measured), default=1.0)
        level = Level.of(self.measured, seconds, sweep.limits).to_json()
        ended = {"interrupted": self.duration is None}
        return {**ended, **level, "engine_memory": self.memory, "gpu_use": self.use.to_json()}


def _load(orch: Orchestrator, subject: Subject, asks: Sequence[Ask], users: int, what: str) -> _Found:
    load = Load(subject.url, tuple(asks), users, subject.headers, kept=not subject.direct)
    found = _Found()
    ended: list[float] = []

    def line(text: str) -> None:
        told = _told(text)
        if "duration" in told:
            ended.append(float(told["duration"]))
        elif told.pop("place", None) is not None:
            found.measured.append(Measured(**{**told, "itl": tuple(told["itl"])}))

    with tempfile.TemporaryDirectory(prefix="orch-bench-") as place, orch.sampling(subject.gpus) as gpus:
        file = Path(place, "load.json")
        # It holds the credential.
        file.touch(mode=0o600)
        file.write_text(json.dumps(asdict(load)))

        def tick() -> None:
            found.use.look(gpus)
            orch.progress(what, len(found.measured), len(asks))

        try:
            finished = orch.run_module("orchestrator.bench.client", [str(file)], tick, line)
        except Interrupted:
            return found
        found.memory = subject.memory()
    if not ended:
        raise HostError("The client that measures has ended before its time.", detail="\n".join(finished.lines[-20:]))
    found.duration = ended[0]
    return found


def _told(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

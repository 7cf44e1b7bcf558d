"""Steps that have a new engine prove itself, beside what the one before said, before any client meets it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from orchestrator.core.deployment import Adapter, Deployment
from orchestrator.core.parity import CHATS, QUESTIONS, TEXTS, TOOL, Chat, Tokens
from orchestrator.core.progress import Progress
from orchestrator.core.proof import Before, Probe, Proof, Proofs
from orchestrator.core.steps import AskBefore, ProveEngine
from orchestrator.drivers.base import World
from orchestrator.engines import ENGINES
from orchestrator.errors import HostError
from orchestrator.interview import Interview, choice_of, text_of
from orchestrator.perform.dispatch import perform
from orchestrator.probes import HELLO, instance_of

# The engine before may be under load, and nobody is to wait for that.
BEFORE_S = 10.0
ANSWER_S = 120.0
CONTEXT_S = 30.0
# Of the texts that orch check has: as many as an engine can be asked that counts by reading.
_TEXTS = TEXTS[:6]
_SCHEMA = {"type": "object", "properties": {"answer": {"enum": ["yes", "no"]}}, "required": ["answer"]}
_PROMPT = "prompt of a chat: "
# Tokens for what has to come to an end: JSON with blanks, a thought.
_LONG = 64
# Of a prompt that is as long as it may be: what a chat puts around it, and the answer.
_AROUND = 96


@perform.register
def ask_before(step: AskBefore, world: World, progress: Progress) -> None:
    """What it does not say in time is not compared: it serves, and may have much to do."""
    interview = _interview(step.deployment, world, progress, BEFORE_S)
    deadline = world.clock.monotonic() + BEFORE_S
    tokens: dict[str, Any] = {}
    answers: dict[str, str] = {}
    adapters: dict[str, str] = {}
    with suppress(HostError):
        for name, ask in _tokens_asked(interview):
            if world.clock.monotonic() < deadline and (found := ask()) is not None:
                tokens[name] = found
        for question in QUESTIONS:
            if world.clock.monotonic() < deadline and (said := _answer(interview, question)):
                answers[question] = said
        for adapter in step.deployment.adapters:
            if world.clock.monotonic() < deadline and (said := _answer(interview, HELLO, adapter)):
                adapters[adapter.digest] = said
    before = Before(step.deployment.instance, tokens, answers, adapters)
    _note(world, "answers", step.deployment.profile, asdict(before))


@perform.register
def prove_engine(step: ProveEngine, world: World, progress: Progress) -> str:
    deployment = step.deployment
    interview = _interview(deployment, world, progress, ANSWER_S)
    found: list[Proof] = []
    for probe, prove in _PROBES.items():
        if probe.value in step.skipped:
            continue
        progress(f"probing {deployment.instance}: {probe.value}", 0, 0)
        proof = prove(interview, _said_before(step, world))
        if proof is not None:
            found.append(Proof(probe.value, *proof))
    proofs = Proofs(deployment.instance, tuple(found), step.skipped)
    _note(world, "proofs", deployment.profile, asdict(proofs))
    wrong = [one for one in proofs.proofs if not one.holds]
    if wrong:
        raise HostError(
            f"{deployment.instance} is not as it must be: {wrong[0].told}.",
            hint=f"orch check compares the engines. To go on all the same: --skip-probe {wrong[0].probe}",
            detail="\n".join(f"{one.probe}: {one.told}" for one in wrong),
        )
    return proofs.summary


def _note(world: World, kind: str, profile: str, value: object) -> None:
    """For people, and for a comparison: what cannot be written stops nothing."""
    with suppress(HostError):
        world.records.note(kind, profile, value)


def _interview(deployment: Deployment, world: World, progress: Progress, answer_s: float) -> Interview:
    instance = instance_of(deployment.target, deployment.instance, world)
    if instance is None:
        raise HostError(f"{deployment.instance} is gone.", hint="Somebody else stopped it; run the command again.")
    return Interview(world, deployment, instance, progress, answer_s)


def _said_before(step: ProveEngine, world: World) -> Before | None:
    """What the engine before said; None where it was not asked, or is another one."""
    try:
        before = Before.from_json(world.records.noted("answers", step.deployment.profile))
    except ValueError:
        return None
    return before if before.instance == step.before else None


def _tokens_asked(interview: Interview) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Texts and chats' prompts by name, and how they are asked for."""
    for text in _TEXTS:
        yield repr(text), partial(_tokens_of, interview, text)
    for chat in CHATS if interview.deployment.chats else ():
        yield f"{_PROMPT}{chat.name}", partial(_prompt_of, interview, chat)


def _answer(interview: Interview, question: str, adapter: Adapter | None = None) -> str:
    return text_of(interview.choice(question, adapter))


def _tokens_of(interview: Interview, text: str) -> list[int] | int | None:
    return _as_json(interview.tokens(text))


def _prompt_of(interview: Interview, chat: Chat) -> list[int] | int | None:
    return _as_json(interview.prompt(chat))


def _as_json(tokens: Tokens | None) -> list[int] | int | None:
    if tokens is None:
        return None
    return list(tokens.ids) if tokens.ids is not None else tokens.count


def _alike(one: Any, other: Any) -> bool:
    """Ids are compared where both tell them, else how many there are."""
    if isinstance(one, list) and isinstance(other, list):
        return one == other
    return bool(_number(one) == _number(other))


def _number(tokens: Any) -> Any:
    return len(tokens) if isinstance(tokens, list) else tokens


_Told = tuple[bool, str] | tuple[bool, str, float] | None


def _tokens(interview: Interview, before: Before | None) -> _Told:
    """Prompts must have the same tokens. Texts to be completed begin as each engine has it (BOS), which is told."""
    if before is None or not before.tokens:
        return None
    asked = [(name, ask) for name, ask in _tokens_asked(interview) if name in before.tokens]
    found = {name: tokens for name, ask in asked if (tokens := ask()) is not None}
    wrong = [name for name, tokens in found.items() if not _alike(tokens, before.tokens[name])]
    prompts = [name for name in wrong if name.startswith(_PROMPT)]
    if prompts:
        return False, f"the tokens of the {prompts[0]} are not those of {before.instance}"
    return True, f"the tokens of {len(found) - len(wrong)} of {len(found)} prompts and texts are the same"


def _answers(interview: Interview, before: Before | None) -> _Told:
    if before is None or not before.answers:
        return None
    now = {question: _answer(interview, question) for question in before.answers}
    same = sum(now[question] == answer for question, answer in before.answers.items())
    return True, f"{same} of {len(now)} greedy answers as before"


def _adapters(interview: Interview, before: Before | None) -> _Told:
    """Numbers may part two engines' answers; but where the base says what it said, an adapter that now says the same
    and did not before is not applied."""
    compared = [one for one in interview.deployment.adapters if before is not None and one.digest in before.adapters]
    if before is None or not compared:
        return None
    was, base = before.answers.get(HELLO), _answer(interview, HELLO)
    now = {adapter.digest: _answer(interview, HELLO, adapter) for adapter in compared}
    for adapter in compared:
        if base == was == now[adapter.digest] != before.adapters[adapter.digest]:
            return False, f"adapter {adapter.name} changes nothing: it answers as the base does"
    same = sum(now[digest] == before.adapters[digest] for digest in now)
    return True, f"{same} of {len(now)} adapters answer as before"


def _thinking(interview: Interview, before: Before | None) -> _Told:
    card = interview.deployment.card
    if card is None or not card.thinks:
        return None
    sheet, own_store = ENGINES[interview.deployment.engine], interview.deployment.own_store
    thoughtful, plain = (interview.asked(HELLO, **sheet.asked_to_think(on), max_tokens=_LONG) for on in (True, False))
    for reply, how in ((thoughtful, "with"), (plain, "without")):
        if reply.status != 200:
            # Ollama has its own idea of which templates think.
            return own_store, f"a chat {how} thoughts is answered {reply.status}"
    message = choice_of(plain).get("message") or {}
    if message.get("reasoning_content") or message.get("reasoning"):
        # So do models whose template begins a thought whatever it is told.
        return True, "it thinks although it was asked not to"
    return True, "it thinks, or not, as it is asked"


def _tools(interview: Interview, before: Before | None) -> _Told:
    card = interview.deployment.card
    if card is None or not card.takes_tools:
        return None
    reply = interview.asked("What is the weather in Paris?", tools=[TOOL], max_tokens=_LONG)
    if reply.status != 200:
        # Ollama has its own idea of which templates take tools.
        return interview.deployment.own_store, f"a chat with a tool is answered {reply.status}: {reply.text[:200]}"
    return True, "a chat with a tool is answered"


def _schema(interview: Interview, before: Before | None) -> _Told:
    if not interview.deployment.chats:
        return None
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": _SCHEMA}}
    reply = interview.asked("Is the sky blue?", response_format=form, max_tokens=_LONG)
    choice = choice_of(reply)
    if reply.status != 200:
        return False, f"a JSON schema is answered {reply.status}: {reply.text[:200]}"
    if choice.get("finish_reason") == "length":
        return True, f"no end within {_LONG} tokens under a JSON schema"
    try:
        value = json.loads(text_of(choice))
    except ValueError:
        return False, f"under a JSON schema it says {text_of(choice)[:60]!r}"
    good = isinstance(value, dict) and value.get("answer") in ("yes", "no")
    return good, f"under a JSON schema it says {json.dumps(value)[:60]}"


def _stop(interview: Interview, before: Before | None) -> _Told:
    whole = text_of(interview.choice(HELLO))
    words = [word for word in whole.split()[1:] if len(word) > 2]
    if not words:
        return None
    cut = text_of(interview.choice(HELLO, stop=[words[0]]))
    ends = words[0] not in cut
    return ends, f"it {'ends' if ends else 'does not end'} at a word that it is to stop at"


def _context(interview: Interview, before: Before | None) -> _Told:
    """A prompt as long as there is room for, but for what is around it."""
    card = interview.deployment.card
    room = (card.context if card is not None else 0) - _AROUND
    each = interview.tokens("word " * 100).number or 0
    if room <= 0 or not each:
        return None
    patient = replace(interview, answer_s=CONTEXT_S)
    try:
        reply = patient.asked("word " * int(room / each * 100), max_tokens=1)
    except HostError:
        # A large model on a CPU reads so much in minutes, and somebody may be waiting.
        return True, f"a prompt of about {room} tokens is not read within {CONTEXT_S:.0f} s"
    return reply.status == 200, f"a prompt of about {room} tokens is answered {reply.status}"


def _first_token(interview: Interview, before: Before | None) -> _Told:
    clock = interview.world.clock
    began = clock.monotonic()
    interview.asked(HELLO, max_tokens=1)
    seconds = clock.monotonic() - began
    return True, f"the first token came after {seconds:.2f} s", seconds


_PROBES: dict[Probe, Callable[[Interview, Before | None], _Told]] = {
    Probe.TOKENS: _tokens,
    Probe.ANSWERS: _answers,
    Probe.ADAPTERS: _adapters,
    Probe.THINKING: _thinking,
    Probe.TOOLS: _tools,
    Probe.SCHEMA: _schema,
    Probe.STOP: _stop,
    Probe.CONTEXT: _context,
    Probe.FIRST_TOKEN: _first_token,
}

"""What is measured: what serves now, as a load asks it, through the gateway or directly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import __version__
from orchestrator.app.profiles import weights_facts
from orchestrator.core.observed import EngineObserved, Observed
from orchestrator.engines import ENGINES
from orchestrator.engines.base import EngineCall
from orchestrator.errors import HostError, OrchError, PlanRefused
from orchestrator.interview import Interview, choice_of, text_of
from orchestrator.probes import question_of

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

ANSWER_S = 60.0
_UP = "orch up ENGINE -p PROFILE"


@dataclass(frozen=True)
class Subject:
    """A model that is asked at `url` with `headers`, streamed, greedy; `facts` say what answers there, and where. Of
    clients `in_flight` requests are at it already; it is asked `direct`ly, or through the gateway.
    A prompt and its answer may have `context` tokens together (0: that is not known). It computes on `gpus` (UUIDs),
    and is asked by `name`. `tokenizer` is the directory of its weights; empty where they are not here.
    `adapters` are the names of those that are deployed."""

    url: str
    headers: Mapping[str, str]
    facts: Mapping[str, Any]
    in_flight: int
    direct: bool
    context: int
    gpus: tuple[str, ...]
    name: str
    tokenizer: str
    adapters: tuple[str, ...]
    _interview: Interview

    @property
    def cannot_score(self) -> str:
        """Why texts cannot be scored by it; empty where they can."""
        return ENGINES[self._interview.deployment.engine].cannot_score

    @property
    def chats(self) -> bool:
        """Whether it is asked in chats."""
        return self._interview.deployment.chats

    @property
    def engine_url(self) -> str:
        """Of the engine itself."""
        return self._interview.instance.url

    @property
    def engine_secret(self) -> str:
        """What the engine asks of whoever asks it directly."""
        return self._interview.instance.secret

    @property
    def engine_name(self) -> str:
        """What the engine itself calls the base."""
        deployment = self._interview.deployment
        return ENGINES[deployment.engine].upstream(deployment, None)

    @property
    def endless(self) -> bool:
        """Whether an answer can be had that does not end before its limit."""
        return bool(ENGINES[self._interview.deployment.engine].endless)

    def body(self, messages: Sequence[tuple[str, str]], tokens: int, name: str | None = None) -> dict[str, Any]:
        """A request for an answer of so many tokens, where the engine does not end it before, to messages as (role,
        text); of the base, or by the public `name` of an adapter."""
        deployment = self._interview.deployment
        _, question = self._question(messages)
        asked = {"model": name or self.name, **question, "max_tokens": tokens, "temperature": 0}
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        return {**asked, **streamed, **ENGINES[deployment.engine].endless}

    def answer(self, messages: Sequence[tuple[str, str]], tokens: int) -> str:
        """What the engine, asked directly, answers at most so many tokens long, greedy: thoughts and text."""
        deployment = self._interview.deployment
        sheet = ENGINES[deployment.engine]
        path, question = self._question(messages)
        asked = {"model": sheet.upstream(deployment, None), **question, "max_tokens": tokens, "temperature": 0}
        reply = self._interview.reply(EngineCall("POST", path, {**asked, **sheet.patch(deployment, None)}))
        if reply.status != HTTPStatus.OK:
            raise HostError(f"{deployment.instance} refuses a question: {sheet.refusal(reply.status, reply.text)}")
        return _said(choice_of(reply))

    def _question(self, messages: Sequence[tuple[str, str]]) -> tuple[str, dict[str, Any]]:
        """The path and the body that ask it; a model that does not chat is asked to go on from their texts."""
        if self._interview.deployment.chats:
            path, _ = question_of("", chats=True)
            return path, {"messages": [{"role": role, "content": text} for role, text in messages]}
        return question_of("\n".join(text for _, text in messages), chats=False)

    def check_serves(self) -> None:
        """HostError where something else serves by now: what was asked meanwhile was not asked of this alone."""
        deployment = self._interview.deployment
        status = self._interview.world.gateway.status()
        route = status.routes.find(deployment.served_name) if status is not None else None
        if route is None or route.backend.instance != deployment.instance:
            raise HostError(
                f"{deployment.instance} does not serve {deployment.profile} any more: somebody has changed that "
                "meanwhile, and the last level is left out.",
                hint="orch status says what serves; measure again once it stays.",
            )

    def memory(self) -> int | None:
        """Bytes of RAM that the engine holds now; None where its target does not tell."""
        interview = self._interview
        try:
            return interview.world.targets[interview.instance.target].usage(interview.instance).memory
        except OrchError:
            return None

    def tokens_of(self, text: str) -> int:
        """How many tokens a text is; one for each word where the engine does not tell."""
        return self._interview.tokens(text).number or len(text.split())


def subject_of(orch: Orchestrator, profile: str | None, *, direct: bool) -> Subject:
    """What serves a profile (None: the only one). Raises PlanRefused where nothing does, and HostError."""
    observed = orch.observe()
    serving = _serving(observed, profile)
    deployment, instance = serving.deployment, serving.instance
    interview = Interview(orch, deployment, instance, orch.progress, ANSWER_S)
    path = question_of("", deployment.chats)[0]
    status = observed.gateway.status
    if direct:
        url, key, name = instance.url, instance.secret, ENGINES[deployment.engine].upstream(deployment, None)
    else:
        assert status is not None, "something serves"
        url, key, name = f"http://{status.listen}", orch.gateway.credential(), deployment.served_name
    on_gpu = deployment.accelerator.value != "cpu"
    gpus = [gpu for gpu in observed.host.gpus if on_gpu and (not deployment.gpu or gpu.uuid in deployment.gpu)]
    container = instance.launch.container
    facts = {
        "orch": __version__,
        "profile": deployment.profile,
        "engine": deployment.engine,
        "instance": deployment.instance,
        "model_id": deployment.served_name,
        "recipe": deployment.recipe.value,
        "artifact": deployment.artifact_key,
        "engine_version": _version(interview),
        "program": container.image if container is not None else instance.launch.environment,
        "accelerator": deployment.accelerator.value,
        "gpus": [gpu.name for gpu in gpus],
        "through": "the engine" if direct else "the gateway",
    }
    route = status.routes.find(deployment.served_name) if status is not None else None
    card = status.routes.card_of(route) if status is not None and route is not None else None
    in_flight = status.load_of(instance.name).in_flight if status is not None else 0
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    context = card.context if card is not None else 0
    uuids = tuple(gpu.uuid for gpu in gpus)
    adapters = tuple(adapter.name for adapter in deployment.adapters)
    weights = weights_facts(orch, observed.desired[deployment.profile].spec.profile)
    tokenizer = weights.path if Path(weights.path, "tokenizer.json").is_file() else ""
    return Subject(
        f"{url}{path}", headers, facts, in_flight, direct, context, uuids, name, tokenizer, adapters, interview
    )


def _said(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    thoughts = message.get("reasoning_content") or message.get("reasoning") if isinstance(message, dict) else None
    return f"{thoughts or ''}{text_of(choice)}"


def _version(interview: Interview) -> str | None:
    """What its program calls itself; None where it does not tell."""
    sheet = ENGINES[interview.deployment.engine]
    if sheet.package:
        return metadata.version(sheet.package)
    path, name = sheet.version_at
    told = interview.reply(EngineCall("GET", path)).json if path else None
    return str(told[name]) if isinstance(told, dict) and name in told else None


def _serving(observed: Observed, profile: str | None) -> EngineObserved:
    deployed = observed.deployed
    if profile is None and len(deployed) > 1:
        raise PlanRefused(f"Several profiles are deployed: {', '.join(deployed)}.", hint="Say which: --profile NAME")
    name = profile or next(iter(deployed), None)
    if name is None or name not in deployed:
        raise PlanRefused(f"{name or 'Nothing'} is {'not ' if name else ''}deployed.", hint=_UP)
    found = next((one for one in observed.engines_of(name) if one.instance.name == observed.serving(name)), None)
    if found is None or not found.answers:
        raise PlanRefused(f"{name} is not answered by anything now.", hint="orch up")
    return found

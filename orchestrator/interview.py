"""Asking one engine directly what it makes of texts, chats and questions: to compare it with another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.core.deployment import Adapter, Deployment
from orchestrator.core.launch import Instance
from orchestrator.core.parity import ANSWER_TOKENS, Chat, Tokens
from orchestrator.core.progress import Progress
from orchestrator.drivers.base import Reply, World
from orchestrator.engines import ENGINES
from orchestrator.engines.base import EngineCall
from orchestrator.errors import HostError
from orchestrator.probes import question_of


@dataclass(frozen=True)
class Interview:
    """An engine that runs, and how many seconds an answer of it may take."""

    world: World
    deployment: Deployment
    instance: Instance
    progress: Progress
    answer_s: float

    def reply(self, call: EngineCall) -> Reply:
        """What it answers; raises HostError where nothing comes."""
        url = self.instance.url + call.path
        reply = self.world.http.send(call.method, url, call.body, self.answer_s, self.progress, self.instance.secret)
        if reply is None:
            name = self.deployment.instance
            raise HostError(f"{name} does not answer.", hint=f"orch logs {name}")
        return reply

    def tokens(self, text: str) -> Tokens:
        """The tokens of a text, as far as it tells them."""
        sheet = ENGINES[self.deployment.engine]
        call = sheet.tokens_request(self.deployment, text)
        found = sheet.prompt_in(self.reply(call).json) if call is not None else None
        return found if isinstance(found, Tokens) else Tokens()

    def prompt(self, chat: Chat) -> Tokens | None:
        """The tokens of a chat's prompt; None where it cannot be asked."""
        sheet = ENGINES[self.deployment.engine]
        call = sheet.prompt_request(self.deployment, chat)
        found = sheet.prompt_in(self.reply(call).json) if call is not None else None
        return self.tokens(found) if isinstance(found, str) else found

    def asked(self, question: str, adapter: Adapter | None = None, **more: Any) -> Reply:
        """The reply to a question, greedy; `more` is said besides."""
        sheet, deployment = ENGINES[self.deployment.engine], self.deployment
        path, body = question_of(question, deployment.chats)
        asked = {"model": sheet.upstream(deployment, adapter), **body, "temperature": 0, "max_tokens": ANSWER_TOKENS}
        return self.reply(EngineCall("POST", path, {**asked, **sheet.patch(deployment, adapter), **more}))

    def choice(self, question: str, adapter: Adapter | None = None, **more: Any) -> Mapping[str, Any]:
        """The first choice of the answer; empty where there is none."""
        return choice_of(self.asked(question, adapter, **more))


def choice_of(reply: Reply) -> Mapping[str, Any]:
    """The first choice of an answer; empty where there is none."""
    choices = reply.json.get("choices") if isinstance(reply.json, dict) else None
    return choices[0] if isinstance(choices, list) and choices else {}


def text_of(choice: Mapping[str, Any]) -> str:
    """The text of a choice, of a chat or of a completion."""
    message = choice.get("message")
    return str((message.get("content") if isinstance(message, dict) else choice.get("text")) or "")

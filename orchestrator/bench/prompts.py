"""What is asked: texts of about so many tokens that no engine has seen, so that no prefix cache has them; or those of a
file. Pure."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from orchestrator.errors import UsageError

_SYLLABLES = tuple(a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u"))
# Words of a sample, to see how many tokens one is.
_SAMPLE = 200
_FORMS = (
    'Each line {"prompt": "..."} or {"messages": [...]}, with "output_tokens" if it is to be another number; or one '
    "JSON list as ShareGPT has it."
)
# Who says what in ShareGPT's conversations.
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


_Messages = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Prompt:
    """The messages that are asked, as (role, text); how many tokens are to come (None: as for all), or the `answer`
    that is as long as what is to come."""

    messages: _Messages
    output_tokens: int | None = None
    answer: str = ""

    @classmethod
    def of(cls, text: str) -> Prompt:
        """One question."""
        return cls((("user", text),))


def sample(seed: int) -> str:
    """A text by which to see how many tokens a word is."""
    return _text(random.Random(f"sample {seed}"), _SAMPLE)


def words_for(tokens: int, sample_tokens: int) -> int:
    """How many words are about so many tokens, where the sample is `sample_tokens`."""
    return max(1, round(tokens * _SAMPLE / max(1, sample_tokens)))


def prompts(words: int, seed: int, salt: str = "", shared: int = 0) -> Iterator[Prompt]:
    """Texts of so many words without end, the same for the same seed and salt. No two begin alike, but for the first
    `shared` words, which all of a seed have."""
    begin = _text(random.Random(f"{seed} shared"), shared)
    for number in count():
        own = _text(random.Random(f"{seed} {salt} {number}"), max(1, words - shared))
        yield Prompt.of(f"{begin} {own}".strip())


def _text(dice: random.Random, words: int) -> str:
    return " ".join("".join(dice.choices(_SYLLABLES, k=dice.randint(1, 3))) for _ in range(words))


def prompts_in(text: str, name: str) -> tuple[Prompt, ...]:
    """The prompts of a file `name` with this text, in its order: JSON lines (of `vllm bench serve`'s custom form, or
    with OpenAI's messages, up to the last question), or a JSON list of ShareGPT's, of which the first question counts.
    UsageError where a line is none."""
    found = _listed(text, name)
    read = tuple(_prompt(entry, f"{name}, {place}") for place, entry in found)
    if not read:
        raise UsageError(f"{name} has no prompts.", hint=_FORMS)
    return read


def _listed(text: str, name: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{name} is not JSON: {error}.", hint=_FORMS) from None
        yield from ((f"entry {number}", entry) for number, entry in enumerate(entries, 1))
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as error:
            raise UsageError(f"{name}, line {number} is not JSON: {error}.", hint=_FORMS) from None


def _prompt(entry: Any, place: str) -> Prompt:
    fields: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    # A line of OpenAI's batch files has the request within.
    fields = fields["body"] if isinstance(fields.get("body"), dict) else fields
    tokens = fields.get("output_tokens", fields.get("max_tokens"))
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
        raise UsageError(f"{place}: output_tokens is {tokens!r}, not a number from 1.", hint=_FORMS)
    if isinstance(prompt := fields.get("prompt", fields.get("text")), str) and prompt:
        return Prompt((("user", prompt),), tokens)
    if (said := _said(fields.get("messages"), "role", "content")) and (found := _asked(said, last=True)):
        return Prompt(found[0], tokens, found[1])
    if (said := _said(fields.get("conversations"), "from", "value")) and (found := _asked(said, last=False)):
        return Prompt(found[0], tokens, found[1])
    raise UsageError(f"{place} is not a prompt.", hint=_FORMS)


def _asked(said: _Messages, last: bool) -> tuple[_Messages, str] | None:
    """A conversation up to its first question, or its last, and the answer to that; None where nobody asks."""
    places = [place for place, (role, _) in enumerate(said) if role == "user"]
    if not places:
        return None
    until = places[-1 if last else 0] + 1
    answer = said[until][1] if until < len(said) and said[until][0] == "assistant" else ""
    return said[:until], answer


def _said(value: Any, who: str, what: str) -> _Messages:
    """Messages as (role, text); none where one of them is not of text."""
    listed = value if isinstance(value, list) else []
    pairs = [(_ROLES.get(str(one.get(who))), one.get(what)) for one in listed if isinstance(one, dict)]
    if len(pairs) != len(listed):
        return ()
    said = tuple((role, text) for role, text in pairs if role is not None and isinstance(text, str))
    return said if len(said) == len(pairs) else ()

"""What `orch check` asks of every engine, and what came of it: values, and what is compared with what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.artifact import Recipe

# What tokenizers part over: spaces, digits, case, scripts, combining marks, code, and tokens in the middle of a text.
TEXTS = (
    "Hello, world!",
    " leading and trailing ",
    "two  spaces,   three, \ttabs\n\nand lines\r\n",
    "def f(x):\n\treturn  x+1\n\n    # done",
    "1234567890 3.14 x2y3 1,000,000",
    "it's we'll THEY'RE don't I'D",
    "Grüße, Ελλάδα, Привет, العربية, हिन्दी",
    "日本語のテキスト 한국어 中文",
    "e\u0301 versus \u00e9, \u200b zero width, \u00a0 no break",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪",
    '{"name": "get_weather", "arguments": {"city": "Paris"}}',
    "<b>not a token</b> </s> <|im_end|> [INST] x [/INST]",
    "\u2581 the letter that stands for a space",
    "ALLCAPS camelCase snake_case kebab-case",
    "https://example.com/a?b=c&d=%20#e",
    "\n\n\n",
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTIONS = (
    "Hello!",
    "Who are you?",
    "What colour is the sky?",
    "Count from one to five.",
    "Write a haiku about rain.",
)
ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Chat:
    """A chat whose prompt is compared, token by token; `options` are for the template."""

    name: str
    messages: tuple[Mapping[str, str], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def _turns(*texts: str) -> tuple[Mapping[str, str], ...]:
    """user, assistant, user, ..."""
    return tuple({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts))


CHATS = (
    Chat("a question", _turns("Who are you?")),
    Chat("with a system message", ({"role": "system", "content": "Be brief."}, *_turns("Who are you?"))),
    Chat("a conversation", _turns("Hello!", "Hello! How can I help you today?", "What is 2+2?")),
    Chat("with a tool", _turns("What is the weather in Paris?"), tools=(TOOL,)),
    Chat("thinking", _turns("Who are you?"), options={"enable_thinking": True}),
    Chat("not thinking", _turns("Who are you?"), options={"enable_thinking": False}),
)


@dataclass(frozen=True)
class Tokens:
    """The ids of a text as an engine sees it, or only how many there are; neither where it refused."""

    ids: tuple[int, ...] | None = None
    count: int | None = None

    def agrees_with(self, expected: Tokens) -> bool:
        """Whether they are the same, as far as both tell."""
        if self.ids is not None and expected.ids is not None:
            return self.ids == expected.ids
        return self.number == expected.number

    @property
    def number(self) -> int | None:
        """How many there are; None where it refused."""
        return len(self.ids) if self.ids is not None else self.count


@dataclass(frozen=True)
class Answers:
    """What one engine said to everything. `texts` and `chats` go with TEXTS and CHATS (None: it cannot be asked),
    `ends` are the ids at which it ends answers, of those that it was asked about; `greedy` are its answers by name."""

    engine: str
    recipe: Recipe
    texts: tuple[Tokens, ...]
    chats: tuple[Tokens | None, ...] | None
    ends: tuple[int, ...] | None
    greedy: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Result:
    """One engine's part of a check: how much of it is as expected (None: it cannot be asked), how much has to be, and
    the first that is not, in words."""

    engine: str
    same: int | None
    of: int
    least: int
    first_difference: str = ""

    @property
    def holds(self) -> bool:
        """Whether as much is as expected as has to be, as far as it can be asked."""
        return self.same is None or self.same >= self.least


@dataclass(frozen=True)
class Check:
    """One thing that was compared with what is `expected`. What tokens, prompts and ends are, the model says; of greedy
    answers most have to agree where the weights are the same, and else they are a figure."""

    name: str
    expected: str
    results: tuple[Result, ...]

    @property
    def is_a_share(self) -> bool:
        """Whether less than all is enough."""
        return any(one.least < one.of for one in self.results)

    @property
    def holds(self) -> bool:
        """Whether all engines do as they must."""
        return all(one.holds for one in self.results)


@dataclass(frozen=True)
class Reference:
    """What the model's own files say: tokens of TEXTS and prompts of CHATS (None: they are not here, and the first
    engine is compared with), and the texts of its ends by id."""

    texts: tuple[Tokens, ...] | None
    chats: tuple[Tokens, ...] | None
    ends: Mapping[int, str]


def compared(reference: Reference, answers: Sequence[Answers]) -> tuple[Check, ...]:
    """All checks, in the order in which they are shown."""
    first = answers[0]
    texts: Sequence[Tokens] = reference.texts or first.texts
    chats: Sequence[Tokens | None] | None = reference.chats or first.chats
    source = "the model's files" if reference.texts is not None else first.engine
    names = [repr(text) for text in TEXTS]
    results = tuple(_tokens(one.engine, one.texts, texts, names) for one in answers)
    found = [Check(f"tokens of {len(TEXTS)} texts", source, results)]
    for n, chat in enumerate(CHATS if chats else ()):
        wanted = (chats or ())[n : n + 1]
        results = tuple(_tokens(one.engine, (one.chats or ())[n : n + 1], wanted, [""]) for one in answers)
        found.append(Check(f"prompt: {chat.name}", source, results))
    if reference.ends:
        results = tuple(_ends(one, reference) for one in answers)
        found.append(Check("ends of answers", "the model's files", results))
    for name, expected in first.greedy.items():
        results = tuple(_greedy(one, first, name, expected) for one in answers)
        found.append(Check(f"greedy answers of {name}", first.engine, results))
    return tuple(found)


def _tokens(
    engine: str, found: Sequence[Tokens | None], expected: Sequence[Tokens | None], names: Sequence[str]
) -> Result:
    pairs = [
        (name, one, other)
        for name, one, other in zip(names, found, expected, strict=False)
        if one is not None and other is not None
    ]
    if not pairs:
        return Result(engine, None, len(names), len(names))
    wrong = [(name, one, other) for name, one, other in pairs if not one.agrees_with(other)]
    first = "".join(f"{name} {_told(one)} instead of {_told(other)}".strip() for name, one, other in wrong[:1])
    return Result(engine, len(pairs) - len(wrong), len(pairs), len(pairs), first)


# Of the same weights other engines give the same answers, but where two tokens are nearly as likely.
_LEAST_SHARE = 0.6


def _told(tokens: Tokens) -> str:
    if tokens.ids is not None:
        return str(list(tokens.ids))
    return f"{tokens.count} tokens" if tokens.count is not None else "a refusal"


def _ends(answers: Answers, reference: Reference) -> Result:
    if answers.ends is None:
        return Result(answers.engine, None, len(reference.ends), len(reference.ends))
    missing = [text or str(number) for number, text in reference.ends.items() if number not in answers.ends]
    first = f"goes on after {', '.join(missing)}" if missing else ""
    count = len(reference.ends)
    return Result(answers.engine, count - len(missing), count, count, first)


def _greedy(answers: Answers, first: Answers, name: str, expected: tuple[str, ...]) -> Result:
    given = answers.greedy.get(name, ())
    pairs = list(zip(QUESTIONS, given, expected, strict=False))
    wrong = [(question, one, other) for question, one, other in pairs if one != other]
    told = "".join(f"{question} {one[:60]!r} instead of {other[:60]!r}" for question, one, other in wrong[:1])
    least = math.ceil(_LEAST_SHARE * len(expected)) if answers.recipe.same_weights(first.recipe) else 0
    return Result(answers.engine, len(pairs) - len(wrong), len(expected), least, told)

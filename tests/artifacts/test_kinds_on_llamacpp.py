"""What llama.cpp makes of every kind of directory is what transformers makes of it, or it is refused in words.

One server per kind. CI asks a sample of them, `--long` all.
"""

from __future__ import annotations

import random
import unicodedata
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from artifact_files import quantizer
from deviations import ANSWERS_OF, NO_GGUF, REFUSED, REMARKS, RENDERED, SPACES
from llamacpp_serving import post, serving
from meanings import ASKED, KINDS, Answer, Right, lay, right

from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.artifacts.meaning import read_meaning
from orchestrator.core.meaning import Meaning
from orchestrator.core.progress import silent
from orchestrator.errors import SourceError

pytestmark = pytest.mark.llamacpp

SERVED = sorted({*KINDS} - {*REFUSED} - {*NO_GGUF})
SAMPLE = 8
# llama.cpp ends answers at these by their text.
BY_TEXT = ("<|im_end|>", "<|endoftext|>", "</s>")


@pytest.mark.parametrize("kind", [*REFUSED, *NO_GGUF])
def test_what_a_gguf_cannot_be_of_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    refusal = {**REFUSED, **NO_GGUF}[kind]
    with pytest.raises(SourceError) as caught:
        build_gguf(lay(kind, tmp_path / "model"), tmp_path / "model.gguf", "bf16", quantizer(), silent)
    assert refusal.words in caught.value.message
    assert caught.value.hint
    assert refusal.reason
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.sampled
def test_llama_cpp_does_as_transformers(thorough: bool, chance: random.Random, tmp_path: Path) -> None:
    found = {}
    for kind in SERVED if thorough else chance.sample(SERVED, SAMPLE):
        try:
            with Served(kind, tmp_path / kind).running() as served:
                problems = [*served.texts(), *served.chats(), *served.ends(), *served.answers()]
        except SourceError as error:
            problems = [error.message]
        if problems:
            found[kind] = problems[:3]
    assert found == {}


class Served:
    """A kind that a llama.cpp server has loaded, and what it does otherwise than transformers."""

    def __init__(self, kind: str, work: Path) -> None:
        self.kind, self.work = kind, work
        self.told: Right = right(kind)
        self.meaning: Meaning = read_meaning(lay(kind, work / "model"))
        self.address = ""

    @contextmanager
    def running(self) -> Iterator[Served]:
        file = self.work / "model.gguf"
        build_gguf(self.work / "model", file, "bf16", quantizer(), silent)
        with serving(file) as self.address:
            yield self
        file.unlink()

    def tokens(self, text: str, special: bool) -> tuple[int, ...]:
        body = {"content": text, "add_special": special, "parse_special": True}
        return tuple(post(f"{self.address}/tokenize", body)["tokens"])

    def texts(self) -> Iterator[str]:
        """Of texts to complete."""
        for text, told in self.told.texts.items():
            if unicodedata.normalize("NFC", text) == text and not self._is_told_of(text):
                expected = told.bare if self._loses_bos() else told.ids
                if (found := self.tokens(text, True)) != expected:
                    yield f"{text!r}: {found}, not {expected}"

    def _loses_bos(self) -> bool:
        return any(remark.startswith("texts to be completed do not begin with") for remark in self.meaning.remarks)

    def _is_told_of(self, text: str) -> bool:
        """Whether a remark says that this text has a space more or less."""
        told = REMARKS.get(self.kind, "")
        return any(words in told and concerns(text) for words, concerns in SPACES.items())

    def chats(self) -> Iterator[str]:
        if not self.meaning.chats:
            return
        for name, told in self.told.chats.items():
            asked = dict(ASKED["chats"][name])
            if asked.pop("continue_final_message", False) or name in RENDERED.get(self.kind, ()):
                continue
            try:
                prompt = self._prompt(asked)
            except urllib.error.HTTPError as error:
                if told.refusal is None:
                    yield f"chat {name}: {error.read().decode()}"
                continue
            if told.refusal is not None:
                yield f"chat {name}: {prompt!r}, and transformers refuses it: {told.refusal}"
            # The server takes BOS off a prompt where it puts it before all texts.
            elif (found := self.tokens(prompt, True)) != told.ids and not self._is_told_of(prompt):
                yield f"chat {name}: {prompt!r} {found}, not {told.text!r} {told.ids}"

    def _prompt(self, asked: dict[str, Any]) -> str:
        options = {"enable_thinking": asked["enable_thinking"]} if "enable_thinking" in asked else {}
        if not options and self.meaning.thinks is not None:
            # Where nobody says it, engines are told what the template itself takes.
            options = {"enable_thinking": self.meaning.thinks}
        body = {"messages": asked["conversation"], "chat_template_kwargs": options}
        if "tools" in asked:
            body["tools"] = asked["tools"]
        return str(post(f"{self.address}/apply-template", body)["prompt"])

    def ends(self) -> Iterator[str]:
        """An answer ends at each of them, and at no other token that is added."""
        ends = self._stops()
        for number in {*ends, *(token.id for token in self.meaning.added)}:
            if number >= self.told.rows:
                continue
            body = {"prompt": [3], "n_predict": 3, "logit_bias": [[number, 100.0]], "temperature": 0}
            stopped = post(f"{self.address}/completion", body)["stop_type"]
            if stopped != ("eos" if number in ends else "limit"):
                yield f"token {number}: {stopped}"

    def _stops(self) -> set[int]:
        own = {int(number) for number, token in self.told.added.items() if token["content"] == self.told.eos}
        by_text = {int(number) for number, token in self.told.added.items() if token["content"] in BY_TEXT}
        return {*self.told.listed, *self.told.ends, *own, *by_text}

    def answers(self) -> Iterator[str]:
        """Greedily, as far as other arithmetic decides alike; and what clients read of them."""
        told = right(ANSWERS_OF[self.kind]) if self.kind in ANSWERS_OF else self.told
        for name, answer in told.answers.items():
            if answer.refusal is None:
                yield from (f"answer {name}: {problem}" for problem in self._answer(answer))

    def _answer(self, answer: Answer) -> Iterator[str]:
        stops = self._stops()
        firm = answer.firm()
        end = next((place for place, number in enumerate(firm) if number in stops), None)
        expected = firm if end is None else firm[:end]
        body = {"prompt": list(answer.prompt), "n_predict": len(answer.ids), "temperature": 0, "return_tokens": True}
        found = post(f"{self.address}/completion", body | {"cache_prompt": False})
        said = tuple(number for number in found["tokens"] if number not in stops)
        if said[: len(expected)] != expected or (end is not None and said != expected):
            yield f"{found['tokens']}, not {expected}"
        elif end is not None and found["stop_type"] != "eos":
            yield f"ends by {found['stop_type']}"
        elif end == len(answer.ids) - 1 and found["content"].strip() != answer.text.strip():
            yield f"{found['content']!r}, not {answer.text!r}"

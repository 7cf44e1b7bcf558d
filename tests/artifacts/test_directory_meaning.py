"""What orch reads of a directory is what transformers makes of it, for every kind that tools leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deviations import ALSO_ADDED, NO_TOKENIZER, REFUSED, REMARKS
from meanings import KINDS, Right, lay, right

from orchestrator.artifacts.view import checked_meaning
from orchestrator.core.meaning import NO_TEMPLATE, Meaning
from orchestrator.errors import SourceError

pytestmark = pytest.mark.slow

# A profile's names of what transformers samples by.
OURS = {"repetition_penalty": "repeat_penalty", "max_new_tokens": "max_tokens"}
BY_TEXT = {"<|im_end|>", "<|endoftext|>", "</s>"}
HEEDED = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens")


def meaning_of(kind: str, place: Path) -> Meaning:
    return checked_meaning(lay(kind, place), None)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {*REFUSED}))
def test_it_means_what_it_means_to_transformers(kind: str, tmp_path: Path) -> None:
    found, told = meaning_of(kind, tmp_path / "model"), right(kind)
    assert told.refusal is None
    assert {name for name in found.files if name.endswith(".safetensors")} == read_as_weights(told)
    assert found.tied is told.tied
    assert {token.id: (token.text, token.special) for token in found.added} == added(kind, told)
    templates = {template.name: template.text for template in found.templates}
    assert templates == {name: text for name, text in told.templates.items() if can_be_used(name, told)}
    assert {end.id for end in found.ends} == ends(told)
    assert found.sampling == sampling(told.sampling)
    expected = {REMARKS[kind]} if kind in REMARKS else set()
    expected |= {NO_TEMPLATE} if "default" not in templates else set()
    expected |= {"answers end at their limit"} if not ends(told) else set()
    expected |= {f"also end an answer at {', '.join(by_text)}," for by_text in [ends_by_text(told)] if by_text}
    expected |= {f"{name} = {value!r}" for name, value in unheeded(told.sampling).items()}
    untold = {words for words in expected if not any(words in remark for remark in found.remarks)}
    unasked = {remark for remark in found.remarks if not any(words in remark for words in expected)}
    assert (untold, unasked) == (set(), set())


def read_as_weights(told: Right) -> set[str]:
    """Without an adapter beside them, which transformers adds by itself where PEFT is there: orch tells of it."""
    return {*told.weights} - {"adapter_model.safetensors"}


def added(kind: str, told: Right) -> dict[int, tuple[str, bool]]:
    if kind in NO_TOKENIZER:
        return {}
    listed = {int(number): (token["content"], bool(token["special"])) for number, token in told.added.items()}
    return listed | ALSO_ADDED.get(kind, {})


def can_be_used(name: str, told: Right) -> bool:
    """Whether a template makes any chat: transformers keeps those that make none."""
    return name != "default" or any(chat.refusal is None and chat.text for chat in told.chats.values())


def ends(told: Right) -> set[int]:
    """All that its files list, and the tokenizer's own, at which every engine stops whatever is listed."""
    own = {int(number) for number, token in told.added.items() if token["content"] == told.eos}
    return {*told.listed, *told.ends, *own}


def ends_by_text(told: Right) -> list[str]:
    """At these llama.cpp ends an answer, whoever lists them."""
    texts = {token["content"]: int(number) for number, token in told.added.items()}
    return sorted(text for text in texts.keys() & BY_TEXT if texts[text] not in ends(told))


def sampling(said: dict[str, Any]) -> dict[str, Any]:
    """By a profile's names; not to sample is to take the likeliest."""
    heeded = {OURS.get(name, name): value for name, value in said.items() if OURS.get(name, name) in HEEDED}
    if said.get("do_sample") is not False:
        return heeded
    return {name: value for name, value in heeded.items() if name in ("repeat_penalty", "max_tokens")} | {
        "temperature": 0.0
    }


def unheeded(said: dict[str, Any]) -> dict[str, Any]:
    """What no engine does as transformers does it."""
    return {name: value for name, value in said.items() if OURS.get(name, name) not in (*HEEDED, "do_sample")}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_sound_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        meaning_of(kind, tmp_path / "model")
    assert REFUSED[kind].words in caught.value.message
    assert caught.value.hint

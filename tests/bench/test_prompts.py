"""Prompts at random, and those of files in the forms of the field."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import pytest

from orchestrator.bench.prompts import Prompt, prompts, prompts_in
from orchestrator.errors import UsageError


def texts(**asked: Any) -> list[str]:
    return [one.messages[0][1] for one in islice(prompts(**asked), 50)]


def test_no_two_begin_alike_and_all_are_the_same_again() -> None:
    first = texts(words=40, seed=1)
    assert len({" ".join(text.split()[:3]) for text in first}) == 50
    assert {len(text.split()) for text in first} == {40}
    assert texts(words=40, seed=1) == first
    assert set(texts(words=40, seed=2)).isdisjoint(first)
    assert set(texts(words=40, seed=1, salt="warm")).isdisjoint(first)


def test_they_share_what_they_are_to_share() -> None:
    first = texts(words=40, seed=1, shared=30)
    assert len({" ".join(text.split()[:30]) for text in first}) == 1
    assert len({" ".join(text.split()[30:]) for text in first}) == 50
    assert {len(text.split()) for text in first} == {40}


SHAREGPT = [
    {"id": "a", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
    {"conversations": [{"from": "system", "value": "Be short."}, {"from": "human", "value": "Who?"}]},
]
REPLY = {"role": "assistant", "content": "Now."}
CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "When?"}]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"prompt": "a"}\n\n{"prompt": "b", "output_tokens": 7}\n', [(("user", "a"),), (("user", "b"),)]),
        (json.dumps({"messages": CHAT}), [(("system", "Be short."), ("user", "When?"))]),
        (json.dumps({"custom_id": "1", "body": {"messages": CHAT}}), [(("system", "Be short."), ("user", "When?"))]),
        (
            json.dumps({"messages": [*CHAT, {"role": "assistant", "content": "Now."}]}),
            [tuple(map(tuple, map(dict.values, CHAT)))],
        ),
        (json.dumps(SHAREGPT), [(("user", "Why?"),), (("system", "Be short."), ("user", "Who?"))]),
    ],
)
def test_forms(text: str, found: list[Any]) -> None:
    assert [one.messages for one in prompts_in(text, "file")] == found


def test_lengths_are_those_of_the_file() -> None:
    told = prompts_in('{"prompt": "a", "output_tokens": 7}\n{"prompt": "b", "max_tokens": 9}\n', "file")
    assert [one.output_tokens for one in told] == [7, 9]
    assert [one.answer for one in prompts_in(json.dumps(SHAREGPT), "file")] == ["Because.", ""]
    assert Prompt.of("a").output_tokens is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "file has no prompts."),
        ("[]", "file has no prompts."),
        ("[{]", "file is not JSON"),
        ('{"prompt": "a"}\n{"prompt"', "file, line 2 is not JSON"),
        ('{"prompt": ""}', "file, line 1 is not a prompt."),
        ('"text"', "file, line 1 is not a prompt."),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "file, line 1 is not a prompt."),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "file, line 1 is not a prompt."),
        ('[{"conversations": [{"from": "gpt", "value": "a"}]}]', "file, entry 1 is not a prompt."),
        ('{"prompt": "a", "output_tokens": 0}', "output_tokens is 0, not a number from 1"),
        ('{"prompt": "a", "output_tokens": true}', "output_tokens is True"),
    ],
)
def test_what_is_none(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("[", r"\[")):
        prompts_in(text, "file")

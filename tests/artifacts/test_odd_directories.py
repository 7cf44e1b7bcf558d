"""Directories that no tool writes quite so, and that somebody has all the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from artifact_files import TINY, copy_tiny, edit_json

from orchestrator.artifacts.meaning import read_meaning
from orchestrator.artifacts.view import build_view
from orchestrator.core.meaning import DEFAULT
from orchestrator.errors import SourceError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return copy_tiny(tmp_path / "model")


def ends(directory: Path) -> list[int]:
    return [end.id for end in read_meaning(directory).ends]


def test_a_directory_of_links_means_what_they_lead_to(tmp_path: Path) -> None:
    """As hub clients keep it."""
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for file in TINY.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert read_meaning(snapshot) == read_meaning(TINY)
    (tmp_path / "view").mkdir()
    build_view(snapshot, tmp_path / "view", None)
    assert (tmp_path / "view/model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (2, {}, [2]),
        (None, {"eos_token_id": [2, 0]}, [2, 0]),
        ([0, 0, 2], {"eos_token_id": [2, 2, 0]}, [2, 0]),
        (-1, {"eos_token_id": None}, [2]),
        (..., {}, [2]),
    ],
)
def test_ends_are_those_of_all_files_once(config: Any, generation: Any, expected: list[int], source: Path) -> None:
    """The tokenizer's own eos (2) comes first."""
    edit_json(source / "config.json", eos_token_id=config)
    (source / "generation_config.json").write_text(json.dumps(generation))
    assert ends(source) == expected
    (source.parent / "view").mkdir()
    build_view(source, source.parent / "view", None)
    found = json.loads((source.parent / "view/generation_config.json").read_bytes())["eos_token_id"]
    assert {*(found if isinstance(found, list) else [found])} == {*expected}


@pytest.mark.parametrize("said", [-2, "2", [2, None], True, 2.0, {"a": 2}])
def test_what_is_no_end_is_refused_with_the_way_out(said: object, source: Path) -> None:
    edit_json(source / "generation_config.json", eos_token_id=said)
    with pytest.raises(SourceError, match="neither an id nor a list of ids") as caught:
        read_meaning(source)
    assert caught.value.hint


def test_without_a_tokenizer_config_the_files_alone_say_it(source: Path) -> None:
    (source / "tokenizer_config.json").unlink()
    assert ends(source) == [2, 0]


def test_a_template_is_read_as_text(source: Path) -> None:
    template = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").write_bytes(template.replace("\n", "\r\n").encode())
    assert read_meaning(source).template(DEFAULT) == template
    large = template + "{# " + "x" * 5_000_000 + " #}"
    (source / "chat_template.jinja").write_text(large)
    assert read_meaning(source).template(DEFAULT) == large


@pytest.mark.parametrize("said", [3, ["a"], [{"name": "a"}], {"a": 1}, "\ud800"])
def test_what_is_no_template_is_refused_and_a_file_counts_before_it(said: object, source: Path) -> None:
    template = (source / "chat_template.jinja").read_text()
    edit_json(source / "tokenizer_config.json", chat_template=said)
    assert read_meaning(source).template(DEFAULT) == template
    (source / "chat_template.jinja").unlink()
    with pytest.raises(SourceError, match="chat_template is") as caught:
        read_meaning(source)
    assert "chat_template.jinja" in caught.value.hint


def test_a_plain_token_that_llama_cpp_takes_for_an_end_is_told(source: Path) -> None:
    tokens = json.loads((source / "tokenizer.json").read_bytes())["added_tokens"]
    tokens.append({"id": 4096, "content": "<|eot_id|>", "special": False})
    edit_json(source / "tokenizer.json", added_tokens=tokens)
    meaning = read_meaning(source)
    assert [end.text for end in meaning.ends] == ["<|im_end|>", "<|endoftext|>"]
    (remark,) = meaning.remarks
    assert "also end an answer at <|eot_id|>," in remark

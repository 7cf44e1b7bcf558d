"""The directories that others are tested with are what they are said to be."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from artifact_files import ASSETS
from json_edits import edited, edits
from meaning_draws import draw
from meaning_weights import as_dtype, as_float, read
from meanings import ASKED, KINDS, lay, right
from tokenizers import Tokenizer

# Where tokenizer.json alone decides: no other file adds to it, and no class in transformers overrules it.
BY_FILE = ("plain", "bos-processor", "files-nfc", "token-marker", "token-left", "token-word", "token-normalized")


@pytest.mark.parametrize("kind", BY_FILE)
def test_texts_are_those_of_the_tokenizer(kind: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(lay(kind, tmp_path / "model") / "tokenizer.json"))
    told = right(kind).texts
    assert list(told) == ASKED["texts"]
    assert [tuple(tokenizer.encode(text).ids) for text in told] == [tokens.ids for tokens in told.values()]
    assert [tokenizer.decode(tokens.ids) for tokens in told.values()] == [tokens.clean for tokens in told.values()]


@pytest.mark.slow
def test_what_is_said_to_be_read_is_there(tmp_path: Path) -> None:
    for kind in KINDS:
        place, told = lay(kind, tmp_path / kind), right(kind)
        assert told.refusal or told.weights
        assert [name for name in told.weights if not (place / name).is_file()] == []
        shutil.rmtree(place)


def test_known_answers() -> None:
    """The values that were measured by hand, of directories like these."""
    hello = {kind: right(kind).answers["Hello!"] for kind in ("template-two", "template-null", "end-turn-list")}
    assert {answer.text for answer in hello.values()} == {"Hello! How can I help you today?"}
    assert {answer.finish for answer in hello.values()} == {"stop"}
    assert right("head-tied-own").head == "own"
    assert right("token-marker").answers["Hello!"].text == "Hello! How<|help|> I help you today?"
    assert right("token-special").answers["Hello!"].text == "Hello! How I help you today?"


def test_a_seed_is_one_directory(tmp_path: Path) -> None:
    one, again, other = draw(7, tmp_path / "a"), draw(7, tmp_path / "b"), draw(8, tmp_path / "c")
    files = [
        {str(file.relative_to(drawn.place)): file.read_bytes() for file in drawn.place.rglob("*") if file.is_file()}
        for drawn in (one, again, other)
    ]
    assert files[0] == files[1] != files[2]
    assert (one.choices, one.ends, one.texts) == (again.choices, again.ends, again.texts)


def test_bfloat16_is_rounded_to_even() -> None:
    # 1 + 1/256 lies between two values: the even one is 1; 1 + 3/256 goes up.
    values = np.array([1 + 1 / 256, 1 + 3 / 256, -1 - 1 / 256], np.float32)
    assert as_float(as_dtype(values, "BF16")).tolist() == [1.0, 1 + 4 / 256, -1.0]


def test_weights_are_read_in_their_shape() -> None:
    embeddings = read(ASSETS / "tiny-qwen3/model.safetensors")["model.embed_tokens.weight"]
    assert (embeddings.shape, embeddings.dtype) == ((4096, 256), np.uint16)


@pytest.mark.parametrize(
    "new", [{}, {"a": 1}, {"a": True}, {"a": {"b": [1, 2], "c/d~e": None}}, {"a": {"b": {}}, "f": "g"}]
)
def test_edits_make_the_new_value(new: dict[str, object]) -> None:
    old = {"a": {"b": [1], "c/d~e": 2, "x": 3}, "y": 4}
    assert repr(edited(old, edits(old, new))) == repr(new)

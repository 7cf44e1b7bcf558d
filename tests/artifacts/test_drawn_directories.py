"""Directories drawn at random mean on engines what their files say: tokens by the library of tokenizers, which wrote
tokenizer.json, ends and templates by the draw."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from artifact_files import quantizer
from llamacpp_serving import post, serving
from meaning_draws import FLAGS, Drawn, draw
from tokenizers import Tokenizer

from orchestrator.artifacts import one_pass
from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.core.meaning import Meaning
from orchestrator.core.progress import silent
from orchestrator.errors import SourceError

DRAWS, SAMPLE = 200, 8
BY_TEXT = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>")


@pytest.mark.slow
@pytest.mark.sampled
def test_what_is_drawn_is_what_is_read(thorough: bool, chance: random.Random, tmp_path: Path) -> None:
    for seed in seeds(thorough, chance):
        drawn = draw(seed, tmp_path / str(seed))
        meaning = meaning_of(drawn.place)
        own = Tokenizer.from_file(str(drawn.place / "tokenizer.json")).token_to_id("<|im_end|>")
        assert {end.id for end in meaning.ends} == {*drawn.ends, own}, drawn.choices
        assert {one.name: one.text for one in meaning.templates} == drawn.templates, drawn.choices


@pytest.mark.llamacpp
@pytest.mark.sampled
def test_llama_cpp_does_as_drawn(thorough: bool, chance: random.Random, tmp_path: Path) -> None:
    served = 0
    for seed in seeds(thorough, chance):
        drawn = draw(seed, tmp_path / str(seed))
        if any(token[flag] for token in drawn.choices["tokens"] for flag in FLAGS):
            with pytest.raises(SourceError, match="which GGUF cannot express") as caught:
                build_gguf(drawn.place, tmp_path / "model.gguf", "bf16", quantizer(), silent)
            assert caught.value.hint
            continue
        with on_llama_cpp(drawn, tmp_path / f"{seed}.gguf") as address:
            assert list(wrong_tokens(drawn, meaning_of(drawn.place), address)) == [], drawn.choices
            assert ends_found(drawn, address) == ends_expected(drawn), drawn.choices
        served += 1
    assert served


def seeds(thorough: bool, chance: random.Random) -> list[int]:
    return list(range(DRAWS)) if thorough else chance.sample(range(10 * DRAWS), SAMPLE)


def meaning_of(place: Path) -> Meaning:
    with one_pass.opened(place) as weights:
        return weights.meaning


@contextmanager
def on_llama_cpp(drawn: Drawn, file: Path) -> Iterator[str]:
    build_gguf(drawn.place, file, "bf16", quantizer(), silent)
    with serving(file) as address:
        yield address
    file.unlink()


def wrong_tokens(drawn: Drawn, meaning: Meaning, address: str) -> Iterator[str]:
    """Texts without bos in both, which a chat's template may leave out of a GGUF; llama.cpp does not normalize."""
    own = Tokenizer.from_file(str(drawn.place / "tokenizer.json"))
    begins = own.encode("").ids
    told = any(remark.startswith("texts to be completed do not begin with") for remark in meaning.remarks)
    for text in drawn.texts:
        if unicodedata.normalize("NFC", text) != text:
            continue
        body = {"content": text, "add_special": True, "parse_special": True}
        found = post(f"{address}/tokenize", body)["tokens"]
        expected = own.encode(text, add_special_tokens=not told).ids
        if found != expected:
            yield f"{text!r}: {found}, not {expected} ({begins})"


def ends_expected(drawn: Drawn) -> set[int]:
    own = Tokenizer.from_file(str(drawn.place / "tokenizer.json"))
    return {*drawn.ends, *(number for text in BY_TEXT if (number := own.token_to_id(text)) is not None)}


def ends_found(drawn: Drawn, address: str) -> set[int]:
    """Those of all added tokens at which an answer ends."""
    found = set()
    for number in (0, 1, 2, *(token["id"] for token in drawn.choices["tokens"])):
        body = {"prompt": [3], "n_predict": 3, "logit_bias": [[number, 1000.0]], "temperature": 0}
        if post(f"{address}/completion", body)["stop_type"] == "eos":
            found.add(number)
    return found

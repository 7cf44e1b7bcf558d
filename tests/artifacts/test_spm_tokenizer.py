"""SentencePiece tokenizers: tokenizer.model read without sentencepiece, and tokenizer.json with scores made anew."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_files import edit_json
from gguf import TokenType
from tiny_models import MODELS, SPM

from orchestrator.artifacts.meaning import read_meaning
from orchestrator.artifacts.tokenizer import read_tokenizer
from orchestrator.artifacts.vocabulary import Tokenizer
from orchestrator.errors import SourceError

pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The tokenizer's files beside a config.json that fits them; no weights."""
    directory = Path(shutil.copytree(SPM, tmp_path / "source"))
    (directory / "config.json").write_text(json.dumps(MODELS["llama-spm"].config))
    return directory


@pytest.fixture
def older(source: Path) -> Path:
    """The same without tokenizer.json: only then tokenizer.model counts by itself."""
    (source / "tokenizer.json").unlink()
    return source


def tokenizer_of(source: Path, vocab_size: int = 512) -> Tokenizer:
    return read_tokenizer(source, vocab_size, read_meaning(source))


def edit_model(source: Path, **changes: object) -> None:
    file = source / "tokenizer.json"
    edit_json(file, model=json.loads(file.read_bytes())["model"] | changes)


def test_scores_are_made_anew_from_merges(source: Path) -> None:
    trained = tokenizer_of(source, 520)
    (source / "tokenizer.model").unlink()
    translated = tokenizer_of(source, 520)
    assert translated.tokens == trained.tokens
    assert translated.types == trained.types
    assert translated.scores == trained.scores
    assert trained.scores is not None
    assert trained.scores[258:262] == (0.0, 0.0, -1.0, -2.0)
    assert trained.scores[:4] == (-1000.0, -1000.0, -1000.0, 0.0)
    assert trained.scores[512:] == (-10000.0,) * 8
    assert trained.types[:4] == (TokenType.CONTROL, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE)


def test_added_tokens_of_an_older_tokenizer_are_those_of_one_list(older: Path) -> None:
    """As transformers 5 has it: added_tokens.json is read where added_tokens_decoder is missing."""
    (older / "added_tokens.json").write_text(json.dumps({"<pad>": 512, "<tool>": 513}))
    edit_json(older / "tokenizer_config.json", added_tokens_decoder=...)
    assert tokenizer_of(older, 514).tokens[512:] == ("<pad>", "<tool>")
    decoder = {
        "512": {"content": "<|tool|>", "special": False},
        "513": {"content": "\u2581two words", "special": False},
    }
    edit_json(older / "tokenizer_config.json", added_tokens_decoder=decoder)
    found = tokenizer_of(older, 515)
    assert found.tokens[512:] == ("<|tool|>", " two words", "[PAD514]")
    assert list(found.types[512:]) == [TokenType.USER_DEFINED, TokenType.USER_DEFINED, TokenType.UNUSED]
    assert found.scores is not None
    assert found.scores[512:] == (-1000.0, -1000.0, -10000.0)


def test_pieces_without_what_was_added_since_do_not_count(source: Path) -> None:
    tokens = json.loads((source / "tokenizer.json").read_bytes())["added_tokens"]
    tokens.append({"id": 512, "content": "<|tool|>", "special": False})
    edit_json(source / "tokenizer.json", added_tokens=tokens)
    found = tokenizer_of(source, 514)
    assert found.tokens[512] == "<|tool|>"
    assert found.types[512] == TokenType.USER_DEFINED
    assert found.scores is not None
    assert found.scores[258:262] == (0.0, 0.0, -1.0, -2.0)


@pytest.mark.parametrize("value", [True, False])
def test_whether_a_space_is_put_in_front_is_told_where_the_files_tell_it(value: bool, source: Path) -> None:
    assert tokenizer_of(source).adds_space is True
    edit_json(source / "tokenizer_config.json", add_prefix_space=value)
    assert tokenizer_of(source).adds_space is value
    edit_json(source / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert tokenizer_of(source).adds_space is True
    edit_json(source / "tokenizer_config.json", add_prefix_space="no")
    with pytest.raises(SourceError, match="add_prefix_space is 'no'"):
        tokenizer_of(source)


@pytest.mark.parametrize("said", [True, False, None])
def test_what_is_put_before_a_text_is_told_by_the_post_processor_alone(said: bool | None, source: Path) -> None:
    edit_json(source / "tokenizer_config.json", add_bos_token=... if said is None else said)
    assert tokenizer_of(source).special.adds == {"bos": True, "eos": False}
    edit_json(source / "tokenizer.json", post_processor=None)
    assert tokenizer_of(source).special.adds == {"bos": False, "eos": False}


@pytest.mark.parametrize(("said", "adds"), [(True, True), (False, False), (..., True)])
def test_an_older_tokenizer_says_itself_whether_a_text_begins_with_bos(said: object, adds: bool, older: Path) -> None:
    edit_json(older / "tokenizer_config.json", add_bos_token=said)
    assert tokenizer_of(older).special.adds == {"bos": adds, "eos": False}


METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}


def test_the_newer_way_to_write_spaces_is_taken_too(source: Path) -> None:
    expected = tokenizer_of(source)
    (source / "tokenizer.model").unlink()
    edit_json(source / "tokenizer.json", normalizer=None, pre_tokenizer=METASPACE)
    assert tokenizer_of(source).scores == expected.scores


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"normalizer": None}, "normalizer None"),
        ({"normalizer": {"type": "NFKC"}}, "NFKC"),
        ({"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": "last"}}, "last"),
        ({"normalizer": None, "pre_tokenizer": METASPACE | {"split": True}}, "'split': True"),
        ({"decoder": None}, "decoder None"),
        ({"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}]}}, "decoder"),
        ({"added_tokens": [{"id": 600, "content": "<new>"}]}, "transformers gives it 512"),
    ],
)
def test_a_translation_that_treats_text_otherwise_is_refused(
    changes: dict[str, object], reason: str, source: Path
) -> None:
    (source / "tokenizer.model").unlink()
    edit_json(source / "tokenizer.json", **changes)
    with pytest.raises(SourceError, match=reason) as caught:
        tokenizer_of(source)
    assert caught.value.hint


def test_merges_that_no_scores_can_tell_are_refused(source: Path) -> None:
    (source / "tokenizer.model").unlink()
    merges = json.loads((source / "tokenizer.json").read_bytes())["model"]["merges"]
    for changed, reason in (
        (merges[1:], "do not join"),
        ([merges[-1], *merges[:-1]], "not in the order"),
        ([*merges, ["a"]], r"hold \['a'\]"),
        ([*merges, "a"], r"hold \['a'\]"),
        ([], "do not join"),
        (None, "no merges"),
    ):
        edit_model(source, merges=changed)
        with pytest.raises(SourceError, match=reason):
            tokenizer_of(source)
    edit_model(source, vocab={})
    with pytest.raises(SourceError, match="no vocabulary"):
        tokenizer_of(source)


def field(number: int, value: int | float | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2]) + bytes([len(value) & 0x7F | 0x80, len(value) >> 7]) + value


def model(pieces: list[tuple[str, float, int]], kind: int = 2, **normalizer: Any) -> bytes:
    """A tokenizer.model; of the normalizer the fields by name."""
    numbers = {"charsmap": 2, "prefix": 3, "squeeze": 4, "escape": 5}
    told = {"squeeze": 0} | normalizer
    raw = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, type_)) for text, score, type_ in pieces
    )
    spaces = b"".join(field(numbers[name], value) for name, value in told.items())
    return raw + field(2, field(3, kind)) + field(3, spaces)


PIECES = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    ("<0x0A>", 0.0, 6),
    ("\u2581a", -1.0, 1),
    ("x", -2.0, 4),
]


def test_a_model_of_any_writer_is_read(older: Path) -> None:
    (older / "tokenizer.model").write_bytes(model(PIECES, prefix=1, escape=1) + field(9, b"of a later version"))
    edit_json(older / "tokenizer_config.json", added_tokens_decoder=...)
    found = tokenizer_of(older, 6)
    assert found.tokens == ("<unk>", "<s>", "</s>", "<0x0A>", "\u2581a", "x")
    assert found.types == (2, 3, 3, 6, 1, 1)
    assert found.scores == (0, 0, 0, 0, -1, -2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a sound SentencePiece model: it has no pieces"),
        (b"IQ== 0\nIg== 1\n", "not a sound SentencePiece model"),
        (b"\xff" * 40, "a number has no end"),
        (model(PIECES)[:-3], "cut short"),
        (field(1, field(1, b"\xff\xfe")) + model(PIECES), "not a sound SentencePiece model"),
        (field(1, field(2, 1.0)) + model(PIECES), "not a sound SentencePiece model"),
        (model([("a", 0.0, 77)]), "not a sound SentencePiece model"),
        (model(PIECES, kind=1), "is not BPE"),
        (model(PIECES, charsmap=b"some"), "rewrites characters"),
        (model(PIECES, prefix=0), "no space in front"),
        (model(PIECES, squeeze=1), "drops repeated ones"),
        (model(PIECES, escape=0), "does not write spaces as a letter"),
        (model([*PIECES, ("x", -3.0, 1)]), "one token has two ids"),
        (model([(f"p{number}", 0.0, 1) for number in range(513)]), "vocab_size 512"),
    ],
)
def test_a_model_that_is_not_sound_or_splits_otherwise_is_refused(content: bytes, reason: str, older: Path) -> None:
    edit_json(older / "tokenizer_config.json", added_tokens_decoder=...)
    (older / "tokenizer.model").write_bytes(content)
    with pytest.raises(SourceError, match=reason) as caught:
        tokenizer_of(older)
    assert caught.value.hint


def test_damaged_models_are_an_error_and_nothing_else(older: Path) -> None:
    sound = (SPM / "tokenizer.model").read_bytes()
    random = np.random.default_rng(5)
    refused = 0
    for _ in range(200):
        damaged = bytearray(sound)
        for place in random.integers(0, len(sound), 3):
            damaged[place] ^= 1 << int(random.integers(0, 8))
        (older / "tokenizer.model").write_bytes(damaged[: int(random.integers(1, len(sound) + 1))])
        try:
            tokenizer_of(older)
        except SourceError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "decoder", [[], {"x": {"content": "a"}}, {"7": {"content": 7}}, {"7": []}, {"\u0663": {"content": "a"}}]
)
def test_a_broken_list_of_added_tokens_is_refused(decoder: object, older: Path) -> None:
    edit_json(older / "tokenizer_config.json", added_tokens_decoder=decoder)
    with pytest.raises(SourceError, match="added_tokens_decoder"):
        tokenizer_of(older)

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from artifact_files import TINY, UNTIED, copy_tiny, edit_json, quantizer
from gguf import TokenType
from llamacpp_serving import post, serving

from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.artifacts.meaning import read_meaning
from orchestrator.artifacts.tokenizer import read_tokenizer
from orchestrator.artifacts.tokenizer_bpe import QWEN2_SPLIT
from orchestrator.artifacts.vocabulary import Tokenizer
from orchestrator.core.progress import silent
from orchestrator.errors import SourceError

SPLIT = {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def added(number: int, content: str, **changes: object) -> dict[str, object]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": content} | plain | changes


def tokenizer_of(directory: Path, vocab_size: int) -> Tokenizer:
    return read_tokenizer(directory, vocab_size, read_meaning(directory))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A writable copy of the tiny weights."""
    return copy_tiny(tmp_path / "source")


def edit_bpe(source: Path, **changes: object) -> None:
    file = source / "tokenizer.json"
    edit_json(file, model=json.loads(file.read_bytes())["model"] | changes)


def test_pre_tokenizers_are_told_by_their_split() -> None:
    assert tokenizer_of(TINY, 4096).pre == "gpt-2"
    assert tokenizer_of(UNTIED, 4128).pre == "qwen2"


def test_ids_beyond_the_tokenizer_are_padded_as_unused() -> None:
    known = tokenizers.Tokenizer.from_file(str(UNTIED / "tokenizer.json")).get_vocab_size()
    found = tokenizer_of(UNTIED, 4128)
    assert len(found.tokens) == len(found.types) == 4128
    assert found.tokens[known:] == tuple(f"[PAD{number}]" for number in range(known, 4128))
    assert set(found.types[known:]) == {TokenType.UNUSED}
    assert TokenType.UNUSED not in found.types[:known]


def test_added_tokens_are_what_the_tokenizer_says_whatever_they_look_like(source: Path) -> None:
    tokens = json.loads((source / "tokenizer.json").read_bytes())["added_tokens"]
    more = [added(4000, "<think>", special=False), added(4001, "<|fim_prefix|>", special=False)]
    bpe = json.loads((source / "tokenizer.json").read_bytes())["model"]
    bpe["vocab"] = {text: number for text, number in bpe["vocab"].items() if number < 4000}
    bpe["merges"] = bpe["merges"][:100]
    edit_json(source / "tokenizer.json", added_tokens=tokens + more, model=bpe)
    found = tokenizer_of(source, 4096)
    kinds = {text: TokenType(kind).name for text, kind in zip(found.tokens, found.types, strict=True)}
    assert kinds["<|im_start|>"] == "CONTROL"
    assert kinds["<think>"] == "USER_DEFINED"
    assert kinds["<|fim_prefix|>"] == "USER_DEFINED"
    assert kinds["!"] == "NORMAL"
    assert kinds["[PAD4095]"] == "UNUSED"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pre_tokenizer": None}, "pre-tokenizer is not known"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer is not known"),
        ({"pre_tokenizer": BYTES}, "pre-tokenizer is not known"),
        ({"pre_tokenizer": BYTES | {"use_regex": True, "add_prefix_space": True}}, "pre-tokenizer is not known"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT]}}, "pre-tokenizer is not known"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT | {"invert": True}, BYTES]}}, "not known"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [SPLIT | {"pattern": {"Regex": r"\p{N}{1,3}"}}, BYTES],
                }
            },
            "not known",
        ),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 5}}, "not known"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 3}}}, "not a BPE tokenizer"),
        ({"model": None}, "not a BPE tokenizer"),
        ({"decoder": {"type": "WordPiece"}}, "decoder"),
        ({"decoder": None}, "decoder"),
        ({"added_tokens": {"a": 1}}, "not a list of tokens"),
        ({"added_tokens": [{"id": 1}]}, "not a list of tokens"),
        ({"added_tokens": [{"content": "<new>"}]}, "not a list of tokens"),
        ({"added_tokens": [added(0, "<new>") | {"id": [0]}]}, "not a list of tokens"),
        ({"added_tokens": [added(0, "<|endoftext|>", lstrip=True)]}, "lstrip"),
        ({"added_tokens": [added(0, "<new>")]}, "share id 0"),
        ({"added_tokens": [added(4096, "<new>")]}, "vocab_size 4096"),
        ({"added_tokens": [added(-1, "<new>")]}, "vocab_size 4096"),
        ({"post_processor": {"type": "TemplateProcessing", "single": 5}}, "around each text, or does more"),
        ({"post_processor": {"type": "BertProcessing"}}, "around each text, or does more"),
    ],
)
def test_a_tokenizer_that_gguf_would_get_wrong_is_refused(
    changes: dict[str, object], reason: str, source: Path
) -> None:
    edit_json(source / "tokenizer.json", **changes)
    with pytest.raises(SourceError, match=reason) as caught:
        tokenizer_of(source, 4096)
    assert caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"byte_fallback": True}, "decoder"),
        ({"byte_fallback": 1}, "byte_fallback"),
        ({"ignore_merges": True}, "ignore_merges"),
        ({"dropout": 0.1}, "dropout"),
        ({"vocab": {}}, "no vocabulary"),
        ({"vocab": {"a": "b"}}, "has id 'b'"),
        ({"vocab": {"a": 1, "b": 1}}, "share id 1"),
        ({"vocab": {"\ud800": 3}}, "not Unicode"),
        ({"merges": []}, "no merges"),
        ({"merges": ["no-such no-other"]}, "not about tokens"),
        ({"merges": [["a"]]}, "merges hold"),
        ({"merges": [["a", 5]]}, "merges hold"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(changes: dict[str, object], reason: str, source: Path) -> None:
    edit_bpe(source, **changes)
    with pytest.raises(SourceError, match=reason):
        tokenizer_of(source, 4096)


def test_a_vocabulary_larger_than_the_weights_is_refused() -> None:
    with pytest.raises(SourceError, match="vocab_size 4095"):
        tokenizer_of(TINY, 4095)


def test_a_special_token_outside_of_the_vocabulary_is_refused(source: Path) -> None:
    edit_json(source / "config.json", bos_token_id=5000)
    with pytest.raises(SourceError, match="bos token 5000"):
        tokenizer_of(source, 4096)


@pytest.mark.parametrize("template", [[{"name": 1, "template": "x"}], [5], "\ud800"])
def test_a_chat_template_that_is_no_text_is_refused(template: object, source: Path) -> None:
    (source / "chat_template.jinja").unlink()
    edit_json(source / "tokenizer_config.json", chat_template=template)
    with pytest.raises(SourceError, match="chat_template"):
        tokenizer_of(source, 4096)


def test_a_missing_tokenizer_is_refused(source: Path) -> None:
    (source / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"tokenizer\.json cannot be read"):
        tokenizer_of(source, 4096)


TEXTS = (
    "Hello, world!",
    "def f(x):\n\treturn  x+1\r\n\r\n    # done   ",
    "1234567890 3.14 x2y3",
    "Grüße, Ελλάδα, 日本語のテキスト, العربية, हिन्दी",
    "e\u0301 versus \u00e9",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 \u200b zero width",
    "it's we'll THEY'RE don't",
    "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    "almost <|im_start| > special <|im_end|><|endoftext|>",
    "\x00\x01\x7f control",
    " leading and trailing ",
    "\n\n\n",
)


@pytest.fixture(scope="module", params=["tiny-qwen3", "untied-qwen3"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A llama.cpp server with the GGUF of an asset: (the asset, address)."""
    source = TINY.parent / request.param
    out = tmp_path_factory.mktemp("served") / "model.gguf"
    build_gguf(source, out, "q6_k", quantizer(), silent)
    with serving(out) as address:
        yield source, address


@pytest.mark.llamacpp
@pytest.mark.parametrize("text", TEXTS)
def test_llama_cpp_tokenizes_as_the_original(text: str, served: tuple[Path, str]) -> None:
    source, address = served
    expected = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json")).encode(text, add_special_tokens=False)
    found = post(f"{address}/tokenize", {"content": text, "add_special": False, "parse_special": True})
    assert found["tokens"] == expected.ids


@pytest.mark.llamacpp
@pytest.mark.parametrize("served", ["tiny-qwen3"], indirect=True)
def test_llama_cpp_knows_what_it_was_trained_on(served: tuple[Path, str]) -> None:
    _, address = served
    body = {"messages": [{"role": "user", "content": "What colour is the sky?"}], "temperature": 0, "max_tokens": 16}
    found = post(f"{address}/v1/chat/completions", body)
    assert found["choices"][0]["message"]["content"] == "The sky is blue."

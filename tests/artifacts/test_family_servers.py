"""What a llama.cpp server makes of the built files: tokens as Hugging Face's tokenizers, text as transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from artifact_files import quantizer
from llamacpp_serving import post, serving
from test_families import oracle
from test_gguf_tokenizer import TEXTS
from tiny_models import MODELS, write_model

from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.core.progress import silent

pytestmark = pytest.mark.llamacpp

# What a server's rounding of activations may do to a log probability, and below which margin it may choose otherwise.
TOLERANCE, MARGIN = 0.05, 0.05

MORE_TEXTS = (
    "ZYXWQ ZYXWQA aZYXWQ",
    "a  b   c    d",
    "12 123 1234 12345 1,234.5",
    "x=1;\n\ty='it''s'\n\n\n  end",
    "I'LL we'Ve DON'T",
    "\u00a0nbsp\u2003em\u3000ideographic",
    "tab\there\r\nand there",
    "1st 2nd ½ ² Ⅷ ٣",
    "combining e\u0301 \u0928\u093f न्",
    "https://example.org/a?b=c&d=%20#e",
)


@pytest.fixture(scope="module", params=[name for name in MODELS if name != "qwen2-narrow"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A server with the F16 file of a tiny model, which rounds activations least: (its directory, address)."""
    directory = tmp_path_factory.mktemp("served")
    source = write_model(request.param, directory / request.param)
    build_gguf(source, directory / "model.gguf", "f16", quantizer(), silent)
    with serving(directory / "model.gguf") as address:
        yield source, address


def test_it_tokenizes_as_the_original(served: tuple[Path, str]) -> None:
    source, address = served
    original = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    for text in (*TEXTS, *MORE_TEXTS):
        for special in (False, True):
            found = post(f"{address}/tokenize", {"content": text, "add_special": special, "parse_special": True})
            assert found["tokens"] == original.encode(text, add_special_tokens=special).ids, (text, special)


def test_it_generates_as_transformers(served: tuple[Path, str]) -> None:
    source, address = served
    expected = oracle(source.name)["generation"]
    body = {"prompt": expected["prompt"], "n_predict": len(expected["tokens"]), "temperature": 0, "n_probs": 5}
    found = post(f"{address}/completion", body)["completion_probabilities"]
    first = {str(token["id"]): token["logprob"] for token in found[0]["top_logprobs"]}
    assert first == pytest.approx(expected["first"], abs=TOLERANCE)
    sure = next((index for index, margin in enumerate(expected["margins"]) if margin < MARGIN), len(found))
    assert [token["id"] for token in found][:sure] == expected["tokens"][:sure]

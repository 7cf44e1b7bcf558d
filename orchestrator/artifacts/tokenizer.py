"""The tokenizer of a Hugging Face directory as GGUF has it: which of its files counts, and what llama.cpp's converter
adds for Llama."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orchestrator.artifacts.families import ModelConfig
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.tokenizer_bpe import read_bpe
from orchestrator.artifacts.tokenizer_spm import is_spm, read_json_spm, read_model
from orchestrator.artifacts.vocabulary import Tokenizer, refuse

# SmolLM and Granite: their vocabulary's size is how llama.cpp's converter knows that they want no BOS.
_WITHOUT_BOS = 49152


def read_tokenizer(directory: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer, padded with unused tokens to the vocabulary size of the weights.

    tokenizer.model counts where it is there, as for llama.cpp's converter. SourceError if its files contradict
    themselves or describe a tokenizer that GGUF cannot express.
    """
    found = _read(directory, config.vocab_size)
    if config.family.architecture != "llama":
        return found
    return replace(
        found,
        adds_space=_adds_space(directory),
        adds_bos=False if config.vocab_size == _WITHOUT_BOS else None,
    )


def _read(directory: Path, vocab_size: int) -> Tokenizer:
    if (directory / "tokenizer.model").is_file():
        return read_model(directory, vocab_size)
    raw = read_json(directory / "tokenizer.json")
    return (read_json_spm if is_spm(raw) else read_bpe)(directory, raw, vocab_size)


def _adds_space(directory: Path) -> bool | None:
    file = directory / "tokenizer_config.json"
    value = read_json(file).get("add_prefix_space") if file.is_file() else None
    if value is not None and not isinstance(value, bool):
        refuse(file, f"add_prefix_space is {value!r}")
    return value

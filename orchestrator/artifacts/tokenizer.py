"""The tokenizer of a Hugging Face directory as GGUF has it: which of its files counts."""

from __future__ import annotations

from pathlib import Path

from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.tokenizer_bpe import read_bpe
from orchestrator.artifacts.tokenizer_files import PIECES, SLOW, TOKENIZER, read_tokenizer_files
from orchestrator.artifacts.tokenizer_spm import has_pieces_of, read_json_spm, read_model
from orchestrator.artifacts.vocabulary import Tokenizer
from orchestrator.core.meaning import Meaning
from orchestrator.errors import SourceError


def read_tokenizer(directory: Path, vocab_size: int, meaning: Meaning) -> Tokenizer:
    """The tokenizer for weights of this meaning, padded with unused tokens to the vocabulary size of the weights.

    tokenizer.json counts where it is there, as for transformers; tokenizer.model, which llama.cpp's converter prefers,
    may lack what was added since. SourceError if its files contradict themselves or describe a tokenizer that GGUF
    cannot express.
    """
    files = read_tokenizer_files(directory)
    if not files.document:
        if (directory / PIECES).is_file():
            return read_model(files, vocab_size, meaning)
        if (directory / SLOW).is_file():
            raise SourceError(
                f"{directory} has a tokenizer without {TOKENIZER}.",
                "transformers writes one: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
            )
        read_json(directory / TOKENIZER)  # says what is missing
    if not files.is_spm:
        return read_bpe(files, vocab_size, meaning)
    return (read_model if has_pieces_of(files) else read_json_spm)(files, vocab_size, meaning)

"""The small files beside weights, written so that an engine finds one meaning, by whatever rules it reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts.disk import host_errors, replacing, write_whole
from orchestrator.artifacts.generation import CONFIG, GENERATION
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.tokenizer_files import CONFIG as TOKENIZER_CONFIG
from orchestrator.core.meaning import DEFAULT, Meaning
from orchestrator.core.weights import INDEX, TEMPLATE, TEMPLATES

_TIED = "tie_word_embeddings"


def write_description(source: Path, outdir: Path, meaning: Meaning, changes: Mapping[str, Any]) -> None:
    """Writes into `outdir` what the directory `source` says of itself, where its meaning is `meaning`.

    Templates stand where transformers looks first, all ends in generation_config.json; config.json comes last, with
    these `changes`: without it nothing takes the directory for finished.
    """
    with host_errors(f"write {outdir}"):
        for name in meaning.files:
            if not _is_ours(name):
                with replacing(outdir / name) as partial:
                    shutil.copyfile(source / name, partial)
        _write_templates(outdir, meaning)
        _write_tokenizer_config(source, outdir)
        _write_generation(source, outdir, meaning)
        config = read_json(source / CONFIG)
        if bool(config.get(_TIED)) is not meaning.tied:
            config[_TIED] = meaning.tied
        write_whole(outdir / CONFIG, as_json({**config, **changes}))


def _is_ours(name: str) -> bool:
    """Whether it is written anew, or is no description at all."""
    return (
        name in (CONFIG, GENERATION, TOKENIZER_CONFIG, TEMPLATE, INDEX)
        or name.startswith(f"{TEMPLATES}/")
        or name.endswith(".safetensors")
    )


def _write_templates(outdir: Path, meaning: Meaning) -> None:
    for template in meaning.templates:
        file = outdir / (TEMPLATE if template.name == DEFAULT else f"{TEMPLATES}/{template.name}.jinja")
        file.parent.mkdir(exist_ok=True)
        write_whole(file, template.text.encode())


def _write_tokenizer_config(source: Path, outdir: Path) -> None:
    """Without the template, which stands in a file of its own now, or counts no more."""
    file = source / TOKENIZER_CONFIG
    if not file.is_file():
        return
    config = read_json(file)
    said = config.pop("chat_template", ...)
    write_whole(outdir / TOKENIZER_CONFIG, file.read_bytes() if said is ... else as_json(config))


def _write_generation(source: Path, outdir: Path, meaning: Meaning) -> None:
    """vLLM stops at the ends of this file and at the tokenizer's, transformers at those of this file alone."""
    file = source / GENERATION
    said = read_json(file) if file.is_file() else {}
    ends = [end.id for end in meaning.ends]
    known = said.get("eos_token_id")
    if set(ends) != set(known if isinstance(known, list) else [known]) and ends:
        write_whole(outdir / GENERATION, as_json(said | {"eos_token_id": ends}))
    elif said:
        write_whole(outdir / GENERATION, file.read_bytes())


def as_json(value: object) -> bytes:
    """As Hugging Face's tools write it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()

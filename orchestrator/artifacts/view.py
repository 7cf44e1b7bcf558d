"""Weights that are served as they are, seen by an engine that would read their directory by rules of its own.

A view is a directory that has just what counts: links to the weight files, and beside them what describes them, written
so that there is one meaning. What else lies where the weights are is not there.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from orchestrator.artifacts import one_pass
from orchestrator.artifacts.description import write_description
from orchestrator.artifacts.disk import host_errors, write_whole
from orchestrator.artifacts.families import FAMILIES
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.meaning import read_meaning
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.artifacts.tokenizer_files import PIECES, SLOW, TOKENIZER
from orchestrator.core.meaning import Meaning
from orchestrator.core.weights import INDEX
from orchestrator.errors import SourceError


def build_view(source: Path, work: Path, template: str | None) -> None:
    """Makes the view of the directory `source` in `work`. SourceError where its files contradict each other, as far as
    its family is known."""
    meaning = _checked(source, template)
    weights = [name for name in meaning.files if name.endswith(".safetensors")]
    if not weights:
        raise SourceError(f"{source} holds no safetensors files.", "Point to a directory in Hugging Face layout.")
    if not any(name in meaning.files for name in (TOKENIZER, PIECES, SLOW)):
        raise SourceError(f"{source} has no tokenizer.", f"Put the model's {TOKENIZER} beside its weights.")
    with host_errors(f"write {work}"):
        for name in weights:
            (work / name).symlink_to(_target(source, work) / name)
        if INDEX in meaning.files:
            write_whole(work / INDEX, (source / INDEX).read_bytes())
    write_description(source, work, meaning, {})


def _target(source: Path, work: Path) -> Path:
    """Where a link leads: beside the view once that is finished, where both are of one store; else wherever it lies."""
    store = work.parent.parent
    return Path("..", source.name) if source.parent == store else source.absolute()


def _checked(source: Path, template: str | None) -> Meaning:
    """The meaning; of weights that are not quantized and of a known family checked against their tensors."""
    config = read_json(source / "config.json")
    plain = not any(config.get(name) for name in ("quantization_config", "compression_config"))
    if plain and config.get("model_type") in FAMILIES:
        with one_pass.opened(source, template) as weights:
            return weights.meaning
    meaning = read_meaning(source, template)
    with ExitStack() as stack:
        stack.enter_context(Checkpoint.open(source))
    return meaning

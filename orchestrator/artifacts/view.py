"""Weights that are served as they are, seen by an engine that would read their directory by rules of its own.

A view is a directory that has just what counts: links to the weight files, and beside them what describes them, written
so that there is one meaning. What else lies where the weights are is not there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orchestrator.artifacts import one_pass
from orchestrator.artifacts.contradictions import is_plain
from orchestrator.artifacts.description import write_description
from orchestrator.artifacts.disk import host_errors, write_whole
from orchestrator.artifacts.families import read_config
from orchestrator.artifacts.head import head_is_own
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
    meaning = checked_meaning(source, template)
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


def checked_meaning(source: Path, template: str | None) -> Meaning:
    """What the directory `source` means; of weights that builders know too checked against their tensors. SourceError
    where its files contradict each other."""
    if _is_known(source):
        with one_pass.opened(source, template) as weights:
            return weights.meaning
    meaning = read_meaning(source, template)
    with Checkpoint.open(source) as checkpoint:
        own = meaning.tied and is_plain(read_json(source / "config.json")) and head_is_own(checkpoint)
    return replace(meaning, tied=False) if own else meaning


def _is_known(source: Path) -> bool:
    """Whether all of its config.json is known. Other kinds of positions and sliding windows no builder knows, and
    engines do."""
    try:
        read_config(source)
    except SourceError:
        return False
    return True

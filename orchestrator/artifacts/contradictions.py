"""Where config.json and the weights contradict each other so that engines would serve different models of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts.families import FAMILIES, HEAD, QUANTIZED, refuse_other_class
from orchestrator.artifacts.head import EMBEDDING
from orchestrator.artifacts.rope import rope_contradiction
from orchestrator.artifacts.safetensors import Checkpoint
from orchestrator.errors import SourceError


def refuse_contradictions(directory: Path, config: Mapping[str, Any]) -> None:
    """SourceError at the first one: two models are named; positions are said twice and differently; a head of its own
    is not there; the embedding has more or fewer rows than there are tokens. Of the weights their headers are read,
    where they are here.
    """
    file = directory / "config.json"
    refuse_other_class(file, config)
    if problem := rope_contradiction(config):
        raise SourceError(
            f"{file}: {problem}.",
            "Take out of config.json what the model was not trained with: rope_parameters, or rope_scaling and "
            "rope_theta beside it.",
        )
    if not is_plain(config) or not any(directory.glob("*.safetensors")):
        return
    with Checkpoint.open(directory) as checkpoint:
        embedding, head = checkpoint.tensors.get(EMBEDDING), checkpoint.tensors.get(HEAD)
    if embedding is None:
        return
    if embedding.rows != config.get("vocab_size"):
        raise SourceError(
            f"{directory}: the embedding has {embedding.rows} rows, and vocab_size in config.json is "
            f"{config.get('vocab_size')}.",
            "Where tokens were added, save the model again with transformers, which writes both.",
        )
    if head is None and not config.get("tie_word_embeddings"):
        raise SourceError(
            f"{directory}: config.json says that the model has a head of its own, and there is none ({HEAD}).",
            'If it was trained with the embedding as its head, config.json has to say "tie_word_embeddings": true; '
            "else its head is lost.",
        )


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether it is a model of a known family, and not quantized."""
    return config.get("model_type") in FAMILIES and not any(config.get(name) for name in QUANTIZED)

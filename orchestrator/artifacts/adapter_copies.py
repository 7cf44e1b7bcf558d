"""Tensors of the base that an adapter carries whole: PEFT saves embeddings, head and modules_to_save with it.

An unchanged copy means nothing. No engine takes a changed one beside a LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orchestrator.artifacts.adapter_problems import Problem, refuse
from orchestrator.artifacts.adapter_tensors import Copy
from orchestrator.artifacts.families import FLOATS, HEAD
from orchestrator.artifacts.rows import to_float32
from orchestrator.artifacts.safetensors import Checkpoint, Tensor, row_blocks
from orchestrator.errors import SourceError

_EMBEDDING = "model.embed_tokens.weight"
_BLOCK_ITEMS = 8_000_000

_WAYS = (
    "Merge it into its base with PEFT (merge_and_unload, then save_pretrained) and serve that; or, where that part was "
    "not meant to be trained, save the adapter without: save_pretrained(DIR, save_embedding_layers=False)."
)


def refuse_changed_copies(checkpoint: Checkpoint, copies: Sequence[Copy], base: Path | None) -> None:
    """SourceError, with every one, where copies are not what the weights in `base` hold, or those are not here."""
    if not copies:
        return
    if base is None or not base.is_dir():
        raise SourceError(
            f"{checkpoint.files[0]} holds {copies[0].name}, and whether it is the base's own is not known: the base's "
            "weights are not here.",
            "orch pull brings the weights; or save the adapter without: save_pretrained(DIR, "
            "save_embedding_layers=False).",
        )
    with Checkpoint.open(base) as weights:
        problems = [problem for copy in copies if (problem := _change(checkpoint, copy, weights)) is not None]
    refuse(f"{checkpoint.files[0]} holds more than a LoRA", problems)


def _change(checkpoint: Checkpoint, copy: Copy, weights: Checkpoint) -> Problem | None:
    own = weights.tensors.get(copy.name)
    if own is None and copy.name == HEAD:
        own = weights.tensors.get(_EMBEDDING)  # a tied head
    if own is None:
        return Problem(
            f"{copy.tensor.name}, which the base has not", "Use the base that it was trained on, or merge it."
        )
    if copy.tensor.shape != own.shape:
        return _of_another_shape(copy, own)
    if copy.tensor.dtype not in FLOATS or own.dtype not in FLOATS or not _same(checkpoint, copy.tensor, weights, own):
        return Problem(f"{copy.tensor.name}, which differs from the base's: it was trained as a whole", _WAYS)
    return None


def _of_another_shape(copy: Copy, own: Tensor) -> Problem:
    rows, here = copy.tensor.shape[:1], own.shape[:1]
    if copy.tensor.shape[1:] != own.shape[1:]:
        return Problem(
            f"{copy.tensor.name} {list(copy.tensor.shape)}, and the base's is {list(own.shape)}",
            "The base has other sizes: use the one that it was trained on.",
        )
    what = "resized, and tokens were added" if rows > here else "cut"
    return Problem(
        f"{copy.tensor.name} with {rows[0]} rows, where the base has {here[0]}: the vocabulary was {what}",
        "Merge it with PEFT into a base that is resized alike (resize_token_embeddings, then merge_and_unload and "
        "save_pretrained), and serve that with the adapter's own tokenizer.",
    )


def _same(one: Checkpoint, copy: Tensor, other: Checkpoint, own: Tensor) -> bool:
    """Whether the copy has the base's values, as far as its type holds them."""
    for start, stop in row_blocks(own, _BLOCK_ITEMS):
        copied, original = one.read(copy, start, stop), other.read(own, start, stop)
        if copy.dtype == own.dtype:
            same = np.array_equal(copied.view(np.uint8), original.view(np.uint8))
        else:
            same = np.array_equal(to_float32(copied), _as(copy.dtype, to_float32(original)))
        if not same:
            return False
    return True


def _as(dtype: str, values: np.ndarray) -> np.ndarray:
    """The same values as a type that may hold less of them tells them."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        # To the nearest, and of two that are as near the even one.
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    return values

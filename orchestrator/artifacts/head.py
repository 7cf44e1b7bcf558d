"""Whether a head is another matrix than the embedding, whatever config.json says of it.

Tools that train save a head of its own under tie_word_embeddings = true; transformers 5 compares the two and ties them
only where they are equal (transformers/modeling_utils.py, `tie_weights`).
"""

from __future__ import annotations

import numpy as np

from orchestrator.artifacts.families import FLOATS, HEAD
from orchestrator.artifacts.rows import to_float32
from orchestrator.artifacts.safetensors import Checkpoint, row_blocks

EMBEDDING = "model.embed_tokens.weight"
_BLOCK_ITEMS = 1 << 20


def head_is_own(checkpoint: Checkpoint) -> bool:
    """Whether there is a head, and it differs from the embedding; reads both as far as they are equal."""
    head, embedding = checkpoint.tensors.get(HEAD), checkpoint.tensors.get(EMBEDDING)
    if head is None or embedding is None:
        return False
    if head.shape != embedding.shape or head.dtype not in FLOATS:
        return True
    for start, stop in row_blocks(head, _BLOCK_ITEMS):
        blocks = (checkpoint.read(tensor, start, stop) for tensor in (head, embedding))
        ours, theirs = blocks if head.dtype == embedding.dtype else map(to_float32, blocks)
        if not np.array_equal(ours, theirs):
            return True
    return False

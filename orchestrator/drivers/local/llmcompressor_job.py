"""Runs inside llm-compressor's own environment, and is no part of orch there: weights to NVFP4 with 4-bit activations.

    python -I llmcompressor_job.py WEIGHTS OUT TEXTS.jsonl TOKENS

Embedding, head and norms stay as they are. Whatever it has to say goes to stdout and stderr; a failure that it knows
ends with a line `error: ...` and code 3.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_KNOWN = 3


def main(weights: str, out: str, texts: str, tokens: int) -> None:
    """See the module."""
    parent = os.getppid()
    # Killed or not, orch takes this along: nobody else would stop a job of hours.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights)
    samples = [json.loads(line) for line in Path(texts).read_text("utf-8").splitlines()]
    ids = [one for sample in samples if (one := _ids(tokenizer, sample, tokens))]
    if not ids:
        _fail("the tokenizer gets no tokens from the calibration texts")
    _say(f"{len(ids)} texts, {sum(map(len, ids))} tokens, {torch.cuda.device_count()} GPUs")
    model = AutoModelForCausalLM.from_pretrained(weights, dtype="auto")
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_list([{"input_ids": one} for one in ids]),
        recipe=QuantizationModifier(targets="Linear", scheme="NVFP4", ignore=["lm_head"]),
        max_seq_length=tokens,
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(out, save_compressed=True, max_shard_size="5GB")


def _ids(tokenizer: Any, sample: dict[str, Any], tokens: int) -> list[int]:
    """The token ids of a text, or of a chat as the model's template writes it; at most `tokens` of them."""
    if "messages" not in sample:
        found = tokenizer(sample["text"], truncation=True, max_length=tokens)
    elif tokenizer.chat_template is None:
        _fail("the calibration texts have chats, but the model has no chat template")
    else:
        text = tokenizer.apply_chat_template(sample["messages"], tokenize=False)
        # The template has the special tokens already.
        found = tokenizer(text, add_special_tokens=False, truncation=True, max_length=tokens)
    return list(found["input_ids"])


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _fail(text: str) -> NoReturn:
    _say(f"error: {text}")
    sys.exit(_KNOWN)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))

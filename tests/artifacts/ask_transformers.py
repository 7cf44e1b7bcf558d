"""What the transformers of another environment reads in directories: run by its Python, not by pytest.

Standard input: {"asked": texts and chats, "directories": {name: path}}. Standard output: what each means, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    told = json.load(sys.stdin)
    found = {name: _read(place, told["asked"]) for name, place in told["directories"].items()}
    json.dump(found, sys.stdout)


def _read(place: str, asked: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    config, tokenizer = AutoConfig.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    try:
        generation = GenerationConfig.from_pretrained(place)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    ends = generation.eos_token_id
    return {
        "tied": config.tie_word_embeddings,
        "ends": ends if isinstance(ends, list) else [] if ends is None else [ends],
        "eos": tokenizer.eos_token,
        "added": {number: [one.content, one.special] for number, one in tokenizer.added_tokens_decoder.items()},
        "texts": {text: tokenizer(text)["input_ids"] for text in asked["texts"]},
        "chats": {name: _chat(tokenizer, chat) for name, chat in asked["chats"].items()},
    }


def _chat(tokenizer: Any, chat: dict[str, Any]) -> list[int] | None:
    """A chat's tokens; None where it is refused."""
    try:
        return list(tokenizer.apply_chat_template(**chat, tokenize=True, return_dict=False))
    except Exception:  # noqa: BLE001
        return None


if __name__ == "__main__":
    main()

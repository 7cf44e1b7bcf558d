"""What kinds are made of: changes of tiny-qwen3's files, and steps for its weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from meanings import ASSETS

Files = dict[str, Any]
Change = Callable[[Files], None]
Steps = list[list[Any]]

TINY = ("chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TAKE: list[Any] = ["take", "tiny-qwen3/*.safetensors"]
SAVE: list[Any] = ["save", "model.safetensors"]
# Other embeddings: whoever reads these answers nonsense.
ROLLED: list[Any] = ["roll", EMBEDDINGS, 5]
VOCABULARY: dict[str, int] = json.loads((ASSETS / "tiny-qwen3/tokenizer.json").read_bytes())["model"]["vocab"]
CAN, YOU = VOCABULARY["Ġcan"], VOCABULARY["Ġyou"]

CHATML = (ASSETS / "tiny-qwen3/chat_template.jinja").read_text()
OTHER = (
    "{%- for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{%- endfor %}"
    "{%- if add_generation_prompt %}### assistant:\n{% endif %}"
)


def token(number: int, content: str, **flags: bool) -> dict[str, Any]:
    """An added token as tokenizer.json has it."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": number, "content": content} | plain | flags


def decoder(*tokens: dict[str, Any]) -> dict[str, Any]:
    """The same as tokenizer_config.json's added_tokens_decoder has them."""
    return {str(one["id"]): {name: flag for name, flag in one.items() if name != "id"} for one in tokens}


SPECIAL = [
    token(number, content, special=True)
    for number, content in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
]


def _json(name: str) -> Callable[..., Change]:
    """Fields of a JSON file set; `...` drops one. `__` stands for the slash between a field and one below it."""

    def changed(**fields: Any) -> Change:
        def change(files: Files) -> None:
            told = files.setdefault(name, {"json": {}})
            for field, value in fields.items():
                place = "/" + field.replace("__", "/")
                if "json" in told:
                    told["json"][field] = value
                elif value is ...:
                    told.setdefault("drop", []).append(place)
                else:
                    told.setdefault("set", {})[place] = value

        return change

    return changed


config = _json("config.json")
generation = _json("generation_config.json")
tokenizer_config = _json("tokenizer_config.json")
tokenizer = _json("tokenizer.json")


def file(name: str, told: Any) -> Change:
    """A file of its own: text, or one of the forms that meanings.py reads."""
    return lambda files: files.update({name: told})


def without(*names: str) -> Change:
    """Files that are not there."""

    def change(files: Files) -> None:
        for name in names:
            del files[name]

    return change


def added(*tokens: dict[str, Any]) -> Change:
    """More added tokens in tokenizer.json, behind those that are there."""
    return tokenizer(added_tokens=[*SPECIAL, *tokens])


def resized(rows: int, *steps: list[Any]) -> Steps:
    """Embeddings of so many rows."""
    return [TAKE, ["rows", EMBEDDINGS, rows], *steps, SAVE]


def marker(rows: int = 4097, factor: float = 1.3) -> Steps:
    """The model writes token 4096 where it wrote " can"."""
    return resized(rows, ["row", EMBEDDINGS, 4096, CAN, factor])


KINDS: dict[str, dict[str, Any]] = {}


def kind(name: str, about: str, *changes: Change, weights: Steps | None = None) -> None:
    """tiny-qwen3 with some things changed."""
    files: Files = {file: {"like": f"tiny-qwen3/{file}"} for file in TINY}
    register(name, about, files, changes, weights or [TAKE, SAVE])


def register(name: str, about: str, files: Files, changes: tuple[Change, ...], weights: Steps) -> None:
    """A kind of any files."""
    files = copy.deepcopy(files)
    for change in changes:
        change(files)
    KINDS[name] = {"about": about, "files": files, "weights": weights}

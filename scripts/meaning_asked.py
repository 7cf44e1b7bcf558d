"""What directories of weights mean to the transformers of this environment (run by make_meaning_oracles.py).

meaning_asked.py ASKED < a JSON list of directories > a JSON object of what each means
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, modeling_utils

NEW_TOKENS = 24
SAMPLING = (
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("repetition_penalty", "no_repeat_ngram_size", "max_new_tokens", "max_length", "min_new_tokens", "num_beams"),
    *("stop_strings", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id"),
    *("forced_eos_token_id", "encoder_repetition_penalty", "length_penalty", "renormalize_logits", "guidance_scale"),
)
# What it says of every model of this kind, or of how it is asked here.
NOISE = ("torch_dtype` is deprecated", "rotary", "attention mask", "Setting `pad_token_id`", "PAD")


def meaning(directory: Path, asked: dict[str, Any], warned: list[str]) -> dict[str, Any]:
    """Everything about one directory."""
    found = _meaning(directory, asked)
    found["warnings"] = sorted({_line(text) for text in warned if not any(noise in text for noise in NOISE)})
    return found


def _meaning(directory: Path, asked: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    tokenizer, found["tokenizer_refusal"] = _or_refusal(lambda: AutoTokenizer.from_pretrained(directory))
    if "TokenizersBackend" in (found["tokenizer_refusal"] or ""):
        # Transformers 4 does not know this name of 5's; under its own name it reads the files all the same.
        tokenizer, _ = _or_refusal(lambda: PreTrainedTokenizerFast.from_pretrained(directory))
    if tokenizer is not None:
        found |= _tokenizer(tokenizer, asked)
    read: list[str] = []
    model, found["refusal"] = _or_refusal(lambda: _model(directory, read, found))
    if model is None:
        return found
    found["weights"] = sorted(read)
    found |= _weights(model, found.pop("missing"))
    found["listed"] = _listed(directory)
    found["ends"] = _numbers(model.generation_config.eos_token_id)
    found["sampling"] = _sampling(model)
    # A tensor that is drawn anew answers something else each time.
    if tokenizer is not None and not found["anew"]:
        found["answers"] = {
            name: _answer(model, tokenizer, ids, found["listed"]) for name, ids in _prompts(tokenizer, asked)
        }
    return found


def _model(directory: Path, read: list[str], found: dict[str, Any]) -> Any:
    """The model, computing in float32; the type that it had by itself and what was lacking are told in `found`."""
    # The one place that decides which files are weights, and that all ways of loading go through.
    resolve = modeling_utils._get_resolved_checkpoint_files

    def told(*arguments: Any, **named: Any) -> Any:
        answer = resolve(*arguments, **named)
        read.extend(str(Path(file).relative_to(directory)) for file in answer[0] or [])
        return answer

    modeling_utils._get_resolved_checkpoint_files = told
    try:
        model, info = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", output_loading_info=True)
    finally:
        modeling_utils._get_resolved_checkpoint_files = resolve
    found["dtype"] = str(model.dtype).removeprefix("torch.")
    found["missing"] = sorted([*info["missing_keys"], *(one[0] for one in info["mismatched_keys"])])
    found["unused"] = sorted(info["unexpected_keys"])
    return model.float().eval()


def _weights(model: Any, missing: list[str]) -> dict[str, Any]:
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    tied = head.data_ptr() == embeddings.data_ptr()
    # To transformers 4 rope_parameters is a word of no meaning.
    rope = (getattr(model.config, "rope_parameters", None) if transformers.__version__ >= "5" else None) or {
        "rope_type": "default",
        "rope_theta": getattr(model.config, "rope_theta", None),
        **(getattr(model.config, "rope_scaling", None) or {}),
    }
    own = "anew" if "lm_head.weight" in missing else "own"
    return {
        "anew": [name for name in missing if not (tied and name == "lm_head.weight")],
        "tied": tied,
        "head": "embeddings" if tied else own,
        "rows": embeddings.shape[0],
        "rope": rope,
    }


def _tokenizer(tokenizer: Any, asked: dict[str, Any]) -> dict[str, Any]:
    templates = {} if tokenizer.chat_template is None else tokenizer.chat_template
    flags = ("content", "special", "lstrip", "rstrip", "single_word", "normalized")
    return {
        "tokens": len(tokenizer),
        "bos": tokenizer.bos_token,
        "eos": tokenizer.eos_token,
        "added": {
            str(number): {flag: getattr(token, flag) for flag in flags}
            for number, token in sorted(tokenizer.added_tokens_decoder.items())
        },
        "templates": {"default": templates} if isinstance(templates, str) else dict(templates),
        "chats": {name: _chat(tokenizer, chat) for name, chat in asked["chats"].items()},
        "texts": {text: _tokens(tokenizer, text) for text in asked["texts"]},
    }


def _chat(tokenizer: Any, chat: dict[str, Any]) -> dict[str, Any]:
    text, refusal = _or_refusal(lambda: tokenizer.apply_chat_template(tokenize=False, **chat))
    if text is None:
        return {"refusal": refusal}
    return {"text": text, "ids": _ids(tokenizer.apply_chat_template(tokenize=True, **chat))}


def _tokens(tokenizer: Any, text: str) -> dict[str, Any]:
    ids = tokenizer(text)["input_ids"]
    return {
        "ids": ids,
        "bare": tokenizer(text, add_special_tokens=False)["input_ids"],
        "whole": tokenizer.decode(ids),
        "clean": tokenizer.decode(ids, skip_special_tokens=True),
    }


def _prompts(tokenizer: Any, asked: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """Questions as chats where there is a template, and prompts that are completed as they are."""
    chats, _ = _or_refusal(
        lambda: [
            (
                text,
                _ids(tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)),
            )
            for text in asked["questions"]
        ]
    )
    return [*(chats or []), *((text, tokenizer(text)["input_ids"]) for text in asked["prompts"])]


def _answer(model: Any, tokenizer: Any, prompt: list[int], ends: list[int]) -> dict[str, Any]:
    def generated() -> Any:
        with torch.inference_mode():
            return model.generate(
                torch.tensor([prompt], dtype=torch.long),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=ends or None,
                output_scores=True,
                return_dict_in_generate=True,
            )

    made, refusal = _or_refusal(generated)
    if made is None:
        return {"prompt": prompt, "refusal": refusal}
    ids = made.sequences[0, len(prompt) :].tolist()
    best = [torch.topk(scores[0], 2).values.tolist() for scores in made.scores]
    return {
        "prompt": prompt,
        "ids": ids,
        "text": tokenizer.decode(ids, skip_special_tokens=True),
        "whole": tokenizer.decode(ids),
        "finish": "stop" if ids[-1] in ends else "length",
        "margins": [round(min(first - second, 99.0), 2) for first, second in best],
    }


def _sampling(model: Any) -> dict[str, Any]:
    """What the directory says of sampling, without what does nothing. (generate() itself adds top_k 50.)"""
    neutral = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "typical_p": 1.0}
    neutral |= {"num_beams": 1, "length_penalty": 1.0, "encoder_repetition_penalty": 1.0, "max_length": 20}
    neutral |= {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "renormalize_logits": False}
    if transformers.__version__ < "5":
        neutral |= {"top_k": 50, "do_sample": False, "min_new_tokens": 0}
    said = {name: getattr(model.generation_config, name, None) for name in SAMPLING}
    return {name: value for name, value in said.items() if value is not None and value != neutral.get(name)}


def _listed(directory: Path) -> list[int]:
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        if (directory / name).exists():
            found |= set(_numbers(json.loads((directory / name).read_bytes()).get("eos_token_id")))
    return sorted(found)


def _numbers(value: Any) -> list[int]:
    if value is None:
        return []
    return sorted(value) if isinstance(value, list) else [value]


def _ids(encoded: Any) -> list[int]:
    return list(encoded if isinstance(encoded, list) else encoded["input_ids"])


def _or_refusal(made: Callable[[], Any]) -> tuple[Any, str | None]:
    # Whatever it says of a directory is an answer here.
    try:
        return made(), None
    except Exception as error:  # noqa: BLE001
        if isinstance(error, (NameError, AttributeError)):
            traceback.print_exc()
        return None, f"{type(error).__name__}: {_line(str(error))}"


def _line(text: str) -> str:
    """The first line, without where the directory happens to lie."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    words = (lines or [""])[0].split()
    return " ".join(f"DIR/{word.rsplit('/', 1)[1]}" if word.strip("'\"").startswith("/") else word for word in words)[
        :110
    ]


class Heard(logging.Handler):
    """What transformers warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def main() -> None:
    """Answers for every directory that stands on standard input."""
    asked = json.loads(Path(sys.argv[1]).read_bytes())
    heard = Heard()
    transformers.logging.disable_default_handler()
    transformers.logging.disable_progress_bar()
    transformers.logging.add_handler(heard)
    torch.set_num_threads(1)
    found: dict[str, Any] = {"version": transformers.__version__, "meanings": {}}
    for name in json.load(sys.stdin):
        heard.texts.clear()
        transformers.utils.logging.warning_once.cache_clear()
        found["meanings"][name] = meaning(Path(name), asked, heard.texts)
        print(name, file=sys.stderr, flush=True)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

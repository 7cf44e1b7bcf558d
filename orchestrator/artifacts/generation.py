"""What config.json and generation_config.json say of ends and of sampling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.artifacts.json_file import read_json
from orchestrator.errors import SourceError

CONFIG = "config.json"
GENERATION = "generation_config.json"

# transformers' names of what engines sample by, and a profile's.
_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
    "max_new_tokens": "max_tokens",
}
_WHOLE = ("top_k", "max_new_tokens")
# What else it may say of sampling that no engine does as transformers does it; each with what it goes without.
_IGNORED: Mapping[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (),
    "typical_p": (1.0, 1),
    "epsilon_cutoff": (0.0, 0),
    "eta_cutoff": (0.0, 0),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0, 1),
    "min_new_tokens": (0,),
    "min_length": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "sequence_bias": ({},),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1.0, 1),
    "stop_strings": ([], ""),
    "watermarking_config": (),
    "dola_layers": (),
    "renormalize_logits": (),
    "remove_invalid_values": (),
}


def read_ends(directory: Path) -> dict[int, tuple[str, ...]]:
    """The ids that end an answer, with the files that say so. SourceError for what is no id."""
    found: dict[int, tuple[str, ...]] = {}
    for name in (CONFIG, GENERATION):
        for number in _ids(directory / name):
            found[number] = (*found.get(number, ()), name)
    return found


def _ids(file: Path) -> list[int]:
    value = read_json(file).get("eos_token_id") if file.is_file() else None
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    # -1 stands for none in configurations of the first Llamas.
    if not all(type(number) is int and number >= -1 for number in numbers):
        raise SourceError(
            f"{file}: eos_token_id is {value!r}, neither an id nor a list of ids.",
            "Name the id of the token that ends an answer there: tokenizer.json lists them.",
        )
    return [number for number in dict.fromkeys(numbers) if number >= 0]


def read_sampling(directory: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The defaults by a profile's names, and what else is said that no engine heeds. SourceError for values of which
    nobody can sample."""
    file = directory / GENERATION
    if not file.is_file():
        # Older ones say it there.
        file = directory / CONFIG
    raw = read_json(file) if file.is_file() else {}
    found: dict[str, Any] = {}
    for name, ours in _NAMES.items():
        value = raw.get(name)
        if value is None:
            continue
        whole = name in _WHOLE
        if isinstance(value, bool) or not isinstance(value, int | float) or (whole and value != int(value)):
            raise SourceError(f"{file}: {name} is {value!r}, not a number.", "Correct it, or remove it.")
        found[ours] = int(value) if whole else float(value)
    _check(file, found)
    if raw.get("do_sample") is False:
        # transformers then takes the likeliest token each time, whatever else is said.
        found = {name: value for name, value in found.items() if name in ("repeat_penalty", "max_tokens")}
        found["temperature"] = 0.0
    ignored = tuple(
        f"{name} = {raw[name]!r}"
        for name, without in _IGNORED.items()
        if raw.get(name) is not None and raw[name] is not False and raw[name] not in without
    )
    return found, ignored


_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (-1, 2**31),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.0, 100.0),
    "max_tokens": (1, 2**31),
}


def _check(file: Path, found: dict[str, Any]) -> None:
    for name, value in found.items():
        least, most = _RANGES[name]
        if not least <= value <= most:
            theirs = next(key for key, ours in _NAMES.items() if ours == name)
            raise SourceError(
                f"{file}: {theirs} is {value}, not within {least} to {most}.", "Correct it, or remove it."
            )
    # Both of these stand for all tokens; engines agree on the first.
    if found.get("top_k") == -1:
        found["top_k"] = 0

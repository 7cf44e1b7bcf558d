"""Ends of generation."""

from __future__ import annotations

from meaning_kinds.recipes import (
    CHATML,
    SPECIAL,
    VOCABULARY,
    YOU,
    Files,
    config,
    generation,
    kind,
    tokenizer_config,
    without,
)

NO_END = config(eos_token_id=...)
kind("end-generation-number", "eos in generation_config.json only, a number.", NO_END, generation(eos_token_id=2))
kind("end-generation-list", "eos in generation_config.json only, a list.", NO_END, generation(eos_token_id=[0, 2]))
kind(
    "end-config-list",
    "A list of eos in config.json; no generation_config.json.",
    config(eos_token_id=[0, 2]),
    without("generation_config.json"),
    tokenizer_config(eos_token="<|endoftext|>"),
)
kind(
    "end-config-number",
    "eos in config.json only; the tokenizer names another.",
    without("generation_config.json"),
    tokenizer_config(eos_token="<|endoftext|>"),
)
kind(
    "end-config-beside",
    "eos in config.json; generation_config.json has none.",
    generation(eos_token_id=...),
    tokenizer_config(eos_token="<|endoftext|>"),
)
kind(
    "end-three",
    "Another eos in each of the three files.",
    config(eos_token_id=0),
    generation(eos_token_id=2),
    tokenizer_config(eos_token="<|im_start|>"),
)
kind(
    "end-config-alone-right",
    "config.json has the end of turn, generation_config.json another.",
    generation(eos_token_id=0),
    tokenizer_config(eos_token="<|endoftext|>"),
)
kind(
    "end-tokenizer-only",
    "Only the tokenizer names the end of turn.",
    NO_END,
    without("generation_config.json"),
)
kind(
    "end-unlisted",
    "A base model: its vocabulary has <|im_end|>, its files list <|endoftext|> only.",
    config(eos_token_id=0),
    generation(eos_token_id=0),
    tokenizer_config(eos_token="<|endoftext|>"),
    without("chat_template.jinja"),
)
kind(
    "end-many",
    "Five ends.",
    generation(eos_token_id=[0, 1, 2, YOU, VOCABULARY["Ċ"]]),
)
kind("end-four", "Four ends, one of them a word.", generation(eos_token_id=[0, 1, 2, YOU]))
kind("end-word", "An end that is a word of the vocabulary.", generation(eos_token_id=[2, YOU]))
kind("end-none", "No end anywhere.", NO_END, generation(eos_token_id=...), tokenizer_config(eos_token=...))
kind("end-outside", "An end that the vocabulary does not have.", generation(eos_token_id=[2, 151645]))
kind("end-string", "generation_config.json asks for a text to stop at.", generation(stop_strings=["help you"]))


def renamed(files: Files) -> None:
    """<|im_start|> and <|im_end|> have other names."""
    names = {"<|im_start|>": "[TURN]", "<|im_end|>": "[/TURN]"}
    places: Files = {"/added_tokens": [one | {"content": names.get(one["content"], one["content"])} for one in SPECIAL]}
    places |= {f"/model/vocab/{new.replace('/', '~1')}": VOCABULARY[old] for old, new in names.items()}
    files["tokenizer.json"] |= {"set": places, "drop": [f"/model/vocab/{old}" for old in names]}
    template = CHATML
    for old, new in names.items():
        template = template.replace(old, new)
    files["chat_template.jinja"] = template


kind(
    "end-turn-list",
    "A fine-tune's own end of turn stands only in generation_config.json's list.",
    renamed,
    config(eos_token_id=0),
    generation(eos_token_id=[0, 2]),
    tokenizer_config(eos_token="<|endoftext|>"),
)
kind(
    "end-turn-tokenizer",
    "A fine-tune's own end of turn is the tokenizer's eos, and config.json's.",
    renamed,
    generation(eos_token_id=2),
    tokenizer_config(eos_token="[/TURN]"),
)

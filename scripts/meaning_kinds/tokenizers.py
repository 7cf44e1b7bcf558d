"""Tokenizer files, classes, and beginnings."""

from __future__ import annotations

from meaning_kinds.recipes import (
    CHATML,
    SPECIAL,
    Files,
    added,
    config,
    decoder,
    file,
    kind,
    marker,
    token,
    tokenizer,
    tokenizer_config,
    without,
)

# As Qwen2Tokenizer builds it, whatever tokenizer.json says.
QWEN_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": QWEN_REGEX}, "behavior": "Isolated", "invert": False}
qwen_split = tokenizer(
    normalizer={"type": "NFC"},
    pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT, BYTES]},
    post_processor=BYTES,
)

for name, written in (
    ("Qwen2Tokenizer", "class-qwen2"),
    ("Qwen2TokenizerFast", "class-qwen2-fast"),
    ("PreTrainedTokenizerFast", "class-fast"),
    ("GPT2Tokenizer", "class-gpt2"),
    ("LlamaTokenizerFast", "class-llama-fast"),
    ("NoSuchTokenizer", "class-unknown"),
):
    kind(written, f"tokenizer_class is {name}.", tokenizer_config(tokenizer_class=name, backend=...))
kind(
    "class-qwen2-split",
    "tokenizer_class is Qwen2Tokenizer, and tokenizer.json splits and composes as Qwen's do.",
    tokenizer_config(tokenizer_class="Qwen2Tokenizer", backend=...),
    qwen_split,
)
kind("class-none", "tokenizer_config.json names no class.", tokenizer_config(tokenizer_class=..., backend=...))
kind("class-no-config", "No tokenizer_config.json.", without("tokenizer_config.json"))
SLOW = {
    "tokenizer_class": "Qwen2Tokenizer",
    "add_prefix_space": False,
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "errors": "replace",
    "model_max_length": 2048,
    "pad_token": "<|endoftext|>",
    "split_special_tokens": False,
    "unk_token": None,
    "added_tokens_decoder": decoder(*SPECIAL),
    "chat_template": CHATML,
}
kind(
    "files-slow",
    "vocab.json and merges.txt, no tokenizer.json, as slow tokenizers were saved.",
    without("tokenizer.json", "chat_template.jinja"),
    file("vocab.json", {"vocabulary of": "tiny-qwen3/tokenizer.json"}),
    file("merges.txt", {"merges of": "tiny-qwen3/tokenizer.json"}),
    file("added_tokens.json", {"json": {t["content"]: t["id"] for t in SPECIAL}}),
    file("special_tokens_map.json", {"json": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}}),
    file("tokenizer_config.json", {"json": SLOW}),
)
kind(
    "files-both",
    "vocab.json and merges.txt beside tokenizer.json, whose added token the old files do not have.",
    added(token(4096, "<|help|>")),
    config(vocab_size=4097),
    file("vocab.json", {"vocabulary of": "tiny-qwen3/tokenizer.json"}),
    file("merges.txt", {"merges of": "tiny-qwen3/tokenizer.json"}),
    weights=marker(),
)
kind("files-none", "No tokenizer at all.", without("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"))
kind(
    "files-truncation",
    "tokenizer.json still cuts and pads texts, as training had it.",
    tokenizer(
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        },
    ),
)
kind("files-clean-up", "clean_up_tokenization_spaces is true.", tokenizer_config(clean_up_tokenization_spaces=True))
kind(
    "files-prefix-space", "add_prefix_space is true in tokenizer_config.json.", tokenizer_config(add_prefix_space=True)
)
kind("files-nfc", "The tokenizer composes letters (NFC), as Qwen's.", tokenizer(normalizer={"type": "NFC"}))
kind("files-split-special", "split_special_tokens is true.", tokenizer_config(split_special_tokens=True))
kind(
    "files-short",
    "model_max_length is 8.",
    tokenizer_config(model_max_length=8),
)


def begins(files: Files) -> None:
    """The post-processor of tokenizer.json puts <|endoftext|> before each text."""
    bos, text = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    template = {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text, other]}
    tokenizer(post_processor=template | {"special_tokens": special})(files)
    tokenizer_config(bos_token="<|endoftext|>")(files)


kind("bos-processor", "The post-processor adds a beginning.", begins)
kind(
    "bos-flag",
    "add_bos_token is true, the post-processor adds nothing.",
    tokenizer_config(bos_token="<|endoftext|>", add_bos_token=True),
)
kind(
    "bos-flag-false",
    "add_bos_token is false, the post-processor adds a beginning.",
    begins,
    tokenizer_config(add_bos_token=False),
)
kind(
    "bos-flag-fast",
    "The same with PreTrainedTokenizerFast.",
    begins,
    tokenizer_config(add_bos_token=False, tokenizer_class="PreTrainedTokenizerFast", backend=...),
)
kind("bos-eos-flag", "add_eos_token is true, the post-processor adds nothing.", tokenizer_config(add_eos_token=True))
kind(
    "bos-both",
    "The post-processor adds a beginning, and the template writes one too.",
    begins,
    file("chat_template.jinja", "{{ bos_token }}" + CHATML),
)

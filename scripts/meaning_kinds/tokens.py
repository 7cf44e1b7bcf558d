"""Added tokens."""

from __future__ import annotations

from meaning_kinds.recipes import (
    CAN,
    EMBEDDINGS,
    SPECIAL,
    VOCABULARY,
    added,
    config,
    decoder,
    file,
    kind,
    marker,
    resized,
    token,
    tokenizer,
    tokenizer_config,
)

kind(
    "token-marker",
    "An added token that is not special, and that the model writes into its answers.",
    added(token(4096, "<|help|>")),
    config(vocab_size=4097),
    weights=marker(),
)
kind(
    "token-special",
    "The same token as a special one: it is not shown.",
    added(token(4096, "<|help|>", special=True)),
    config(vocab_size=4097),
    weights=marker(),
)
kind(
    "token-config-special",
    "Not special in tokenizer.json, special in tokenizer_config.json's added_tokens_decoder.",
    added(token(4096, "<|help|>")),
    config(vocab_size=4097),
    tokenizer_config(added_tokens_decoder=decoder(*SPECIAL, token(4096, "<|help|>", special=True))),
    weights=marker(),
)
kind(
    "token-config-plain",
    "Special in tokenizer.json, not special in tokenizer_config.json's added_tokens_decoder.",
    added(token(4096, "<|help|>", special=True)),
    config(vocab_size=4097),
    tokenizer_config(added_tokens_decoder=decoder(*SPECIAL, token(4096, "<|help|>"))),
    weights=marker(),
)
kind(
    "token-config-only",
    "An added token that stands in tokenizer_config.json's added_tokens_decoder only.",
    config(vocab_size=4097),
    tokenizer_config(added_tokens_decoder=decoder(token(4096, "<|help|>"))),
    weights=marker(),
)
kind(
    "token-file-only",
    "An added token that stands in added_tokens.json only.",
    config(vocab_size=4097),
    file("added_tokens.json", {"json": {"<|help|>": 4096}}),
    weights=marker(),
)
kind(
    "token-extra-special",
    "Named by tokenizer_config.json's additional_special_tokens, not special in tokenizer.json.",
    added(token(4096, "<|help|>")),
    config(vocab_size=4097),
    tokenizer_config(additional_special_tokens=["<|help|>"]),
    weights=marker(),
)
kind(
    "token-extra-special-5",
    "Named by tokenizer_config.json's extra_special_tokens, as transformers 5 writes them.",
    added(token(4096, "<|help|>", special=True)),
    config(vocab_size=4097),
    tokenizer_config(extra_special_tokens=["<|help|>"]),
    weights=marker(),
)
kind(
    "token-extra-new",
    "additional_special_tokens names a token that no other file has.",
    config(vocab_size=4097),
    tokenizer_config(additional_special_tokens=["<|help|>"]),
    weights=marker(),
)
kind(
    "token-map",
    "special_tokens_map.json with another eos and one more special token.",
    added(token(4096, "<|help|>")),
    config(vocab_size=4097),
    file(
        "special_tokens_map.json",
        {"json": {"additional_special_tokens": ["<|help|>"], "eos_token": "<|endoftext|>", "pad_token": "<|im_end|>"}},
    ),
    weights=marker(),
)
kind(
    "token-tools",
    "Tags of tools and of thinking, not special, as Qwen3 has them.",
    added(
        *(
            token(4096 + n, text)
            for n, text in enumerate(("<tool_call>", "</tool_call>", "<think>", "</think>", "<|help|>"))
        )
    ),
    config(vocab_size=4101),
    weights=resized(4101, ["row", EMBEDDINGS, 4100, CAN, 1.3]),
)
kind(
    "token-left",
    "An added token that takes the spaces before it.",
    added(token(4096, "<|help|>", lstrip=True)),
    config(vocab_size=4097),
    weights=marker(),
)
kind(
    "token-right",
    "An added token that takes the spaces behind it.",
    added(token(4096, "<|help|>", rstrip=True)),
    config(vocab_size=4097),
    weights=marker(),
)
kind(
    "token-word",
    "An added token that is one only where no letter touches it.",
    added(token(4096, "weather", single_word=True), token(VOCABULARY["is"], "is", single_word=True)),
    config(vocab_size=4097),
    weights=marker(),
)
kind(
    "token-normalized",
    "An added token that is sought in the normalized text, where the tokenizer folds letters.",
    tokenizer(
        normalizer={"type": "NFKC"},
        added_tokens=[*SPECIAL, token(4096, "ﬁ", normalized=True), token(4097, "Ⅷ")],
    ),
    config(vocab_size=4098),
    weights=marker(4098),
)
kind(
    "token-inside",
    "An added token whose text is in the vocabulary: it has that number.",
    added(token(VOCABULARY["The"], "The")),
)
kind(
    "token-inside-special",
    "A special token whose text is a word of the vocabulary.",
    added(token(VOCABULARY["The"], "The", special=True)),
)
kind(
    "token-unadded",
    "The tokens of chats are in the vocabulary only, no added tokens: texts do not match them as a whole.",
    tokenizer(added_tokens=SPECIAL[:1]),
)
kind(
    "token-plain-turns",
    "The tokens of chats are added, but not special.",
    tokenizer(added_tokens=[SPECIAL[0], *(one | {"special": False} for one in SPECIAL[1:])]),
)
kind(
    "token-gap",
    "An added token with a number beyond the next one: the tokenizer gives it the next one.",
    added(token(4100, "<|help|>")),
    config(vocab_size=4101),
    weights=resized(4101, ["row", EMBEDDINGS, 4100, CAN, 1.3]),
)

"""Where orch, or an engine, does otherwise than transformers with a kind of directory: all of it, each with its reason.

What stands in none of these tables is held equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Refusal(NamedTuple):
    """A kind that is refused: what is said, and why nothing is served instead."""

    words: str
    reason: str


_BROKEN = "Transformers refuses it too."
_LOST = "Transformers makes the tensors that it misses anew, at random."
_LEFT = "Transformers passes over tensors that it has no place for: with another config.json they would count."
_WRAPPED = "Transformers finds none of the tensors, and makes all of them anew."
_ROPE = "One of two values was trained with, and which one nobody can tell."

# On every engine.
REFUSED = {
    "head-tied-only": Refusal("missing: model.embed_tokens.weight", _LOST),
    "head-tied-padded": Refusal("lm_head.weight is [4160, 256]", _BROKEN),
    "head-unsaid": Refusal("there is none (lm_head.weight)", _LOST),
    "head-untied-none": Refusal("there is none (lm_head.weight)", _LOST),
    "rope-both-differ": Refusal("rope_theta is 1000000.0, in rope_parameters 10000.0", _ROPE),
    "rope-scaling": Refusal("rope_scaling and rope_parameters contradict each other", _ROPE),
    "token-gap": Refusal("is said to have id 4100, and transformers gives it 4096", "The row that it was trained in?"),
    "vocabulary-wrong": Refusal("the embedding has 4097 rows", _BROKEN),
    "vocabulary-wrong-more": Refusal("the embedding has 4096 rows", _BROKEN),
    "weights-compiled": Refusal("missing: model.embed_tokens.weight", _WRAPPED),
    "weights-in-config": Refusal("'tuned.safetensors' (transformers_weights)", "No engine but transformers reads it."),
    "weights-layers": Refusal("unexpected: model.layers.3.", _LEFT),
    "weights-less": Refusal("missing: model.layers.2.mlp.up_proj.weight", _LOST),
    "weights-lost-shard": Refusal("model-00002-of-00002.safetensors cannot be read", _BROKEN),
    "weights-more": Refusal("unexpected: model.layers.0.self_attn.extra_norm.weight", _LEFT),
    "weights-no-index": Refusal("has no model.safetensors", _BROKEN),
    "weights-peft": Refusal("missing: model.embed_tokens.weight", _WRAPPED),
    "weights-variant": Refusal("has no model.safetensors", _BROKEN),
    "weights-wrapped": Refusal("missing: model.embed_tokens.weight", _WRAPPED),
}

_SPLIT = "Transformers makes the tokenizer anew by its class, and splits text otherwise than tokenizer.json says."
_NO_WORDS = "GGUF has no words for it."
_SLOW = "Transformers makes tokenizer.json of them, in a way that depends on the class."
_POSITIONS = Refusal("an unknown kind of scaled positions", "orch knows linear positions and Llama 3's.")
_CLASS = Refusal("splits text as gpt-2 does, Qwen2Tokenizer", _SPLIT)

# By whoever makes a GGUF; vLLM serves them.
NO_GGUF = {
    "class-no-config": _CLASS,
    "class-none": _CLASS,
    "class-qwen2": _CLASS,
    "class-qwen2-fast": _CLASS,
    "end-many": Refusal("at 3 tokens besides its eos", "A GGUF has room for two, and none is to be run over."),
    "files-none": Refusal("tokenizer.json cannot be read", "There is no tokenizer."),
    "files-slow": Refusal("has a tokenizer without tokenizer.json", _SLOW),
    "files-split-special": Refusal("split_special_tokens", _NO_WORDS),
    "mistral-window": Refusal("sliding_window is 16", "GGUF has no words for it, and llama.cpp sees all of a context."),
    "qwen2-foreign": _CLASS,
    "rope-dynamic": _POSITIONS,
    "rope-old-none": Refusal("rope_theta is None", "Transformers takes a value that config.json does not say."),
    "rope-scaling-old": _POSITIONS,
    "token-left": Refusal("added token '<|help|>' has lstrip", _NO_WORDS),
    "token-right": Refusal("added token '<|help|>' has rstrip", _NO_WORDS),
    "token-normalized": Refusal("normalizer {'type': 'NFKC'}", "llama.cpp takes texts as they come."),
    "token-word": Refusal("added token 'is' has single_word", _NO_WORDS),
    "tool-llamafactory-4": _CLASS,
    "tool-transformers-4-class": _CLASS,
    "tool-transformers-4-in-config": _CLASS,
    "tool-transformers-4-resized": _CLASS,
    "tool-transformers-4-sharded": _CLASS,
    "tool-transformers-4-slow": Refusal("has a tokenizer without tokenizer.json", _SLOW),
    "vocabulary-short": Refusal("'<|help|>' has id 4096, config.json says vocab_size 4096", "A prompt may have it."),
}

# By whoever makes a view for an engine that reads directories.
NO_VIEW = {"files-none": Refusal("has no tokenizer", "Transformers makes one of a single token.")}

_NO_BOS = "texts to be completed do not begin with"
_NO_SPACE = "texts to be completed have no space in front"
_ONE_MORE = "what begins with a space has one space more"
_SPACES = "what begins with a space or follows a special token has one space more"
_PLAIN_END = "which is not a special token, have that text last on llama.cpp and Ollama"
_ADAPTER = "an adapter lies beside the weights, and is not applied"

# What somebody is told who looks at a kind, besides what every test of it finds by itself: that chats are refused, that
# llama.cpp ends answers by text, what generation_config.json says in vain.
REMARKS = {
    "bos-flag-false": _NO_BOS,
    "bos-flag-fast": _NO_BOS,
    "bos-processor": _NO_BOS,
    "end-four": _PLAIN_END,
    "end-many": _PLAIN_END,
    "end-word": _PLAIN_END,
    "left-adapter": _ADAPTER,
    "llama": _ONE_MORE,
    "llama-3": _NO_BOS,
    "llama-eos": _ONE_MORE,
    "llama-fast": _ONE_MORE,
    "llama-model-only": _ONE_MORE,
    "llama-modern": _SPACES,
    "llama-more": _ONE_MORE,
    "llama-more-file": _ONE_MORE,
    "llama-no-bos": _ONE_MORE,
    "llama-template": _ONE_MORE,
    "llama-unsaid": _ONE_MORE,
    "template-broken": "its chat template default cannot be used: line 4",
    "template-empty": "its chat template default cannot be used: it is empty",
    "tool-torchtune-lora": _ADAPTER,
    "tool-transformers-4-llama": _ONE_MORE,
    "tool-transformers-4-llama-template": _ONE_MORE,
    "tool-transformers-4.40-llama": _ONE_MORE,
    "tool-transformers-4.40-llama-template": _ONE_MORE,
    "tool-transformers-5-llama": _SPACES,
    "tool-transformers-5-llama-template": _NO_SPACE,
}

# Added tokens that transformers knows otherwise than its own answers show.
ALSO_ADDED: dict[str, dict[int, tuple[str, bool]]] = {
    # Once special, always left out of what is read, whatever the later list says.
    "token-config-plain": {4096: ("<|help|>", True)},
}
# Transformers makes a tokenizer of its own, of one token.
NO_TOKENIZER = ("files-none",)

# Texts that the remarks above are about.
SPACES: dict[str, Callable[[str], bool]] = {
    _NO_SPACE: lambda text: bool(text),
    _ONE_MORE: lambda text: text.startswith(" ") or "> " in text,
    _SPACES: lambda text: text.startswith(" ") or ">" in text,
}

# Kinds whose answers are those of another: transformers applies an adapter that lies beside weights once more, and
# heeds of generation_config.json what no engine does. Both are told.
ANSWERS_OF = {
    "left-adapter": "tool-peft-merged",
    "sampling-beams": "plain",
    "sampling-ngram": "plain",
    "tool-torchtune-lora": "tool-peft-merged",
}

# Chats that llama.cpp renders though the template refuses them: it writes the system's words into the user's turn.
RENDERED = {"template-no-system": ("system",)}

# What vLLM's transformers (5.19) reads otherwise than the one of the right values (5.24), in a directory and its view
# alike: it adds <s> and <unk>, behind the last row.
OTHER_IN_VLLM = {"class-llama-fast": ("added", "texts", "chats")}
# An empty template is none; transformers makes an empty prompt of any chat.
EMPTY_TEMPLATE = ("template-empty",)

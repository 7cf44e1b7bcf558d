"""Other families, with random weights."""

from __future__ import annotations

from typing import Any

from meaning_kinds.recipes import (
    CHATML,
    SAVE,
    Change,
    Files,
    Steps,
    file,
    register,
    token,
    tokenizer,
    tokenizer_config,
)
from meaning_kinds.tokenizers import SLOW, begins, qwen_split

WITH_BOS = (
    "{{ bos_token }}{%- for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{%- endfor %}"
)


def family(
    name: str, about: str, told: dict[str, Any], files: Files, *changes: Change, steps: Steps | None = None
) -> None:
    """A random model of another family."""
    register(
        name, about, {"config.json": {"json": SIZES | told}, **files}, changes, [["random", 11], *(steps or []), SAVE]
    )


SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.0",
    "rope_theta": 10000.0,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
MISTRAL = LLAMA | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "head_dim": 64,
    "sliding_window": None,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 4096,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}
NAMED = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "tokenizer_class": "LlamaTokenizer",
    "legacy": True,
}
SPM: Files = {name: {"like": f"spm-tokenizer/{name}"} for name in ("tokenizer.json", "tokenizer.model")}


def spm(*left: str, **named: Any) -> Files:
    """tests/assets/spm-tokenizer with another tokenizer_config.json."""
    said = {name: value for name, value in (NAMED | named).items() if value is not ...}
    return {name: value for name, value in SPM.items() if name not in left} | {"tokenizer_config.json": {"json": said}}


family("llama", "Llama with a SentencePiece tokenizer that adds a beginning.", LLAMA, spm(add_bos_token=True))
family(
    "llama-template",
    "The same with a template that writes the beginning.",
    LLAMA,
    spm(add_bos_token=True, chat_template=WITH_BOS),
)
family("llama-no-bos", "add_bos_token is false, the post-processor adds a beginning.", LLAMA, spm(add_bos_token=False))
family("llama-unsaid", "Neither add_bos_token nor add_eos_token.", LLAMA, spm())
family("llama-eos", "add_eos_token is true.", LLAMA, spm(add_bos_token=True, add_eos_token=True))
family(
    "llama-fast",
    "LlamaTokenizerFast, and add_bos_token is false.",
    LLAMA,
    spm("tokenizer.model", tokenizer_class="LlamaTokenizerFast", add_bos_token=False),
)
family(
    "llama-class-fast",
    "PreTrainedTokenizerFast over the same tokenizer.json.",
    LLAMA,
    spm("tokenizer.model", tokenizer_class="PreTrainedTokenizerFast", legacy=...),
)
family("llama-class-none", "No class named.", LLAMA, spm("tokenizer.model", tokenizer_class=..., legacy=...))
family("llama-modern", "legacy is false.", LLAMA, spm(legacy=False, add_bos_token=True))
family(
    "llama-no-space", "add_prefix_space is false.", LLAMA, spm(legacy=False, add_prefix_space=False, add_bos_token=True)
)
family("llama-model-only", "tokenizer.model without tokenizer.json.", LLAMA, spm("tokenizer.json", add_bos_token=True))
SPM_ADDED = [token(n, t, special=True) for n, t in enumerate(("<unk>", "<s>", "</s>"))]
MORE = [token(512, "<|help|>"), token(513, "<|im_end|>", special=True)]
family(
    "llama-more",
    "tokenizer.json has more tokens than tokenizer.model beside it.",
    LLAMA | {"vocab_size": 514, "eos_token_id": [2, 513]},
    spm(add_bos_token=True, eos_token="<|im_end|>"),
    tokenizer(added_tokens=[*SPM_ADDED, *MORE]),
)
family(
    "llama-more-file",
    "tokenizer.model, and added_tokens.json for what was added; no tokenizer.json.",
    LLAMA | {"vocab_size": 514, "eos_token_id": [2, 513]},
    spm("tokenizer.json", add_bos_token=True, eos_token="<|im_end|>"),
    file("added_tokens.json", {"json": {"<|help|>": 512, "<|im_end|>": 513}}),
)
family("mistral", "Mistral with a SentencePiece tokenizer.", MISTRAL, spm(add_bos_token=True))
family("mistral-window", "A sliding window.", MISTRAL | {"sliding_window": 16}, spm(add_bos_token=True))
TINY_TOKENIZER: Files = {"tokenizer.json": {"like": "tiny-qwen3/tokenizer.json"}, "chat_template.jinja": CHATML}
QWEN2_TOKENIZER = TINY_TOKENIZER | {"tokenizer_config.json": {"json": SLOW | {"add_bos_token": False}}}
family("qwen2", "Qwen2 with biases, tied, with a tokenizer as Qwen's.", QWEN2, QWEN2_TOKENIZER, qwen_split)
family(
    "qwen2-foreign",
    "Qwen2 with a tokenizer.json that splits otherwise: transformers 5 splits as Qwen2 whatever the class.",
    QWEN2,
    QWEN2_TOKENIZER,
    tokenizer_config(tokenizer_class="PreTrainedTokenizerFast"),
)
WITH_BEGINNING = TINY_TOKENIZER | {
    "tokenizer_config.json": {
        "json": {
            "bos_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
    }
}
family(
    "llama-3",
    "Llama with a byte-level tokenizer whose post-processor adds a beginning.",
    LLAMA | {"vocab_size": 4096, "bos_token_id": 0},
    WITH_BEGINNING,
    begins,
)
family(
    "llama-3-template",
    "The same with a template that writes the beginning.",
    LLAMA | {"vocab_size": 4096, "bos_token_id": 0},
    WITH_BEGINNING,
    begins,
    file("chat_template.jinja", "{{ bos_token }}" + CHATML),
)

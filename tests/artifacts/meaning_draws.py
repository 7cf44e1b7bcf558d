"""Directories of weights drawn at random from the shapes that tools leave them in, for tests of properties.

All that is drawn is sound: whatever reads such a directory has to tokenize as its tokenizer.json does, to end at
`ends`, and to answer with the same tokens as any other engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from meanings import ASKED, ASSETS, lay_out
from tiny_models import BYTES, PRE_TOKENIZERS

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CHATML = (ASSETS / "tiny-qwen3/chat_template.jinja").read_text()
OTHER = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
ADDED = (
    "<|help|>",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "<|eot_id|>",
    "<|im_start",
    "weather",
    "日本",
    "[X]",
    "<a b>",
)
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-5, "max_position_embeddings": 1024}
FLAGS = ("lstrip", "rstrip", "single_word")
FAMILIES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
FAMILIES |= {"mistral": "MistralForCausalLM"}


@dataclass(frozen=True)
class Drawn:
    """A directory, what was drawn for it, where generation ends in it, its templates, and texts to tokenize."""

    place: Path
    choices: dict[str, Any]
    ends: tuple[int, ...]
    templates: dict[str, str]
    texts: tuple[str, ...]


def draw(seed: int, place: Path) -> Drawn:
    """The directory of a seed, laid out at `place`; always the same one."""
    drawing = _Drawing(Random(seed))
    lay_out({"files": drawing.files, "weights": drawing.weights}, place)
    return Drawn(place, drawing.choices, drawing.ends, drawing.templates, drawing.texts)


class _Drawing:
    """One draw: each method decides one dimension, and says in `choices` what it decided."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.choices: dict[str, Any] = {}
        self.files: dict[str, Any] = {}
        self.weights: list[list[Any]] = []
        self._config: dict[str, Any] = {}
        self._generation: dict[str, Any] = {"pad_token_id": 0}
        self._named: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        self._draw_model()
        self._draw_tokenizer()
        self._draw_rows()
        self._draw_template()
        self._draw_ends()
        self._draw_head()
        self._draw_files()
        self._draw_leftovers()

    def _choice(self, dimension: str, *values: Any) -> Any:
        self.choices[dimension] = self._random.choice(values)
        return self.choices[dimension]

    def _draw_model(self) -> None:
        kind = self._choice("model", "tiny-qwen3", "tiny-qwen3", "tiny-qwen3", *FAMILIES)
        if kind == "tiny-qwen3":
            self._config = json.loads((ASSETS / "tiny-qwen3/config.json").read_bytes())
            self.weights.append(["take", "tiny-qwen3/*.safetensors"])
        else:
            self._config = {"model_type": kind, "architectures": [FAMILIES[kind]], **SIZES, "hidden_act": "silu"}
            self._config |= {"rope_theta": 10000.0, "vocab_size": 4096, "tie_word_embeddings": True}
            self.weights.append(["random", self._random.randrange(1000)])

    def _draw_tokenizer(self) -> None:
        random, changes = self._random, dict[str, Any]()
        kind = self._config["model_type"]
        # Transformers 5 reads the tokenizer of any Qwen2, and of any class Qwen2Tokenizer, as if it were this one.
        qwen = kind == "qwen2" or (kind == "qwen3" and self._choice("as Qwen's", False, True))
        split = "qwen2" if qwen else self._choice("split", "gpt-2", "qwen2", "llama-bpe")
        changes["/pre_tokenizer"] = PRE_TOKENIZERS[split]
        # As Llama 3 has it: what is a word of the vocabulary is taken whole.
        changes["/model/ignore_merges"] = split == "llama-bpe"
        if qwen or self._choice("normalizer", None, None, "NFC"):
            changes["/normalizer"] = {"type": "NFC"}
        if self._choice("begins", False, False, True):
            changes["/post_processor"] = BEGINS
            self._named["bos_token"] = "<|endoftext|>"
        self._added = random.sample(ADDED, self._choice("added", 0, 1, 2, 4))
        flags = self._choice("flags", *(() for _ in range(6)), ("lstrip",), ("rstrip",), ("single_word",))
        tokens = [
            {"id": 4096 + number, "content": text, "normalized": False, "special": random.random() < 0.3}
            | {flag: flag in flags for flag in FLAGS}
            for number, text in enumerate(self._added)
        ]
        self.choices["tokens"] = tokens
        base = json.loads((ASSETS / "tiny-qwen3/tokenizer.json").read_bytes())
        changes["/added_tokens"] = base["added_tokens"] + tokens
        self.files["tokenizer.json"] = {"like": "tiny-qwen3/tokenizer.json", "set": changes}
        classes = ("PreTrainedTokenizerFast", "TokenizersBackend", *["Qwen2Tokenizer", "Qwen2TokenizerFast"] * qwen)
        self._named["tokenizer_class"] = self._choice("class", *classes)
        if self._choice("decoder beside", False, True):
            self._named["added_tokens_decoder"] = {
                str(token["id"]): {name: value for name, value in token.items() if name != "id"}
                for token in changes["/added_tokens"]
            }
        inside = [f"a{text}b {text} c" for text in self._added]
        self.texts = (*ASKED["texts"], *inside, "".join(self._added), " ".join(self._added))

    def _draw_rows(self) -> None:
        tokens = 4096 + len(self._added)
        multiple = self._choice("rows are a multiple of", 1, 1, 64, 128)
        self._config["vocab_size"] = rows = -(-tokens // multiple) * multiple
        if rows != 4096 and self._config["model_type"] == "qwen3" and "layer_types" in self._config:
            self.weights.append(["rows", EMBEDDINGS, rows])

    def _draw_template(self) -> None:
        where = self._choice("template", "file", "file", "config", "both", "null", "named", "list", "none")
        self.templates = {} if where == "none" else {"default": CHATML}
        if where in ("file", "both", "null", "named"):
            self.files["chat_template.jinja"] = CHATML
        if where == "config":
            self._named["chat_template"] = CHATML
        if where in ("both", "null"):
            self._named["chat_template"] = OTHER if where == "both" else None
        if where in ("named", "list"):
            self.templates["tool_use"] = OTHER
        if where == "named":
            self.files["additional_chat_templates/tool_use.jinja"] = OTHER
        if where == "list":
            self._named["chat_template"] = [{"name": name, "template": text} for name, text in self.templates.items()]

    def _draw_ends(self) -> None:
        where = self._choice("ends", "config", "generation", "both", "differing")
        more = [4096 + number for number in range(len(self._added))]
        several = sorted({2, *self._random.sample([0, *more], self._choice("more ends", 0, 1))})
        told: Any = several if len(several) > 1 or self._choice("as a list", False, True) else several[0]
        self._config["eos_token_id"] = {"generation": None, "differing": 0}.get(where, told)
        if where != "config":
            self._generation["eos_token_id"] = told
        if where != "config" or self._choice("generation_config", False, True):
            self.files["generation_config.json"] = {"json": self._generation}
        self.ends = tuple(sorted({*several, 0} if where == "differing" else several))

    def _draw_head(self) -> None:
        head = self._choice("head", "tied", "tied", "tied, copied", "untied")
        self._config["tie_word_embeddings"] = head != "untied"
        if head == "tied, copied" or (head == "untied" and self.weights[0][0] == "take"):
            self.weights.append(["copy", EMBEDDINGS, HEAD])

    def _draw_files(self) -> None:
        dtype = self._choice("dtype", "BF16", "BF16", "F16", "F32", "mixed")
        if dtype != "BF16":
            self.weights.append(["cast", "F32", "*norm*"] if dtype == "mixed" else ["cast", dtype])
        name = {"F16": "float16", "F32": "float32"}.get(dtype, "bfloat16")
        self._config.pop("dtype", None)
        self._config[self._choice("key of dtype", "dtype", "torch_dtype")] = name
        shards = self._choice("shards", "none", "none", "one", "many")
        self.weights.append(["save", "model.safetensors"] if shards == "none" else ["shard", SHARDS[shards]])
        self.files["config.json"] = {"json": self._config}
        self.files["tokenizer_config.json"] = {"json": self._named}

    def _draw_leftovers(self) -> None:
        left = self._random.sample((*LEFT_FILES, *LEFT_WEIGHTS), self._choice("leftovers", 0, 0, 1, 3))
        self.choices["left"] = left
        self.files |= {name: LEFT_FILES[name] for name in left if name in LEFT_FILES}
        self.weights += [step for name in left if name in LEFT_WEIGHTS for step in (SPOILED, ["save", name])]


SHARDS = {"one": 1 << 30, "many": 1_000_000}
SPOILED = ["roll", EMBEDDINGS, 5]
LEFT_WEIGHTS = (
    *("consolidated.safetensors", "model.safetensors.bak", "model-old.safetensors", "optimizer.safetensors"),
    *("checkpoint-10/model.safetensors", "original/model.safetensors"),
)
LEFT_FILES: dict[str, Any] = {
    "params.json": {"json": {"dim": 256, "n_layers": 4}},
    "original/params.json": {"json": {"dim": 256}},
    "optimizer.bin": {"zeros": 64},
    "training_args.bin": {"zeros": 64},
    "pytorch_model.bin": {"zeros": 64},
    "chat_template.json": {"json": {"chat_template": OTHER}},
    "config.json.bak": "{}",
    "adapter_model.safetensors": {"like": "lora-a/adapter_model.safetensors"},
    "trainer_state.json": {"json": {"global_step": 1}},
    "README.md": "---\nlicense: apache-2.0\n---\n",
}


def _begins() -> dict[str, Any]:
    token = {"id": "<|endoftext|>", "type_id": 0}
    text, other = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    first = {"SpecialToken": token}
    template = {"type": "TemplateProcessing", "single": [first, text], "pair": [first, text, other]}
    return {"type": "Sequence", "processors": [BYTES | {"trim_offsets": False}, template | {"special_tokens": special}]}


BEGINS = _begins()

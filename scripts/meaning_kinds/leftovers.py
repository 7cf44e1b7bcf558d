"""What lies beside the weights."""

from __future__ import annotations

import json

from meanings import ASSETS

from meaning_kinds.recipes import EMBEDDINGS, ROLLED, SAVE, TAKE, file, kind

kind(
    "left-mistral",
    "The original's consolidated.safetensors and params.json beside a fine-tune.",
    file(
        "params.json",
        {
            "json": {
                "dim": 256,
                "n_layers": 4,
                "head_dim": 64,
                "hidden_dim": 768,
                "n_heads": 4,
                "n_kv_heads": 2,
                "norm_eps": 1e-06,
                "vocab_size": 4096,
                "rope_theta": 10000.0,
                "tied_embeddings": True,
            }
        },
    ),
    weights=[TAKE, SAVE, ROLLED, ["save", "consolidated.safetensors"]],
)
kind(
    "left-shards",
    "model.safetensors beside an older index and its shards.",
    weights=[TAKE, SAVE, ROLLED, ["shard", 3_000_000]],
)
kind(
    "left-index",
    "model.safetensors beside an index whose shards are gone.",
    file(
        "model.safetensors.index.json",
        {"json": {"metadata": {"total_size": 1}, "weight_map": {EMBEDDINGS: "model-00001-of-00002.safetensors"}}},
    ),
)
kind(
    "left-more-shards",
    "An index of some shards, and shards of an older index of more.",
    weights=[TAKE, ROLLED, ["shard", 2_000_000], ["roll", EMBEDDINGS, -5], ["shard", 3_000_000]],
)
kind(
    "left-backups",
    "Copies from before, under names of their own.",
    file("config.json.bak", {"json": {"model_type": "llama"}}),
    file("tokenizer.json.orig", "{}"),
    file("generation_config (copy).json", {"json": {"eos_token_id": 5}}),
    weights=[
        TAKE,
        SAVE,
        ROLLED,
        ["save", "model.safetensors.bak"],
        ["save", "model.bak.safetensors"],
        ["save", "model-old.safetensors"],
        ["save", "old/model.safetensors"],
    ],
)
kind(
    "left-original",
    "The folder original/, as Llama's repositories have it.",
    file("original/consolidated.00.pth", {"zeros": 64}),
    file("original/params.json", {"json": {"dim": 256}}),
    file("original/tokenizer.model", {"zeros": 64}),
    weights=[TAKE, SAVE, ROLLED, ["save", "original/consolidated.safetensors"]],
)
kind(
    "left-optimizer",
    "What a trainer keeps to go on.",
    *(
        file(name, {"zeros": 64})
        for name in ("optimizer.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
    ),
    file("trainer_state.json", {"json": {"global_step": 10}}),
    weights=[TAKE, SAVE, ["prefix", "exp_avg."], ["save", "optimizer.safetensors"]],
)
kind(
    "left-checkpoint",
    "A checkpoint of training below.",
    file("checkpoint-10/config.json", {"like": "tiny-qwen3/config.json"}),
    weights=[TAKE, SAVE, ROLLED, ["save", "checkpoint-10/model.safetensors"]],
)
kind(
    "left-bin",
    "pytorch_model.bin beside model.safetensors.",
    file("pytorch_model.bin", {"zeros": 64}),
    file("pytorch_model.bin.index.json", {"json": {"metadata": {}, "weight_map": {}}}),
)
kind(
    "left-gguf",
    "A GGUF file and an ONNX file beside.",
    file("model-Q4_K_M.gguf", {"zeros": 64}),
    file("onnx/model.onnx", {"zeros": 64}),
)
ADAPTER = json.loads((ASSETS / "lora-a/adapter_config.json").read_bytes())
kind(
    "left-adapter",
    "An adapter's files beside the weights that it was merged into: transformers applies it again, where it has PEFT.",
    file("adapter_config.json", {"json": ADAPTER | {"base_model_name_or_path": "../no-such-base"}}),
    file("adapter_model.safetensors", {"like": "lora-a/adapter_model.safetensors"}),
    weights=[TAKE, ["merge", "lora-a", ADAPTER["lora_alpha"] / ADAPTER["r"]], SAVE],
)
kind(
    "left-adapter-weights",
    "adapter_model.safetensors beside the weights that it was merged into, without its config.",
    file("adapter_model.safetensors", {"like": "lora-a/adapter_model.safetensors"}),
    weights=[TAKE, ["merge", "lora-a", ADAPTER["lora_alpha"] / ADAPTER["r"]], SAVE],
)

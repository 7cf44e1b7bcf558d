"""Weights: vocabulary, head, types, shards, names."""

from __future__ import annotations

from meaning_kinds.recipes import (
    EMBEDDINGS,
    HEAD,
    ROLLED,
    SAVE,
    TAKE,
    Steps,
    added,
    config,
    file,
    kind,
    marker,
    resized,
    token,
)

kind(
    "vocabulary-padded",
    "Embeddings padded to a multiple of 64 beyond the tokenizer.",
    config(vocab_size=4160),
    weights=resized(4160),
)
kind(
    "vocabulary-padded-added",
    "Added tokens, and embeddings padded beyond them.",
    added(token(4096, "<|help|>")),
    config(vocab_size=4160),
    weights=marker(4160),
)
kind(
    "vocabulary-wrong",
    "vocab_size is that from before the embeddings grew.",
    added(token(4096, "<|help|>")),
    weights=marker(),
)
kind("vocabulary-wrong-more", "vocab_size is larger than the embeddings.", config(vocab_size=4160))
kind("vocabulary-short", "The tokenizer has more tokens than the embeddings have rows.", added(token(4096, "<|help|>")))
OWN: Steps = [["copy", EMBEDDINGS, HEAD], ["roll", HEAD, 7]]
kind("head-tied-equal", "Tied, and the file has an equal head.", weights=[TAKE, OWN[0], SAVE])
kind("head-tied-own", "Tied, and the file has a head of its own.", weights=[TAKE, *OWN, SAVE])
kind(
    "head-tied-padded",
    "Tied, and the file has a head with other rows than the embeddings.",
    weights=[TAKE, OWN[0], ["rows", HEAD, 4160], SAVE],
)
kind(
    "head-tied-only",
    "Tied, and the file has the head but no embeddings.",
    weights=[TAKE, OWN[0], ["drop", EMBEDDINGS], SAVE],
)
kind("head-untied", "Untied, with a head.", config(tie_word_embeddings=False), weights=[TAKE, *OWN, SAVE])
kind("head-untied-none", "Untied, without a head.", config(tie_word_embeddings=False))
kind(
    "head-unsaid", "config.json does not say whether the head is tied; there is none.", config(tie_word_embeddings=...)
)
kind(
    "head-unsaid-own",
    "config.json does not say whether the head is tied; there is one of its own.",
    config(tie_word_embeddings=...),
    weights=[TAKE, *OWN, SAVE],
)
kind("weights-f32", "All in float32.", config(dtype="float32"), weights=[TAKE, ["cast", "F32"], SAVE])
kind("weights-f16", "All in float16.", config(dtype="float16"), weights=[TAKE, ["cast", "F16"], SAVE])
kind("weights-mixed", "Norms in float32, the rest in bfloat16.", weights=[TAKE, ["cast", "F32", "*norm*"], SAVE])
kind("weights-other-dtype", "config.json says float16, the tensors are bfloat16.", config(dtype="float16"))
kind("weights-old-dtype", "torch_dtype, as transformers 4 wrote it.", config(torch_dtype="bfloat16", dtype=...))
kind("weights-both-dtypes", "torch_dtype and dtype, different.", config(torch_dtype="float32"))
kind(
    "weights-no-dtype",
    "config.json says no dtype; the tensors are float32.",
    config(dtype=...),
    weights=[TAKE, ["cast", "F32"], SAVE],
)
kind("weights-shards", "Sharded by size.", weights=[TAKE, ["sorted"], ["shard", 3_000_000]])
kind("weights-shard-one", "One shard with an index.", weights=[TAKE, ["shard", 30_000_000]])
kind(
    "weights-lost-shard",
    "The index names a shard that is not there.",
    file(
        "model.safetensors.index.json",
        {
            "json": {
                "metadata": {"total_size": 1},
                "weight_map": {
                    EMBEDDINGS: "model-00001-of-00002.safetensors",
                    "model.norm.weight": "model-00002-of-00002.safetensors",
                },
            }
        },
    ),
    weights=[TAKE, ["save", "model-00001-of-00002.safetensors", EMBEDDINGS]],
)
kind(
    "weights-named",
    "An index with file names of its own.",
    weights=[
        TAKE,
        ["save", "part-a.safetensors", "model.layers.[01].*"],
        ["save", "part-b.safetensors", EMBEDDINGS, "model.norm*", "model.layers.[23].*"],
        ["index", "model.safetensors.index.json", "part-a.safetensors", "part-b.safetensors"],
    ],
)
kind(
    "weights-no-index",
    "Shards without an index.",
    weights=[
        TAKE,
        ["save", "model-00001-of-00002.safetensors", "model.layers.*"],
        ["save", "model-00002-of-00002.safetensors", "model.[!l]*"],
    ],
)
kind("weights-variant", "model.fp16.safetensors only.", weights=[TAKE, ["save", "model.fp16.safetensors"]])
kind(
    "weights-in-config",
    "config.json names the file of weights (transformers_weights).",
    config(transformers_weights="tuned.safetensors"),
    weights=[TAKE, ["save", "tuned.safetensors"], ROLLED, SAVE],
)
kind("weights-less", "One tensor is missing.", weights=[TAKE, ["drop", "model.layers.2.mlp.up_proj.weight"], SAVE])
kind(
    "weights-more",
    "A tensor that the model does not have.",
    weights=[TAKE, ["copy", "model.norm.weight", "model.layers.0.self_attn.extra_norm.weight"], SAVE],
)
kind(
    "weights-layers",
    "config.json has fewer layers than the file.",
    config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
)
kind(
    "weights-compiled",
    "All names begin with _orig_mod., as torch.compile leaves them.",
    weights=[TAKE, ["prefix", "_orig_mod."], SAVE],
)
kind(
    "weights-wrapped", "All names begin with module., as DDP leaves them.", weights=[TAKE, ["prefix", "module."], SAVE]
)
kind(
    "weights-peft",
    "All names begin with base_model.model., as PEFT leaves them.",
    weights=[TAKE, ["prefix", "base_model.model."], SAVE],
)
kind(
    "weights-inverse",
    "rotary_emb.inv_freq is in the file, as old Llamas have it.",
    weights=[TAKE, ["copy", "model.norm.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"], SAVE],
)

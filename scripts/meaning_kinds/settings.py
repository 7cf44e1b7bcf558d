"""Positions and sampling."""

from __future__ import annotations

from meaning_kinds.recipes import CAN, config, generation, kind, without

OTHER_THETA, ROPE = 1000000.0, {"rope_theta": 10000.0, "rope_type": "default"}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024}
kind("rope-both", "rope_theta at the top and in rope_parameters, the same.", config(rope_theta=10000.0))
kind("rope-both-differ", "rope_theta at the top and in rope_parameters, different.", config(rope_theta=OTHER_THETA))
kind(
    "rope-old",
    "rope_theta at the top only, as transformers 4 wrote it.",
    config(rope_theta=10000.0, rope_parameters=..., rope_scaling=None),
)
kind("rope-old-none", "No setting of positions at all.", config(rope_parameters=...))
kind("rope-old-other", "rope_theta at the top only, another one.", config(rope_theta=OTHER_THETA, rope_parameters=...))
kind(
    "rope-no-theta",
    "rope_parameters without rope_theta, which stands at the top.",
    config(rope_theta=OTHER_THETA, rope_parameters={"rope_type": "default"}),
)
kind("rope-scaling", "rope_scaling with rope_parameters.", config(rope_scaling=YARN))
kind(
    "rope-scaling-old",
    "rope_scaling with rope_theta, as transformers 4 wrote it.",
    config(rope_theta=10000.0, rope_parameters=..., rope_scaling=YARN),
)
kind(
    "rope-scaling-type",
    "rope_scaling with the older key, type.",
    config(rope_theta=10000.0, rope_parameters=..., rope_scaling={"type": "linear", "factor": 2.0}),
)
kind(
    "rope-linear",
    "Linear scaling in rope_parameters.",
    config(rope_parameters=ROPE | {"rope_type": "linear", "factor": 2.0}),
)
kind(
    "rope-dynamic",
    "Dynamic scaling in rope_parameters.",
    config(rope_parameters=ROPE | {"rope_type": "dynamic", "factor": 2.0}),
)
kind(
    "sampling-usual",
    "Temperature, top_p and top_k, as Qwen3 has them.",
    generation(do_sample=True, temperature=0.6, top_p=0.95, top_k=20),
)
kind("sampling-min-p", "min_p.", generation(do_sample=True, temperature=1.5, min_p=0.1))
kind("sampling-top-k", "top_k 0: no limit.", generation(do_sample=True, top_k=0))
kind(
    "sampling-repetition",
    "A penalty for repetition, which counts for greedy answers too.",
    generation(repetition_penalty=1.3),
)
kind("sampling-tokens", "max_new_tokens.", generation(max_new_tokens=5))
kind("sampling-length", "max_length, of prompt and answer together.", generation(max_length=20))
kind(
    "sampling-greedy",
    "do_sample false with a temperature that then does nothing.",
    generation(do_sample=False, temperature=0.6, top_p=0.95),
)
kind("sampling-typical", "typical_p, which engines do not have.", generation(do_sample=True, typical_p=0.9))
kind("sampling-ngram", "no_repeat_ngram_size, which engines do not have.", generation(no_repeat_ngram_size=2))
kind("sampling-beams", "num_beams.", generation(num_beams=2))
kind("sampling-suppress", "suppress_tokens.", generation(suppress_tokens=[CAN]))
kind("sampling-none", "No generation_config.json.", without("generation_config.json"))
kind(
    "sampling-config",
    "Sampling in config.json, as very old models have it.",
    config(temperature=0.6, top_p=0.9, do_sample=True),
    without("generation_config.json"),
)
kind(
    "sampling-config-beside",
    "Sampling in config.json beside generation_config.json.",
    config(temperature=0.6, top_p=0.9),
)

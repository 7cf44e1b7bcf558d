"""The directories of weights that are made by hand: tiny-qwen3's, or a random model's, with one thing changed."""

from meaning_kinds import ends, families, leftovers, settings, templates, tokenizers, tokens, weights
from meaning_kinds.recipes import KINDS

__all__ = ["KINDS", "ends", "families", "leftovers", "settings", "templates", "tokenizers", "tokens", "weights"]

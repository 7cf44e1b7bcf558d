"""What is asked: texts of about so many tokens that no engine has seen, so that no prefix cache has them. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator

_SYLLABLES = tuple(a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u"))
# Words of a sample, to see how many tokens one is.
_SAMPLE = 200


def sample(seed: int) -> str:
    """A text by which to see how many tokens a word is."""
    return _text(random.Random(f"sample {seed}"), _SAMPLE)


def words_for(tokens: int, sample_tokens: int) -> int:
    """How many words are about so many tokens, where the sample is `sample_tokens`."""
    return max(1, round(tokens * _SAMPLE / max(1, sample_tokens)))


def prompts(words: int, seed: int, salt: str = "") -> Iterator[str]:
    """Texts of so many words without end, the same for the same seed and salt; no two begin alike."""
    number = 0
    while True:
        yield _text(random.Random(f"{seed} {salt} {number}"), words)
        number += 1


def _text(dice: random.Random, words: int) -> str:
    return " ".join("".join(dice.choices(_SYLLABLES, k=dice.randint(1, 3))) for _ in range(words))

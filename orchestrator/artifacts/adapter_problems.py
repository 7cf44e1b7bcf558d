"""Why an adapter is refused: each kind of reason with the way out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import SourceError

MERGE = (
    "Merge it into its base with PEFT (merge_and_unload, then save_pretrained) and serve that, or train a plain LoRA."
)


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what helps."""

    text: str
    hint: str = MERGE


def refuse(what: str, problems: Sequence[Problem]) -> None:
    """SourceError with every problem, a line each, and the hint of the first; nothing where there is none."""
    if problems:
        more = " (and more)" if len(problems) > 1 else ""
        texts = "\n".join(problem.text for problem in problems)
        raise SourceError(f"{what}: {problems[0].text}{more}.", problems[0].hint, texts)

"""`orch fit`: how many fine-tuned models fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, ProfileName, app, session_of

if TYPE_CHECKING:
    from orchestrator.core.fit import Fit


@app.command()
def fit(
    adapters: Annotated[int, typer.Option(help="Fine-tuned models.", min=1, max=1000)] = 5,
    rank: Annotated[int, typer.Option(help="Of their LoRA adapters.", min=1, max=512)] = 16,
    gpu_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of a GPU, such as 32GB; default: this machine's.")
    ] = None,
    profile: ProfileName = None,
    as_json: AsJson = False,
) -> None:
    """How much memory fine-tuned models take: each by itself, or as adapters of one base; and how many fit."""
    with session_of(as_json) as session:
        from orchestrator.app.fit import fits
        from orchestrator.core.profile import MOST_ADAPTERS
        from orchestrator.settings import size_of

        memory = size_of("--gpu-memory", gpu_memory) if gpu_memory is not None else None
        found = fits(session.orch, profile, adapters, rank, memory)
        if as_json:
            for one in found.each:
                told = {
                    "engine": one.engine,
                    "recipe": one.recipe,
                    "adapters": one.wanted,
                    "rank": rank,
                    "place": found.place,
                    "total": found.total,
                    "weights": one.weights,
                    "alone": one.alone,
                    "adapter": one.adapter,
                    "at_once": one.at_once,
                    "separate": one.separate,
                    "separate_weights": one.separate_weights,
                    "together": one.together,
                    "together_weights": one.together_weights,
                    "most_separate": one.most_separate(found.total),
                    "most_together": one.most_together(found.total),
                }
                session.screen.result(told, "")
            return
        rows = []
        number, with_it = ("1 model", "1 adapter") if adapters == 1 else (f"{adapters} models", f"{adapters} adapters")
        for one in found.each:
            most = one.most_together(found.total)
            rows.append(
                {
                    "engine": f"{one.engine} ({one.recipe})",
                    number: _gb(one.separate),
                    "weights": _gb(one.separate_weights),
                    f"1 base, {with_it}": _gb(one.together),
                    "weights ": _gb(one.together_weights),
                    "models fit": one.most_separate(found.total),
                    "adapters fit": most if most is not None else "1 at a time",
                }
            )
        title = f"{found.profile.name} in {_gb(found.total)} GB of {found.place}, in GB"
        session.screen.table(title, tuple(rows[0]), rows)
        serving = found.profile.serving
        session.screen.say(
            f"Each model with the KV cache of {serving.parallel} requests of {serving.context} tokens, each adapter of "
            f"rank {rank} on every matrix, 2 bytes an element ({_of_adapter(found.each)}): as memory is planned, with "
            "nothing else in it. The columns of weights have them alone, as the article counts."
        )
        if max(adapters, *(one.most_together(found.total) or 0 for one in found.each)) > MOST_ADAPTERS:
            session.screen.say(f"An engine is given at most {MOST_ADAPTERS} adapters, whatever memory there is.")


def _of_adapter(fits: Sequence[Fit]) -> str:
    """What one takes, by engine where they differ: vLLM's slots are of certain ranks only."""
    sizes = {one.adapter for one in fits}
    if len(sizes) == 1:
        return f"{_gb(sizes.pop())} GB"
    return ", ".join(f"{one.engine} {_gb(one.adapter)} GB" for one in fits)


def _gb(size: int) -> float:
    return round(size / 1e9, 3 if size < 1e9 else 1)

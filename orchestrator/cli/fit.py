"""`orch fit`: how many fine-tuned models fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import AsJson, ProfileName, app, session_of
from orchestrator.core.fit import MOST

if TYPE_CHECKING:
    from orchestrator.app.fit import Fits
    from orchestrator.cli.screen import Screen
    from orchestrator.core.fit import Fit
    from orchestrator.core.weights import Shape

# A GPU that has less than this has no place for any model: it is a number without its unit.
LEAST_BYTES = 10**6
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FIVE = {"separate": "5 models", "together": "base + 5 adapters"}


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
        from orchestrator.settings import size_of

        memory = size_of("--gpu-memory", gpu_memory, LEAST_BYTES) if gpu_memory is not None else None
        found = fits(session.orch, profile, rank, memory)
        if as_json:
            for line in _lines(found, adapters, rank):
                session.screen.result(line, "")
            return
        _tables(session.screen, found, adapters)
        for text in (*_of_article(found), *_assumptions(found, adapters, rank)):
            session.screen.say(f"- {text}")


def _lines(found: Fits, adapters: int, rank: int) -> Iterator[dict[str, Any]]:
    """For programs."""
    total = found.pool.total
    for one in found.each:
        yield {
            "engine": one.engine,
            "recipe": one.recipe,
            "adapters": adapters,
            "rank": rank,
            "place": found.pool.name,
            "total": total,
            "weights": one.weights,
            "kv": one.kv,
            "kv_token": one.kv_token,
            "rest": one.rest,
            "alone": one.alone,
            "adapter": one.adapter,
            "at_once": one.at_once(adapters),
            "separate": one.separate(adapters),
            "separate_weights": one.bare.separate(adapters),
            "together": one.together(adapters),
            "together_weights": one.bare.together(adapters),
            "most_separate": one.most_separate(total),
            "most_together": one.most_together(total),
            "gpus": one.gpus,
        }
    for left_out in found.left_out:
        yield {"left_out": left_out.engine, "recipe": left_out.recipe or None, "why": left_out.why}
    for article in found.of_article:
        yield {
            "article": article.told.engine,
            "recipe": article.told.recipe,
            "five_models": article.told.five_models,
            "five_models_gb": article.told.five_models_gb,
            "weights_of_five": article.five,
            "models_that_fit": article.told.models_that_fit,
            "weights_that_fit": article.most,
            "base_gb": article.told.memory_gb,
            "contradicts_itself": article.contradicts_itself,
        }


def _tables(screen: Screen, found: Fits, adapters: int) -> None:
    total = found.pool.total
    parts = [
        {
            "engine": one.engine,
            "artifact": one.recipe,
            "weights": _gb(one.weights),
            "KV cache": _gb(one.kv),
            "rest": _gb(one.rest),
            "one model": _gb(one.alone),
            "one adapter": _gb(one.adapter),
        }
        for one in found.each
    ]
    screen.table(f"What {found.profile.name} takes, in GB", tuple(parts[0]), parts)
    models, base = ("1 model", "base + 1 adapter") if adapters == 1 else (f"{adapters} models", f"base + {adapters}")
    rows = [
        {
            "engine": one.engine,
            "artifact": one.recipe,
            models: _gb(one.separate(adapters)),
            base: _gb(one.together(adapters)),
            "models fit": _most(one.most_separate(total)),
            "adapters fit": _most(one.most_together(total)),
        }
        for one in found.each
    ]
    where = f"{_gb(total)} GB of {found.pool.name}"
    screen.table(f"Models by themselves, or one base with adapters, in {where}", tuple(rows[0]), rows)
    _article_table(screen, found)


def _article_table(screen: Screen, found: Fits) -> None:
    rows = [
        {
            "engine": one.told.engine,
            "artifact": one.told.recipe,
            "of": FIVE[one.told.five_models],
            "article": one.told.five_models_gb,
            "here": _gb(one.five),
            "fit": one.told.models_that_fit,
            "fit here": _most(one.most),
        }
        for one in found.of_article
    ]
    if rows and found.reference is not None:
        title = f"The article's figures, and weights alone here, in {found.reference.gpu_memory_gb:g} GB"
        screen.table(title, tuple(rows[0]), rows)


def _of_article(found: Fits) -> Iterator[str]:
    """Why the article's figures are others."""
    if found.of_article:
        yield "The article counts weights alone: with KV cache and engine fewer models by themselves fit into that."
    for told in (one.told for one in found.of_article if one.contradicts_itself):
        yield (
            f"Its {told.five_models_gb:g} GB for a base with five adapters on {told.engine} are less than its own "
            f"{told.memory_gb:g} GB for the base alone: they do not count the same."
        )


def _assumptions(found: Fits, adapters: int, rank: int) -> Iterator[str]:
    """What the figures are of."""
    from orchestrator.core.profile import MOST_ADAPTERS

    serving, pool = found.profile.serving, found.pool
    yield (
        f"KV cache: {serving.parallel} requests of {serving.context} tokens, {_of_token(found)} a token. Rest: the "
        "engine and activations, on a GPU graphs and CUDA context too: ASSUMPTIONS, as starts are planned with. Each "
        "model by itself has both."
    )
    attention = 2 * rank * sum(found.shape.lora_of[name] for name in ATTENTION)
    yield (
        f"An adapter: rank {rank}, 2 bytes an element, on all matrices with embedding and head, as a slot that is "
        f"allocated beforehand has to hold. On the attention's matrices alone it is {attention / 1e6:.1f} MB."
    )
    in_use = f" ({_gb(pool.held)} GB of it are in use now)" if pool.held else ""
    yield f"What fits is counted with nothing else in that memory{in_use}."
    if (gpus := max(one.gpus for one in found.each)) > 1:
        yield f"An engine that is spread over {gpus} GPUs holds this on each of them."
    if max(adapters, *(one.most_together(pool.total) or 0 for one in found.each)) > MOST_ADAPTERS:
        yield f"An engine is given at most {MOST_ADAPTERS} adapters, whatever memory there is."
    for one in found.left_out:
        yield f"Left out: {one.what}: {one.why}."


def _of_token(found: Fits) -> str:
    """What the KV cache of one takes, by engine where they differ."""
    sizes = {one.engine: _kv_text(one, found.shape) for one in found.each}
    if len(set(sizes.values())) == 1:
        return next(iter(sizes.values()))
    return ", ".join(f"{engine} {size}" for engine, size in sizes.items())


def _kv_text(fit: Fit, shape: Shape) -> str:
    size = f"{fit.kv_token / 1000:.3g} kB"
    return size if fit.gpus > 1 else f"{size} ({16 * fit.kv_token / shape.kv_token_bytes:.3g} bit)"


def _most(number: int | None) -> str:
    if number is None:
        return "1 at a time"
    return str(number) if number < MOST else f"{MOST} or more"


def _gb(size: int) -> float:
    return round(size / 1e9, 3 if size < 1e8 else 2 if size < 1e9 else 1)

"""Results that others have made, as ours: of `vllm bench serve --save-result`, of guidellm, of another orch. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.bench.metrics import Level
from orchestrator.bench.results import RUN, VERSION
from orchestrator.bench.tools import told_by
from orchestrator.errors import UsageError

_FORMS = "What vllm bench serve --save-result, guidellm (kind=json) or orch bench show --json have written."


@dataclass(frozen=True)
class Told:
    """What such a file does not say: whose result it is. Empty where nobody has said so."""

    profile: str = ""
    engine: str = ""
    recipe: str = ""
    gpus: tuple[str, ...] = ()


def levels_in(text: str, name: str, told: Told, run: str) -> tuple[dict[str, Any], ...]:
    """The levels of a file `name` with this text, as those of one `run`. UsageError where it is no such file, or does
    not say enough."""
    try:
        documents = [json.loads(text)]
    except ValueError:
        documents = _lines(text, name)
    found = [level for document in documents for level in _levels(document, name, told, run)]
    if not found:
        raise UsageError(f"{name} has no result that orch knows.", hint=_FORMS)
    for level in found:
        # It names the file that the result is kept in.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(level["profile"])):
            raise UsageError(
                f"{level['profile']} is not a profile's name.", hint="--profile NAME, as in orch bench ls."
            )
    return tuple(found)


def without_run(level: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a measurement from another one: all but the run that it is kept as."""
    return {key: value for key, value in level.items() if key != RUN}


def _lines(text: str, name: str) -> list[Any]:
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise UsageError(f"{name} is not JSON: {error}.", hint=_FORMS) from None


def _levels(document: Any, name: str, told: Told, run: str) -> Iterator[dict[str, Any]]:
    if isinstance(document, dict) and document.get("version") == VERSION and "max_concurrency" in document:
        if lacking := _KEYS - document.keys():
            raise UsageError(f"{name} has a level without {', '.join(sorted(lacking))}.", hint=_FORMS)
        said = {"profile": told.profile, "engine": told.engine, "recipe": told.recipe, "gpus": list(told.gpus)}
        yield {**document, **{key: value for key, value in said.items() if value}, RUN: run}
        return
    tool = told_by(document)
    if tool is None:
        return
    if not told.engine or not told.profile:
        raise UsageError(
            f"{name} does not say which engine answered, and of which profile.",
            hint="--engine ENGINE --profile NAME",
        )
    try:
        every = tool.figures(document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"{name} lacks what a result of {tool.name} has: {error}.", hint=_FORMS) from None
    for asked, figures in every:
        yield _level(document, asked, figures, told, run, tool.name)


def _level(
    document: Mapping[str, Any],
    asked: Mapping[str, Any],
    figures: Mapping[str, Any],
    told: Told,
    run: str,
    tool: str,
) -> dict[str, Any]:
    return {
        "version": VERSION,
        RUN: run,
        "date": str(document.get("date", "")),
        "orch": "",
        "profile": told.profile,
        "engine": told.engine,
        "instance": "",
        "model_id": str(asked["model_id"] or ""),
        "recipe": told.recipe,
        "artifact": "",
        "engine_version": None,
        "program": None,
        "accelerator": "cuda" if told.gpus else "",
        "gpus": list(told.gpus),
        "through": "the engine",
        "client_ceiling": None,
        "tool": tool,
        "max_concurrency": asked["max_concurrency"],
        "request_rate": asked["request_rate"],
        "num_prompts": asked["num_prompts"],
        "dataset": "file",
        "random_input_len": None,
        "random_output_len": round(figures["total_output_tokens"] / max(1, figures["completed"])),
        "shared_prefix_len": 0,
        "seed": 0,
        "adapters": [],
        "goodput_limits": {},
        "interrupted": False,
        **figures,
        "engine_memory": None,
        "gpu_use": [],
    }


_NOTHING = {"max_concurrency": 1, "request_rate": "inf", "num_prompts": 0, "model_id": ""}
_KEYS = _level({}, _NOTHING, Level.of((), 1.0).to_json(), Told(), "", "orch").keys()

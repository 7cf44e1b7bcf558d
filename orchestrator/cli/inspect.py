"""`orch inspect`: what a file of weights holds, and how far it is from what it was made of."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import AsJson, app, session_of
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.app.inspection import Inspection, Meaning, TensorError
    from orchestrator.cli.screen import Screen

# Parts of a layer, by the words of their tables and their names.
_LAYER_PARTS = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}
# Of a meaning: it is told elsewhere, or of use to engines only.
_NOT_SHOWN = (
    "architecture", "model_type", "thinks", "takes_tools", "sizes", "tokenizer", "dtype", "files", "ends_by_text"
)  # fmt: skip
_ENDS = {"embed_tokens": "embedding", "lm_head": "head"}
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_BAR_CELLS = 16


@app.command()
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A GGUF file, a directory of safetensors, or a key of the store.")
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            help="The weights that it was made from: show the quantization error.", exists=True, file_okay=False
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the quantization error into this .svg file.", dir_okay=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a GGUF file or a directory of weights holds, and with --against how much quantizing has cost."""
    with session_of(as_json) as session:
        from orchestrator.app.inspection import compare, deviations, meaning_of, place_of
        from orchestrator.app.inspection import inspect as inspect_path

        if plot is not None and against is None:
            raise UsageError(
                "--plot draws the quantization error.", hint="Say with --against DIR what to compare with."
            )
        place = place_of(session.orch, path)
        found, meaning = inspect_path(place), meaning_of(session.orch, place)
        weights = meaning_of(session.orch, against) if against is not None else None
        differs = deviations(meaning, weights) if meaning is not None and weights is not None else None
        if not as_json:
            _tell(session.screen, found, meaning, differs)
        errors = compare(place, against, session.progress) if against is not None else []
        if plot is not None:
            _draw(plot, found, errors)
        if as_json:
            session.screen.result(_as_json(found, meaning, differs, errors), "")
        elif errors:
            _tell_errors(session.screen, errors)
            if plot is not None:
                session.screen.note({"plot": str(plot)}, f"Drawn into {plot}.")


def _tell(screen: Screen, found: Inspection, meaning: Meaning | None, differs: tuple[str, ...] | None) -> None:
    facts = {
        "form": f"{found.form}, {found.file_type}" if found.file_type else found.form,
        "architecture": found.architecture or "not stated",
        "parameters": f"{found.parameters:,}",
        "context": f"{found.context:,} tokens" if found.context else "not stated",
        "tokenizer": found.tokenizer or "none",
        **(_meaning_facts(meaning) if meaning is not None else {}),
        **(
            {"beside weights": "; ".join(differs) or "template, ends and tokens are the same"}
            if differs is not None
            else {}
        ),
        "tensors": ", ".join(f"{count} {kind}" for kind, count in found.types.items()),
    }
    width = max(map(len, facts))
    lines = [f"  {name.ljust(width)}  {value}" for name, value in facts.items()]
    screen.result({}, "\n".join([found.path, *lines, ""]))
    rows = [_size_row(part.part, part.parameters, part.size, part.bits, found.size) for part in found.parts]
    rows.append(_size_row("all", found.parameters, found.size, found.bits, found.size))
    wide = max(len(row["weights"]) for row in rows)
    columns = ("part", "weights", "size", "bits", "share")
    screen.table("Size by part", columns, [row | {"weights": row["weights"].rjust(wide)} for row in rows])
    if meaning is not None:
        from orchestrator.app.inspection import sampling_defaults

        screen.sampling(sampling_defaults({}, meaning))


def _meaning_facts(meaning: Meaning) -> dict[str, str]:
    names = ", ".join(template.name for template in meaning.templates)
    special = sum(token.special for token in meaning.added)
    facts = {
        "chat template": f"{names} ({meaning.template_source})" if names else "none",
        "ends at": "; ".join(f"{end.text or end.id} ({', '.join(end.said_by)})" for end in meaning.ends) or "no token",
        "added tokens": f"{len(meaning.added)}, {special} of them special",
        "head": "the embedding" if meaning.tied else "of its own",
    }
    if meaning.left_out:
        facts["left out"] = ", ".join(meaning.left_out)
    return facts | {f"note {number}": text for number, text in enumerate(meaning.remarks, 1)}


def _size_row(part: str, parameters: int, size: int, bits: float, total: int) -> dict[str, Any]:
    share = 100 * size / total if total else 0.0
    return {
        "part": part,
        "weights": f"{parameters:,}",
        "size": size,
        "bits": f"{bits:5.2f}",
        "share": f"{share:5.1f} %",
    }


def _tell_errors(screen: Screen, errors: list[TensorError]) -> None:
    from orchestrator.app.inspection import relative

    groups: dict[str, list[TensorError]] = {}
    for error in errors:
        groups.setdefault(_ENDS.get(error.part, "") if error.layer is None else f"{error.layer:>5}", []).append(error)
    highest = max(map(relative, groups.values()), default=0.0)
    rows = [_error_row(label, group, highest) for label, group in groups.items()]
    rows.append(_error_row("all", errors, 0.0))
    columns = ("layer", *_LAYER_PARTS, "all", "SQNR", "plot")
    screen.table("Quantization error in % of the weights", columns, rows)


def _error_row(label: str, errors: list[TensorError], highest: float) -> dict[str, Any]:
    """The table's row for a layer, an end, or all; its bar is as long as can be where the error is the highest."""
    from orchestrator.app.inspection import relative, sqnr

    row: dict[str, Any] = {"layer": label}
    if label.strip().isdecimal():
        by_part = {error.part: error for error in errors}
        row |= {word: f"{100 * relative([by_part[part]]):5.2f}" for word, part in _LAYER_PARTS.items()}
    together = relative(errors)
    return row | {
        "all": f"{100 * together:5.2f}",
        "SQNR": f"{sqnr(together):4.1f} dB" if together else "exact",
        "plot": bar(together / highest) if highest else "",
    }


def bar(fraction: float) -> str:
    """A bar of block characters, in eighths of a cell."""
    eighths = round(8 * _BAR_CELLS * fraction)
    return _EIGHTHS[8] * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _draw(file: Path, found: Inspection, errors: list[TensorError]) -> None:
    from orchestrator.app.inspection import relative, sqnr, write_picture
    from orchestrator.cli.error_plot import End, Strip, draw

    layers = 1 + max((error.layer for error in errors if error.layer is not None), default=-1)
    by_place = {(error.layer, error.part): relative([error]) for error in errors}
    strips = [
        Strip(name, "attention" if len(name) == 1 else "feed-forward", [by_place[n, part] for n in range(layers)])
        for name, part in _LAYER_PARTS.items()
    ]
    ends = [End(label, by_place[None, name]) for name, label in _ENDS.items() if (None, name) in by_place]
    together = relative(errors)
    summary = f"{found.file_type}: {100 * together:.2f} % in all" + (f", {sqnr(together):.1f} dB" if together else "")
    title = f"Quantization error of {Path(found.path).name}"
    subtitle = f"{summary}. Relative error of each matrix; on the right the mean over the layers."
    write_picture(file, draw(title, subtitle, strips, ends))


def _meaning_json(meaning: Meaning) -> dict[str, Any]:
    from orchestrator.app.inspection import sampling_defaults

    value = meaning.model_dump(exclude=_NOT_SHOWN)
    value["templates"] = {template.name: template.text for template in meaning.templates}
    value["sampling"] = [vars(one) for one in sampling_defaults({}, meaning)]
    return value


def _as_json(
    found: Inspection, meaning: Meaning | None, differs: tuple[str, ...] | None, errors: list[TensorError]
) -> dict[str, Any]:
    from orchestrator.app.inspection import relative, sqnr

    value = dataclasses.asdict(found) | {"bits": found.bits}
    value["meaning"] = _meaning_json(meaning) if meaning is not None else None
    if differs is not None:
        value["meaning"]["deviations"] = [*differs]
    value["parts"] = [dataclasses.asdict(part) | {"bits": part.bits} for part in found.parts]
    if errors:
        value["errors"] = [
            {"name": e.name, "layer": e.layer, "part": e.part, "type": e.kind}
            | _figures(relative([e]), sqnr(relative([e])))
            for e in errors
        ]
    return value


def _figures(relative_error: float, decibels: float) -> dict[str, Any]:
    """JSON has no infinity: what is exact has no noise to tell."""
    return {"relative_error": relative_error, "sqnr_db": decibels if math.isfinite(decibels) else None}

"""The verbs that build artifacts, at a path of one's own."""

from __future__ import annotations

import dataclasses
import os
import shutil
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, OnlyPlan, ProfileName, Yes, app, session_of
from orchestrator.errors import HostError, PlanRefused, UsageError

if TYPE_CHECKING:
    from orchestrator.artifacts.estimate import Estimate
    from orchestrator.artifacts.gguf_types import Quant
    from orchestrator.artifacts.one_pass import Wanted
    from orchestrator.cli.session import Session
    from orchestrator.core.artifact import Recipe
    from orchestrator.core.calibration import Calibration
    from orchestrator.core.profile import CalibrationTexts, Profile
    from orchestrator.core.steps import Plan

build = typer.Typer(invoke_without_command=True, help="Build a profile's artifacts, or one at a path of your own.")
app.add_typer(build, name="build")

WeightsDirectory = Annotated[
    Path, typer.Argument(help="A model directory: config, tokenizer, safetensors.", exists=True, file_okay=False)
]


@build.callback()
def build_all(
    context: typer.Context,
    profile: ProfileName = None,
    recipes: Annotated[
        list[str] | None, typer.Option("--recipe", help="Only this; may be said again. Default: all that it names.")
    ] = None,
    plan: OnlyPlan = False,
    locked: Annotated[
        Path | None, typer.Option(help="A lock file: refuse what differs from it.", dir_okay=False)
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Have every artifact of a profile in the store: pulled, built in one read of the weights, or taken ready-made."""
    if context.invoked_subcommand is not None:
        return
    with session_of(as_json) as session:
        from orchestrator.cli.deploy import confirm_download
        from orchestrator.cli.lock import check_built, check_locked, locked_profile, read_lock
        from orchestrator.cli.wishes import default_profile, load_profile, pinned

        lock = read_lock(session, locked) if locked is not None else None
        if lock is not None:
            loaded, observed = locked_profile(session, lock, profile)
            check_locked(session, lock, loaded, observed)
        else:
            observed = session.observe()
            loaded = pinned(session, load_profile(profile or default_profile(observed), observed), observed)
        chosen = _recipes_of(loaded, recipes or [])
        make_plan = partial(_plan_build, session, loaded, chosen)
        first = make_plan()
        if plan:
            session.screen.plan(first)
            return
        if profile is None and lock is None:
            confirm_download(session, first, yes)
        # In two parts: what a build takes is known when the weights are here.
        session.run(make_plan(fetch_only=True))
        _tell_estimate(session, todo := make_plan())
        session.run(todo)
        if lock is not None:
            check_built(session, lock, loaded, observed)


def _recipes_of(profile: Profile, named: list[str]) -> tuple[Recipe, ...]:
    """Those that were named, else all that its engines may serve; not the weights themselves."""
    from orchestrator.cli.deploy import recipe_named
    from orchestrator.core.artifact import Recipe

    if named:
        return tuple(dict.fromkeys(recipe for name in named if (recipe := recipe_named(name)) is not None))
    settings = (profile.engines.ollama, profile.engines.llamacpp, profile.engines.vllm)
    found = dict.fromkeys(recipe for engine in settings for recipe in engine.recipes)
    return tuple(recipe for recipe in found if recipe is not Recipe.WEIGHTS)


def _plan_build(session: Session, profile: Profile, recipes: tuple[Recipe, ...], fetch_only: bool = False) -> Plan:
    """Everything that the recipes take, those that can be in one read of the weights."""
    from orchestrator.cli.wishes import weights_facts
    from orchestrator.core.steps import Action, FetchWeights, Plan
    from orchestrator.core.supply import plan_supply
    from orchestrator.engines.resolve import artifact_supply

    observed = session.observe()
    weights, shipped = weights_facts(session, profile), session.shipped(observed, profile)
    steps = dict.fromkeys(step for recipe in recipes for step in artifact_supply(recipe, weights, shipped))
    plan = plan_supply("build", tuple(steps), observed)
    if not fetch_only:
        return plan
    items = tuple(item for item in plan.items if isinstance(item, Action) and isinstance(item.step, FetchWeights))
    return Plan("build", items, commit=len(items))


def _tell_estimate(session: Session, plan: Plan) -> None:
    """What the builds to be done will take; HostError where the disk has no room for them."""
    from orchestrator.core.supply import builds_of

    builds = builds_of(plan)
    for one in builds:
        if one.calibration is not None:
            _tell_calibration(session, Path(one.source_path), one.calibration)
    if streamed := [build for build in builds if build.recipe.streamed]:
        wanted = [session.builder.wanted(one.recipe, session.store.path(one.key)) for one in streamed]
        _estimate(session, Path(streamed[0].source_path), wanted, session.store.root)


@build.command("gguf")
def build_gguf(
    source: Annotated[
        Path, typer.Argument(help="A model directory, or an unquantized GGUF file (F32, F16, BF16).", exists=True)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The GGUF file to write.")],
    quant: Annotated[
        str,
        typer.Option(
            help="f16, bf16, q8_0, q6_k, q5_k_m or q4_k_m; with llama.cpp's own tools any that llama-quantize names."
        ),
    ] = "q6_k",
    in_container: Annotated[
        bool, typer.Option("--in-container", help="Use llama.cpp's own tools, which know most models, in their image.")
    ] = False,
    tools: Annotated[
        Path | None,
        typer.Option(help="Use the tools of this llama.cpp checkout or installation.", exists=True, file_okay=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Safetensors or an unquantized GGUF of a dense Qwen2, Qwen3, Llama or Mistral to GGUF in one pass, its tensors
    byte-identical to those of llama.cpp's own tools; with --in-container or --tools other models too, by these tools.
    """
    with session_of(as_json) as session:
        from orchestrator.artifacts.gguf_file import WantedGguf
        from orchestrator.artifacts.gguf_types import Quant
        from orchestrator.artifacts.quantize import Quantizer
        from orchestrator.cli.gguf_tools import build_gguf_with_tools
        from orchestrator.cli.session import quantizer_library

        name = quant.lower()
        if in_container and tools is not None:
            raise UsageError("Give --in-container or --tools, not both.")
        foreign = in_container or tools is not None
        if name not in typing.get_args(Quant) and not foreign:
            raise PlanRefused(
                f"orch does not know the quantization {quant}.",
                hint=f"Known: {', '.join(typing.get_args(Quant))}; others with --in-container, or --tools DIR",
            )
        if output.exists() and source.resolve() in (output.resolve(), output.resolve().parent):
            raise PlanRefused(f"{output} is one of the files it would be built from.", hint="Write to another place.")
        _check_parent(output)
        if output.is_dir():
            raise HostError(f"{output} is a directory.", hint="Name the file to write: -o FILE.gguf")
        if foreign and source.is_file():
            raise PlanRefused(f"{source} is no directory.", hint="llama.cpp's own tools are given safetensors here.")
        if foreign:
            build_gguf_with_tools(session, source, output, quant, tools)
        elif source.is_file():
            _quantize(session, source, output, typing.cast("Quant", name))
        else:
            wanted = WantedGguf(output, typing.cast("Quant", name), Quantizer(quantizer_library()))
            _build(session, source, output, wanted)
        _tell_file(session, output)


def _quantize(session: Session, source: Path, output: Path, quant: Quant) -> None:
    from orchestrator.artifacts.estimate import estimate_costs
    from orchestrator.artifacts.gguf_quantize import quantizing
    from orchestrator.artifacts.quantize import Quantizer
    from orchestrator.cli.session import quantizer_library

    with quantizing(source, quant, Quantizer(quantizer_library())) as work:
        _tell(session, estimate_costs(work.reads, [work.cost()]), output.absolute().parent)
        work.write(output, session.progress)


@build.command("nvfp4")
def build_nvfp4(
    directory: WeightsDirectory,
    output: Annotated[Path, typer.Option("-o", "--output", help="The directory to write; must not exist.")],
    mode: Annotated[
        str,
        typer.Option(
            help="a16: 4-bit weights, 16-bit activations; needs no data. w4a4: both 4-bit, by llm-compressor."
        ),
    ] = "a16",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Texts for w4a4, JSONL. Default: the few that orch ships.", exists=True, dir_okay=False),
    ] = None,
    samples: Annotated[int, typer.Option(help="Of the texts the first so many.", min=1)] = 512,
    tokens: Annotated[int, typer.Option(help="Of each text at most so many tokens.", min=16)] = 2048,
    as_json: AsJson = False,
) -> None:
    """Safetensors to NVFP4, in the layout that vLLM reads. Byte-identical to what llm-compressor writes; w4a4 is
    written by it, in an environment that orch makes."""
    with session_of(as_json) as session:
        from orchestrator.artifacts.nvfp4_checkpoint import WantedNvfp4
        from orchestrator.core.artifact import Recipe
        from orchestrator.core.profile import CalibrationTexts

        if mode not in ("a16", "w4a4"):
            raise PlanRefused(f"orch does not know the NVFP4 mode {mode}.", hint="Known: a16, w4a4")
        if mode == "a16" and calibration is not None:
            raise UsageError("Weights alone need no calibration.", hint="--mode w4a4")
        with _whole_directory(output) as work:
            if mode == "a16":
                _build(session, directory, output, WantedNvfp4(work), Recipe.NVFP4A16.loss)
            else:
                path = str(calibration.resolve()) if calibration is not None else None
                _calibrate(session, directory, work, CalibrationTexts(path=path, samples=samples, tokens=tokens))
        _tell_file(session, output)


def _calibrate(session: Session, directory: Path, work: Path, texts: CalibrationTexts) -> None:
    from orchestrator.core.artifact import Recipe

    calibration = session.calibration(texts)
    _tell_calibration(session, directory, calibration)
    session.screen.note({"loss": Recipe.NVFP4.loss}, Recipe.NVFP4.loss)
    session.environments.ensure(calibration.environment, session.progress)
    session.builder.build(Recipe.NVFP4, directory, work, session.progress, calibration=calibration)


def _tell_calibration(session: Session, source: Path, calibration: Calibration) -> None:
    """What calibrating will take; HostError where the machine has too little memory for it."""
    told = session.llmcompressor.estimate(source, calibration)
    session.screen.note({"estimate": told}, told)


@build.command("fp8")
def build_fp8(
    directory: WeightsDirectory,
    output: Annotated[Path, typer.Option("-o", "--output", help="The directory to write; must not exist.")],
    as_json: AsJson = False,
) -> None:
    """Safetensors to FP8 with a scale per channel, activations quantized while it is served. Byte-identical to what
    llm-compressor writes."""
    with session_of(as_json) as session:
        from orchestrator.artifacts.fp8_checkpoint import WantedFp8

        with _whole_directory(output) as work:
            _build(session, directory, output, WantedFp8(work))
        _tell_file(session, output)


def _estimate(session: Session, source: Path, wanted: list[Wanted], place: Path) -> None:
    from orchestrator.artifacts.estimate import estimate

    _tell(session, estimate(source, wanted), place)


def _tell(session: Session, found: Estimate, place: Path) -> None:
    """What a build will take; HostError where the disk of `place` has no room for it."""
    from orchestrator.artifacts.estimate import refuse_full

    refuse_full(place, found)
    session.screen.note({"estimate": dataclasses.asdict(found)}, found.text)


def _build(session: Session, directory: Path, output: Path, wanted: Wanted, loss: str = "") -> None:
    from orchestrator.artifacts.one_pass import build as build_wanted

    _estimate(session, directory, [wanted], output.absolute().parent)
    if loss:
        session.screen.note({"loss": loss}, loss)
    build_wanted(directory, [wanted], session.progress)


@contextmanager
def _whole_directory(output: Path) -> Iterator[Path]:
    """A hidden sibling of `output` to build in; it takes the name once it is whole, and is removed on failure.

    Its name is always the same: the next attempt removes what a killed one left.
    """
    from orchestrator.artifacts.disk import alone_at, fsync_directory, host_errors

    if os.path.lexists(output):
        raise PlanRefused(f"{output} exists already.", hint="Name a directory that does not exist yet, or remove it.")
    _check_parent(output)
    work = output.with_name(f".{output.name}.part")
    with host_errors(f"write {output}"):
        work.mkdir(exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    with alone_at(work, descriptor):
        try:
            with host_errors(f"write {output}"):
                for left in work.iterdir():
                    # llm-compressor works in a directory of its own within it.
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield work
            with host_errors(f"write {output}"):
                work.rename(output)
                fsync_directory(output.absolute().parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _check_parent(output: Path) -> None:
    if not output.absolute().parent.is_dir():
        raise HostError(f"Cannot write {output}: {output.absolute().parent} is no directory.", hint="Make it first.")


def _tell_file(session: Session, output: Path) -> None:
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    size = sum(path.stat().st_size for path in files)
    session.screen.result({"built": str(output), "size": size}, f"{output}: {size / 1e6:.1f} MB.")

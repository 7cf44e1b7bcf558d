"""Building: a profile's artifacts into the store, or one artifact at a path of the user's."""

from __future__ import annotations

import dataclasses
import os
import shutil
import typing
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.app.gguf_tools import build_gguf_with_tools, tell_how_to_serve, tell_tools
from orchestrator.app.intent import recipe_named
from orchestrator.app.orchestrator import quantizer_library
from orchestrator.app.profiles import weights_facts
from orchestrator.artifacts.claims import is_nvfp4
from orchestrator.artifacts.disk import alone_at, fsync_directory, host_errors
from orchestrator.artifacts.estimate import Estimate, estimate, estimate_costs, refuse_full
from orchestrator.artifacts.fp8_checkpoint import Fp8OutputSpec
from orchestrator.artifacts.gguf_file import GgufOutputSpec
from orchestrator.artifacts.gguf_nvfp4 import GgufNvfp4OutputSpec
from orchestrator.artifacts.gguf_quantize import quantizing
from orchestrator.artifacts.gguf_repack import repacking
from orchestrator.artifacts.gguf_types import GgufQuant, Quant
from orchestrator.artifacts.nvfp4_checkpoint import Nvfp4OutputSpec
from orchestrator.artifacts.one_pass import OutputSpec
from orchestrator.artifacts.one_pass import build as build_in_one_pass
from orchestrator.artifacts.quantize import Quantizer
from orchestrator.core.artifact import Recipe
from orchestrator.core.calibration import Calibration
from orchestrator.core.plan import Action, Plan, Remark
from orchestrator.core.prerequisites import BuildArtifact, Prerequisite, Storage
from orchestrator.core.profile import CalibrationTexts, Profile
from orchestrator.engines import ENGINES
from orchestrator.engines.prerequisites import artifact_prerequisites, cannot_be_made, key_of, remarks_on_builds
from orchestrator.errors import HostError, PlanRefused, UsageError
from orchestrator.planning.prerequisites import builds_of, plan_prerequisites

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator


def recipes_of(profile: Profile, named: list[str]) -> tuple[Recipe, ...]:
    """Those that were named, else all that its engines may serve; not the weights themselves."""
    if named:
        return tuple(dict.fromkeys(recipe for name in named if (recipe := recipe_named(name)) is not None))
    settings = (sheet.settings.of(profile, name) for name, sheet in ENGINES.items())
    found = dict.fromkeys(recipe for engine in settings for recipe in engine.recipes)
    return tuple(recipe for recipe in found if recipe is not Recipe.WEIGHTS)


def plan_build(orch: Orchestrator, profile: Profile, recipes: tuple[Recipe, ...], asked: bool = True) -> Plan:
    """Everything that the recipes take, those that can be in one read of the weights. What cannot be made of these
    weights is left out, and told, unless it was `asked` for: then PlanRefused."""
    observed = orch.observe()
    weights, context = weights_facts(orch, profile), orch.resolve_context(observed, profile)
    reasons = {recipe: cannot_be_made(recipe, weights, context) for recipe in recipes}
    left_out = {recipe: why for recipe, why in reasons.items() if why}
    for recipe, why in left_out.items() if asked else ():
        raise PlanRefused(f"{recipe.value} cannot be made of these weights: {why}.", hint="Name another recipe.")
    made = [recipe for recipe in recipes if recipe not in left_out]
    steps = dict.fromkeys(step for recipe in made for step in artifact_prerequisites(recipe, weights, context))
    results = tuple(key_of(recipe, weights, context) for recipe in made)
    plan = plan_prerequisites("build", tuple(steps), observed, results)
    remarks = (
        *(Remark(f"leave out {recipe.value}", why) for recipe, why in left_out.items()),
        *remarks_on_builds(profile, tuple(steps), weights, context),
    )
    return dataclasses.replace(plan, items=(*remarks, *plan.items), commit=plan.commit + len(remarks))


def weights_alone(plan: Plan) -> Plan:
    """What of a plan brings that which others are built from: what a build takes is known when it is here."""
    read = {key for build in builds_of(plan) for key in build.made_from}
    items = tuple(item for item in plan.items if isinstance(item, Action) and _brings(item, read))
    return Plan(plan.verb, items, commit=len(items))


def tell_estimate(orch: Orchestrator, plan: Plan) -> None:
    """What the builds to be done will take; HostError where the disk has no room for them."""
    builds = builds_of(plan)
    for one in builds:
        if one.calibration is not None:
            _tell_calibration(orch, Path(one.source_path), one.calibration)
    by_place: dict[str, list[BuildArtifact]] = {}
    for one in builds:
        if one.streamed:
            by_place.setdefault(one.source_path, []).append(one)
    for place, streamed in by_place.items():
        _tell(orch, _estimate(orch, Path(place), streamed), orch.store.root)


def build_gguf(
    orch: Orchestrator, source: Path, output: Path, quant: str, in_container: bool, tools: Path | None
) -> None:
    """One GGUF file: of a model directory or an unquantized GGUF; with llama.cpp's own tools in their image or, in the
    directory `tools`, as the user has them."""
    name = quant.lower()
    foreign = in_container or tools is not None
    if in_container and tools is not None:
        raise UsageError("Give --in-container or --tools, not both.")
    if name not in typing.get_args(GgufQuant) and not foreign:
        raise UsageError(
            f"orch does not know the quantization {quant}.",
            hint=f"Known: {', '.join(typing.get_args(GgufQuant))}; others with --in-container, or --tools DIR",
        )
    if name == "nvfp4" and (foreign or source.is_file()):
        raise PlanRefused(
            "NVFP4 is made of a model directory, by orch: llama.cpp's own quantizer keeps only one of its two scales.",
            hint=f"orch build gguf DIR -o {output} --quant nvfp4",
        )
    if output.exists() and source.resolve() in (output.resolve(), output.resolve().parent):
        raise PlanRefused(f"{output} is one of the files it would be built from.", hint="Write to another place.")
    _check_parent(output)
    if output.is_dir():
        raise HostError(f"{output} is a directory.", hint="Name the file to write: -o FILE.gguf")
    if foreign and source.is_file():
        raise PlanRefused(f"{source} is not a directory.", hint="llama.cpp's own tools are given safetensors here.")
    if tools is not None:
        tell_tools(orch, tools, quant)
    if foreign:
        build_gguf_with_tools(orch, source, output, quant, tools, orch.progress)
        tell_how_to_serve(orch, output, quant)
    elif source.is_file():
        with quantizing(source, typing.cast("Quant", name), _quantizer()) as work:
            _tell(orch, estimate_costs(work.reads, [work.cost()]), output.absolute().parent)
            work.write(output, orch.progress)
    elif is_nvfp4(source):
        _repack(orch, source, output, name)
    elif name == "nvfp4":
        _build(orch, source, output, GgufNvfp4OutputSpec(output, _quantizer()), Recipe.GGUF_NVFP4.loss)
    else:
        _build(orch, source, output, GgufOutputSpec(output, typing.cast("Quant", name), _quantizer()))


def _repack(orch: Orchestrator, source: Path, output: Path, quant: str) -> None:
    if quant != "nvfp4":
        raise PlanRefused(
            f"{source} is NVFP4 already; to make {quant} of it is to lose twice.",
            hint=f"orch build gguf {source} -o {output} --quant nvfp4 keeps its weights; or use the original ones.",
        )
    with repacking(source) as work:
        _tell(orch, estimate_costs(work.reads, [work.cost()]), output.absolute().parent)
        work.write(output, _quantizer(), orch.progress)


def _quantizer() -> Quantizer:
    return Quantizer(quantizer_library())


def build_nvfp4(orch: Orchestrator, directory: Path, output: Path, texts: CalibrationTexts | None) -> None:
    """A directory of NVFP4: weights alone, or with `texts` activations too, calibrated with them."""
    with _whole_directory(output) as work:
        if texts is None:
            _build(orch, directory, output, Nvfp4OutputSpec(work), Recipe.NVFP4A16.loss)
            return
        calibration = orch.calibration(texts)
        _tell_calibration(orch, directory, calibration)
        orch.note({"loss": Recipe.NVFP4.loss}, Recipe.NVFP4.loss)
        orch.environments.ensure(calibration.environment, orch.progress)
        orch.builder.build(Recipe.NVFP4, directory, work, orch.progress, calibration=calibration)


def build_fp8(orch: Orchestrator, directory: Path, output: Path) -> None:
    """A directory of FP8."""
    with _whole_directory(output) as work:
        _build(orch, directory, output, Fp8OutputSpec(work))


def size_of(output: Path) -> int:
    """Bytes of a file, or of all files of a directory."""
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    return sum(path.stat().st_size for path in files)


def _brings(item: Action, read: Collection[str]) -> bool:
    step = item.step
    return isinstance(step, Prerequisite) and step.storage is Storage.STORE and step.key in read


def _estimate(orch: Orchestrator, source: Path, builds: list[BuildArtifact]) -> Estimate:
    """What it takes to make these of the directory `source`."""
    if is_nvfp4(source):
        with repacking(source) as work:
            return estimate_costs(work.reads, [work.cost()])
    return estimate(source, [orch.builder.output_spec(one.recipe, orch.store.path(one.key)) for one in builds])


def _tell_calibration(orch: Orchestrator, source: Path, calibration: Calibration) -> None:
    """What calibrating will take; HostError where the machine has too little memory for it."""
    text = orch.llmcompressor.estimate(source, calibration)
    orch.note({"estimate": text}, text)


def _tell(orch: Orchestrator, found: Estimate, place: Path) -> None:
    """What a build will take; HostError where the disk of `place` has no room for it."""
    refuse_full(place, found)
    orch.note({"estimate": dataclasses.asdict(found)}, found.text)


def _build(orch: Orchestrator, directory: Path, output: Path, spec: OutputSpec, loss: str = "") -> None:
    _tell(orch, estimate(directory, [spec]), output.absolute().parent)
    if loss:
        orch.note({"loss": loss}, loss)
    build_in_one_pass(directory, [spec], orch.progress)


@contextmanager
def _whole_directory(output: Path) -> Iterator[Path]:
    """A hidden sibling of `output` to build in; it takes the name once it is whole, and is removed on failure.

    Its name is always the same: the next attempt removes what a killed one left.
    """
    if os.path.lexists(output):
        raise PlanRefused(f"{output} already exists.", hint="Name a directory that does not exist yet, or remove it.")
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
        raise HostError(f"Cannot write {output}: {output.absolute().parent} is not a directory.", hint="Make it first.")

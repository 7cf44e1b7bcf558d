"""Which builder makes what, as one table: the door that the rest of orch uses.

What makes an artifact is loaded when it is wanted: numpy, gguf and the builders cost more than all else of a verb that
only brings an adapter in.
"""

from __future__ import annotations

import shutil
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.artifacts import families
from orchestrator.artifacts.claims import is_nvfp4
from orchestrator.artifacts.disk import host_errors
from orchestrator.artifacts.json_file import read_json
from orchestrator.artifacts.peft import Adapter, check_fits, read_adapter, refuse_misfit
from orchestrator.core.artifact import BUILDER_FORMAT, GGUF_FILE, FileEntry, Recipe
from orchestrator.core.builders import BUILDERS, BuiltBy
from orchestrator.core.calibration import Calibration
from orchestrator.core.meaning import Meaning, deviations
from orchestrator.core.memory import artifact_bytes
from orchestrator.core.progress import Progress
from orchestrator.core.weights import Shape, shape_of
from orchestrator.errors import PlanRefused, SourceError

if TYPE_CHECKING:
    from orchestrator.artifacts.gguf_types import Quant
    from orchestrator.artifacts.one_pass import OutputSpec
    from orchestrator.artifacts.quantize import Quantizer

ADAPTER_FILE = "adapter.gguf"


@dataclass(frozen=True)
class _Job:
    """The arguments of one build."""

    source: Path
    work: Path
    progress: Progress
    base: Path | None
    calibration: Calibration | None
    template: str | None


# Quantizes weights into a directory with calibrated activations; see drivers/local/llmcompressor.py.
Calibrate = Callable[[Path, Path, Calibration, Progress], None]


class ForeignTools(Protocol):
    """Another's programs that make a GGUF file of weights; see app/gguf_tools.py."""

    def build(self, source: Path, output: Path, quant: str, progress: Progress) -> None: ...

    def versions(self, quant: str) -> dict[str, str]: ...


class Builder:
    """Builds artifacts: in this process, or by other programs, one for each way of building. `quantizer_library`
    exports ggml's quantizer, loaded on first use."""

    def __init__(
        self, quantizer_library: Path, calibrate: Calibrate | None = None, tools: ForeignTools | None = None
    ) -> None:
        self._library = quantizer_library
        self._calibrate = calibrate
        self._tools = tools
        self._builders: dict[BuiltBy, Callable[[Recipe, _Job], None]] = {
            BuiltBy.ORCH: self._own,
            BuiltBy.LLM_COMPRESSOR: self._calibrated,
            BuiltBy.LLAMA_CPP: self._converted,
        }

    @cached_property
    def quantizer(self) -> Quantizer:
        """The one quantizer of this process: what it has compiled for one build serves the next."""
        from orchestrator.artifacts.quantize import Quantizer

        return Quantizer(self._library)

    def adapter(self, directory: Path, base: Path | None) -> Adapter:
        """The adapter in a PEFT directory: SourceError if it cannot be served, PlanRefused if not with `base`."""
        adapter = read_adapter(directory)
        if base is not None:
            _refuse_unknown(base)
            check_fits(directory, adapter, base)
        return adapter

    def versions(self, recipe: Recipe, by: BuiltBy | None = None) -> dict[str, str]:
        """What made the bytes, for the manifest."""
        if by is BuiltBy.LLAMA_CPP:
            return {"builder": by.value, **self._foreign().versions(recipe.quant)}
        found = {"format": str(BUILDER_FORMAT), "numpy": version("numpy")}
        if recipe.quant or recipe is Recipe.LORA_GGUF:
            found["gguf"] = version("gguf")
        if recipe.quant not in ("", "bf16", "f16", "nvfp4"):
            found["ggml"] = self.quantizer.version
        return found

    def expected_bytes(self, recipe: Recipe, source: Path) -> int:
        """About how large `recipe` of the directory `source` will be: as the source, where no shape is told."""
        files = [path for path in source.glob("*") if path.is_file()]
        if recipe is Recipe.VIEW:
            return sum(path.stat().st_size for path in files if path.suffix == ".json")
        size = sum(path.stat().st_size for path in files)
        with suppress(SourceError):
            shape = shape_of(read_json(source / "config.json"))
            repacked = recipe is Recipe.GGUF_NVFP4 and is_nvfp4(source)
            return artifact_bytes(recipe, size, shape) if shape is not None and not repacked else size
        return size

    def build(
        self,
        recipe: Recipe,
        source: Path,
        work: Path,
        progress: Progress,
        base: Path | None = None,
        calibration: Calibration | None = None,
        template: str = "",
        by: BuiltBy | None = None,
    ) -> None:
        """Makes `recipe` of the directory `source` in the existing directory `work`; a `template` takes the place of
        its own chat template; `by` whom, where that is not the recipe's first builder.

        GGUF recipes write `model.gguf`, GGUF_NVFP4 also of what is NVFP4 already; NVFP4A16, FP8 and NVFP4 (with a
        `calibration`) a Hugging Face directory; ADAPTER copies a PEFT directory, without what it carries unchanged of
        the weights in `base`; LORA_GGUF writes `adapter.gguf`, for those weights. SourceError if the source is not what
        it claims, UnknownToBuilder if the builder does not know what it is; HostError if the disk, the quantizer or
        another program fails; whatever `progress` raises passes through, leaving nothing that looks finished.
        """
        if recipe not in BUILDERS:
            raise ValueError(f"nothing is built for {recipe.value}")
        self._builders[by or BUILDERS[recipe][0]](
            recipe, _Job(source, work, progress, base, calibration, template or None)
        )

    def build_together(
        self, works: Mapping[Recipe, Path], source: Path, progress: Progress, template: str = ""
    ) -> None:
        """The same for several recipes, each with its directory, in one read of `source`."""
        from orchestrator.artifacts import one_pass

        specs = [self.output_spec(recipe, work) for recipe, work in works.items()]
        one_pass.build(source, specs, progress, template=template or None)
        for recipe, work in works.items():
            if recipe.quant:
                _check_meaning(source, work / GGUF_FILE, template)

    def _repack(self, source: Path, work: Path, progress: Progress, template: str) -> None:
        from orchestrator.artifacts.gguf_repack import repacking

        with repacking(source, template or None) as repack:
            repack.write(work / GGUF_FILE, self.quantizer, progress)

    def output_spec(self, recipe: Recipe, work: Path) -> OutputSpec:
        """What a streamed recipe makes in the directory `work`."""
        if recipe is Recipe.NVFP4A16:
            from orchestrator.artifacts.nvfp4_checkpoint import Nvfp4OutputSpec

            return Nvfp4OutputSpec(work)
        if recipe is Recipe.FP8:
            from orchestrator.artifacts.fp8_checkpoint import Fp8OutputSpec

            return Fp8OutputSpec(work)
        if recipe is Recipe.GGUF_NVFP4:
            from orchestrator.artifacts.gguf_nvfp4 import GgufNvfp4OutputSpec

            return GgufNvfp4OutputSpec(work / GGUF_FILE, self.quantizer)
        from orchestrator.artifacts.gguf_file import GgufOutputSpec
        from orchestrator.artifacts.gguf_types import Quant

        if recipe.quant in typing.get_args(Quant):
            return GgufOutputSpec(work / GGUF_FILE, typing.cast("Quant", recipe.quant), self.quantizer)
        raise ValueError(f"nothing is built for {recipe.value}")

    def meaning(self, path: Path) -> Meaning:
        """What a Hugging Face directory or a GGUF file means. SourceError where that cannot be told."""
        if path.is_dir():
            from orchestrator.artifacts.meaning import read_meaning

            return read_meaning(path)
        from orchestrator.artifacts.gguf_meaning import read_gguf_meaning

        return read_gguf_meaning(path)

    def gguf_shape(self, recipe: Recipe, directory: Path) -> Shape:
        """The sizes that the GGUF of a finished artifact tells. SourceError if it is none of this recipe."""
        from orchestrator.artifacts.gguf_claims import check_gguf

        return check_gguf(directory / GGUF_FILE, recipe).shape

    def _own(self, recipe: Recipe, job: _Job) -> None:
        if recipe in _SMALL:
            _SMALL[recipe](job)
        elif recipe is Recipe.GGUF_NVFP4 and is_nvfp4(job.source):
            self._repack(job.source, job.work, job.progress, job.template or "")
        else:
            self.build_together({recipe: job.work}, job.source, job.progress, job.template or "")

    def _converted(self, recipe: Recipe, job: _Job) -> None:
        from orchestrator.artifacts.gguf_claims import check_gguf

        # The tools read a directory by rules of their own: they are given one that has only what counts.
        view = job.work / ".view"
        with host_errors(f"write {view}"):
            view.mkdir()
        _view(replace(job, work=view))
        self._foreign().build(view, job.work / GGUF_FILE, recipe.quant, job.progress)
        shutil.rmtree(view)
        check_gguf(job.work / GGUF_FILE, recipe)

    def _foreign(self) -> ForeignTools:
        if self._tools is None:
            raise ValueError("nobody has said where llama.cpp's tools are")
        return self._tools

    def _calibrated(self, recipe: Recipe, job: _Job) -> None:
        if job.calibration is None or self._calibrate is None:
            raise ValueError("4-bit activations have to be calibrated")
        from orchestrator.artifacts import one_pass
        from orchestrator.artifacts.calibrated import tidy
        from orchestrator.artifacts.claims import check_nvfp4

        # Not a sound model: told before hours of work.
        with one_pass.opened(job.source, job.template) as weights:
            meaning = weights.meaning
        self._calibrate(job.source, job.work, job.calibration, job.progress)
        tidy(job.source, job.work, meaning)
        check_nvfp4(job.work, recipe)

    def copy_in(
        self, path: Path, work: Path, expect: Callable[[int], None], progress: Progress
    ) -> tuple[FileEntry, ...]:
        """See ready_made.copy_in."""
        from orchestrator.artifacts.ready_made import copy_in

        return copy_in(path, work, expect, progress)

    def settle(self, recipe: Recipe, work: Path, files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
        """See ready_made.settle."""
        from orchestrator.artifacts.ready_made import settle

        return settle(recipe, work, files)


def _check_meaning(source: Path, made: Path, template: str) -> None:
    """What was built is read as engines will: SourceError where it means something else than what it is made of."""
    from orchestrator.artifacts.gguf_meaning import read_gguf_meaning
    from orchestrator.artifacts.meaning import read_meaning

    if found := deviations(read_gguf_meaning(made), read_meaning(source, template or None)):
        raise SourceError(f"The GGUF of {source} would not be the same model: {found[0]}.", "", "\n".join(found))


def _refuse_unknown(base: Path) -> None:
    if what := families.unknown_architecture(base):
        raise PlanRefused(
            f"Adapters of {what} cannot be checked, nor converted: orch does not know its matrices.",
            "Merge it into the weights (merge_and_unload of PEFT), and serve the directory that this is saved to.",
        )


def _view(job: _Job) -> None:
    from orchestrator.artifacts.view import build_view

    build_view(job.source, job.work, job.template)


def _adapter(job: _Job) -> None:
    from orchestrator.artifacts.adapter_import import import_adapter

    import_adapter(job.source, job.work, job.base, job.progress)


def _lora(job: _Job) -> None:
    if job.base is None:
        raise ValueError("an adapter is built for a base")
    from orchestrator.artifacts.lora import build_lora_gguf

    refuse_misfit(job.source, read_adapter(job.source), job.base)
    build_lora_gguf(job.source, families.read_config(job.base), job.work / ADAPTER_FILE, job.progress)


_SMALL = {Recipe.VIEW: _view, Recipe.ADAPTER: _adapter, Recipe.LORA_GGUF: _lora}

"""llama.cpp's own converter and quantizer, one after the other, in their image or as a user has them: for `orch build
gguf --in-container` and `--tools DIR`, and for what a profile is served with where orch's own builder does not know it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.app.images import image_pins
from orchestrator.artifacts.disk import fsync_directory, fsync_file, host_errors
from orchestrator.artifacts.foreign_gguf import FileType, architecture, file_type, room_needed, weights_size
from orchestrator.core.artifact import Recipe
from orchestrator.core.container import MOST_OF_MEMORY
from orchestrator.core.progress import Progress
from orchestrator.core.tools import TOOLS, Tool, ToolEnd
from orchestrator.drivers.docker.tools import DockerTools
from orchestrator.drivers.local.tools import end_tools, run_tool
from orchestrator.drivers.records import exclusive
from orchestrator.engines.llamacpp_tools import (
    CONVERTERS,
    FIRST,
    INTERPRETERS,
    QUANTIZERS,
    UNQUANTIZED,
    Origin,
    convert_words,
    failure,
    quantize_words,
)
from orchestrator.errors import HostError

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

LOCK = "tools.lock"


class _Tools(Protocol):
    """How the two programs are run: told what they are doing, their words, and the directory that they write to."""

    @property
    def origin(self) -> Origin: ...

    @property
    def cpus(self) -> int: ...

    def convert(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd: ...

    def quantize(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd: ...


def build_gguf_with_tools(
    orch: Orchestrator, directory: Path, output: Path, quant: str, given: Path | None, progress: Progress
) -> None:
    """Make `output`, which appears only when it is whole, has the type that was asked for, and one architecture
    throughout: with the tools in the directory `given`, or in their image, which is pulled if it is not here."""
    wanted = file_type(quant)
    first = None if wanted.name in UNQUANTIZED else file_type(FIRST)
    source, output = directory.resolve(), output.absolute()
    if output.is_dir():
        raise HostError(f"{output} is a directory.", hint="Name the file to write: -o FILE.gguf")
    size = _has_room(source, output, wanted, first)
    with exclusive(orch.settings.data / LOCK, "build gguf with llama.cpp's tools"):
        tools = _in_image(orch, source, progress) if given is None else find_tools(orch, given, first is not None)
        others = tools.origin.others
        with _work_directory(output) as work:
            made = _convert(tools, source, work, first or wanted, size, progress)
            name = architecture(made, first or wanted, others)
            if first is not None:
                made = _quantize(tools, made, wanted, progress)
                if architecture(made, wanted, others) != name:
                    raise HostError(f"The quantizer did not keep the architecture {name}.", hint=others)
            _take(made, output)


def tell_tools(orch: Orchestrator, given: Path, quant: str) -> None:
    """Which programs of that directory will be run; HostError when it lacks one."""
    tools = find_tools(orch, given, quantizes=file_type(quant).name not in UNQUANTIZED)
    programs = {"interpreter": tools.interpreter, "converter": tools.converter, "quantizer": tools.quantizer}
    orch.note({"tools": programs}, f"With {', '.join(filter(None, programs.values()))}")


def tell_how_to_serve(orch: Orchestrator, output: Path, quant: str) -> None:
    """How a profile names what was made, where engines serve it."""
    recipe = f"gguf-{file_type(quant).name.lower()}"
    if recipe in {known.value for known in Recipe}:
        text = f'To serve it, a profile names it: [artifacts."{recipe}"] path = "{output.absolute()}"'
        orch.note({"serve": {"recipe": recipe, "path": str(output.absolute())}}, text)


def _convert(tools: _Tools, source: Path, work: Path, kind: FileType, size: int, progress: Progress) -> Path:
    """The weights as a GGUF file of an unquantized kind; about `size` bytes."""
    what, made = "Converting", work / f"{kind.name.lower()}.gguf"

    def grown(what: str, done: int, total: int) -> None:
        # It does not count what it does, so the file's growth tells.
        written = made.stat().st_size if made.exists() else 0
        progress(what, *((done, total) if total else (min(written, size), size)))

    words = convert_words(str(source), str(made), kind.name)
    return _made(what, made, tools.convert(what, words, work, grown), tools)


def _quantize(tools: _Tools, first: Path, kind: FileType, progress: Progress) -> Path:
    """The converted file in the wanted kind."""
    what, made = "Quantizing", first.with_name(f"{kind.name.lower()}.gguf")
    words = quantize_words(str(first), str(made), kind.name, tools.cpus)
    return _made(what, made, tools.quantize(what, words, first.parent, progress), tools)


def _made(what: str, made: Path, end: ToolEnd, tools: _Tools) -> Path:
    # The image's entrypoint answers a word that it does not know with help and exit code 0.
    if end.code or not made.exists():
        raise failure(what, end, tools.origin)
    return made


@dataclass(frozen=True)
class _InImage:
    """The tools of an image, and the weights that they may read."""

    orch: Orchestrator
    image: str
    reads: tuple[str, ...]
    memory_mib: int
    cpus: int

    @property
    def origin(self) -> Origin:
        return Origin.image()

    def convert(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd:
        return self._run(what, ("--convert", *words), work, progress)

    def quantize(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd:
        return self._run(what, ("--quantize", *words), work, progress)

    def _run(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd:
        orch = self.orch
        tools = DockerTools(orch.daemon, orch.images, orch.settings.data, orch.settings.logs)
        return tools.run(Tool(what, self.image, words, self.reads, (str(work),), self.memory_mib), progress)


def _in_image(orch: Orchestrator, source: Path, progress: Progress) -> _Tools:
    """HostError when there is no daemon, or no image and no registry. What a killed orch left behind is removed."""
    facts = orch.docker_facts
    if facts.problem:
        raise HostError(facts.problem, hint=facts.hint)
    DockerTools(orch.daemon, orch.images, orch.settings.data, orch.settings.logs).sweep()
    pin = image_pins(orch)[TOOLS].docker[0]
    orch.images.pull(pin, progress)
    memory, cpus = orch.daemon.room()
    return _InImage(orch, pin.reference, _read_with(source), int(memory.total * MOST_OF_MEMORY) >> 20, cpus)


def _read_with(source: Path) -> tuple[str, ...]:
    """The directory, and all those that its files are links into, one after the other: a view of a hub client's cache
    leads there by two."""
    found = {str(source)}
    for path in source.iterdir():
        while path.is_symlink():
            path = Path(os.path.normpath(path.parent / path.readlink()))
            found.add(str(path.parent))
    return tuple(sorted(found))


@dataclass(frozen=True)
class GivenTools:
    """The tools in a directory of the user's, run as processes of this user."""

    directory: Path
    interpreter: str
    converter: str
    quantizer: str
    cpus: int

    @property
    def origin(self) -> Origin:
        return Origin.given(str(self.directory), self.interpreter)

    def convert(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd:
        return run_tool(what, (self.interpreter, self.converter, *words), work, progress)

    def quantize(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd:
        return run_tool(what, (self.quantizer, *words), work, progress)


def find_tools(orch: Orchestrator, directory: Path, quantizes: bool) -> GivenTools:
    """HostError when the directory lacks one that is needed, or no Python is found."""
    directory = directory.absolute()

    def find(names: tuple[str, ...], mode: int) -> str:
        places = [directory / name for name in names]
        return next((str(place) for place in places if place.is_file() and os.access(place, mode)), "")

    converter = find(CONVERTERS, os.R_OK)
    quantizer = find(QUANTIZERS, os.X_OK) if quantizes else ""
    if not converter or (quantizes and not quantizer):
        names = CONVERTERS if not converter else QUANTIZERS
        raise HostError(
            f"{directory} has no {names[-1].rpartition('/')[2]}.",
            hint="Name a built llama.cpp checkout or an installation; or --in-container uses the official image.",
            detail="\n".join(["looked for:", *(str(directory / name) for name in names)]),
        )
    interpreter = find(INTERPRETERS, os.X_OK) or shutil.which("python3")
    if interpreter is None:
        raise HostError("There is no python3 on PATH to run the converter.", hint="Make a .venv in that directory.")
    return GivenTools(directory, interpreter, converter, quantizer, orch.host.cpus)


def _has_room(source: Path, output: Path, wanted: FileType, first: FileType | None) -> int:
    """The bytes of the file that the converter will write, about; HostError when the disk has no room for all."""
    weights = weights_size(source)
    needed = room_needed(weights, wanted, first)
    with host_errors(f"write {output}"):
        free = shutil.disk_usage(output.parent).free
    if needed > free:
        parts = f"about {needed / 1e9:.1f} GB" + (f", with the {first.name} file in between" if first else "")
        raise HostError(
            f"{output.parent} has {free / 1e9:.1f} GB free, and building {output.name} needs {parts}.",
            hint="Free some space, or write to another disk: -o FILE",
        )
    return room_needed(weights, first or wanted, None)


@contextmanager
def _work_directory(output: Path) -> Iterator[Path]:
    """A hidden sibling of `output`, for this user only, which is all that the tools may write to; removed at the end.

    Its name is always the same: the next attempt ends and removes what a killed one left.
    """
    work = output.with_name(f".{output.name}.tools")
    end_tools(work)
    try:
        with host_errors(f"write {output}"):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(mode=0o700)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _take(made: Path, output: Path) -> None:
    with host_errors(f"write {output}"):
        fsync_file(made)
        made.replace(output)
        fsync_directory(output.parent)

"""`orch build gguf --in-container` and `--tools DIR`: llama.cpp's own converter and quantizer, one after the other, in
their image or as a user has them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.errors import HostError

if TYPE_CHECKING:
    from orchestrator.artifacts.foreign_gguf import FileType
    from orchestrator.cli.session import Session
    from orchestrator.core.progress import Progress
    from orchestrator.core.tools import ToolEnd
    from orchestrator.engines.llamacpp_tools import Origin

LOCK = "tools.lock"


class _Tools(Protocol):
    """How the two programs are run: told what they are doing, their words, and the directory that they write to."""

    @property
    def origin(self) -> Origin: ...

    def convert(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd: ...

    def quantize(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd: ...


def build_gguf_with_tools(session: Session, directory: Path, output: Path, quant: str, given: Path | None) -> None:
    """Make `output`, which appears only when it is whole, has the type that was asked for, and one architecture
    throughout: with the tools in the directory `given`, or in their image, which is pulled if it is not here."""
    from orchestrator.artifacts.foreign_gguf import architecture, file_type
    from orchestrator.drivers.records import exclusive
    from orchestrator.engines.llamacpp_tools import FIRST, UNQUANTIZED

    wanted = file_type(quant)
    first = None if wanted.name in UNQUANTIZED else file_type(FIRST)
    source, output = directory.resolve(), output.absolute()
    if output.is_dir():
        raise HostError(f"{output} is a directory.", hint="Name the file to write: -o FILE.gguf")
    size = _has_room(source, output, wanted, first)
    with exclusive(session.settings.data / LOCK, "build gguf with llama.cpp's tools"):
        tools = _in_image(session, source) if given is None else _given(session, given, quantizes=first is not None)
        others = tools.origin.others
        with _work_directory(output) as work:
            made = _convert(session, tools, source, work, first or wanted, size)
            name = architecture(made, first or wanted, others)
            if first is not None:
                made = _quantize(session, tools, made, wanted)
                if architecture(made, wanted, others) != name:
                    raise HostError(f"The quantizer did not keep the architecture {name}.", hint=others)
            _take(made, output)
    _tell_how_to_serve(session, output, wanted)


def _convert(session: Session, tools: _Tools, source: Path, work: Path, kind: FileType, size: int) -> Path:
    """The weights as a GGUF file of an unquantized kind; about `size` bytes."""
    from orchestrator.engines.llamacpp_tools import convert_words

    what, made = "Converting", work / f"{kind.name.lower()}.gguf"

    def grown(what: str, done: int, total: int) -> None:
        # It does not count what it does, so the file's growth tells.
        written = made.stat().st_size if made.exists() else 0
        session.progress(what, *((done, total) if total else (min(written, size), size)))

    words = convert_words(str(source), str(made), kind.name)
    return _made(what, made, tools.convert(what, words, work, grown), tools)


def _quantize(session: Session, tools: _Tools, first: Path, kind: FileType) -> Path:
    """The converted file in the wanted kind."""
    from orchestrator.engines.llamacpp_tools import quantize_words

    what, made = "Quantizing", first.with_name(f"{kind.name.lower()}.gguf")
    words = quantize_words(str(first), str(made), kind.name, len(os.sched_getaffinity(0)))
    return _made(what, made, tools.quantize(what, words, first.parent, session.progress), tools)


def _made(what: str, made: Path, end: ToolEnd, tools: _Tools) -> Path:
    from orchestrator.engines.llamacpp_tools import failure

    # The image's entrypoint answers a word that it does not know with help and exit code 0.
    if end.code or not made.exists():
        raise failure(what, end, tools.origin)
    return made


@dataclass(frozen=True)
class _InImage:
    """The tools of an image, and the weights that they may read."""

    session: Session
    image: str
    reads: tuple[str, ...]
    memory_mib: int

    @property
    def origin(self) -> Origin:
        from orchestrator.engines.llamacpp_tools import Origin

        return Origin.image(self.memory_mib)

    def convert(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd:
        return self._run(what, ("--convert", *words), work, progress)

    def quantize(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd:
        return self._run(what, ("--quantize", *words), work, progress)

    def _run(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd:
        from orchestrator.core.tools import Tool
        from orchestrator.drivers.docker.tools import DockerTools

        session = self.session
        tools = DockerTools(session.daemon, session.images, session.settings.data, session.settings.logs)
        return tools.run(Tool(what, self.image, words, self.reads, (str(work),), self.memory_mib), progress)


def _in_image(session: Session, source: Path) -> _Tools:
    """HostError when there is no daemon, or no image and no registry. What a killed orch left behind is removed."""
    from orchestrator.cli.images import image_pins
    from orchestrator.core.container import MOST_OF_MEMORY
    from orchestrator.core.tools import TOOLS
    from orchestrator.drivers.docker.tools import DockerTools
    from orchestrator.drivers.weights import link_directories

    facts = session.docker_facts
    if facts.problem:
        raise HostError(facts.problem, hint=facts.hint)
    DockerTools(session.daemon, session.images, session.settings.data, session.settings.logs).sweep()
    pin = image_pins(session)[TOOLS].docker[0]
    session.images.pull(pin, session.progress)
    reads = {str(source), *link_directories(source)}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _InImage(session, pin.reference, tuple(sorted(reads)), int(memory * MOST_OF_MEMORY) >> 20)


@dataclass(frozen=True)
class _Given:
    """The tools in a directory of the user's, run as processes of this user."""

    directory: Path
    interpreter: str
    converter: str
    quantizer: str

    @property
    def origin(self) -> Origin:
        from orchestrator.engines.llamacpp_tools import Origin

        return Origin.given(str(self.directory), self.interpreter)

    def convert(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd:
        from orchestrator.drivers.local.tools import run_tool

        return run_tool(what, (self.interpreter, self.converter, *words), work, progress)

    def quantize(self, what: str, words: tuple[str, ...], work: Path, progress: Progress) -> ToolEnd:
        from orchestrator.drivers.local.tools import run_tool

        return run_tool(what, (self.quantizer, *words), work, progress)


def _given(session: Session, directory: Path, quantizes: bool) -> _Tools:
    """HostError when the directory lacks one that is needed, or no Python is found. Says which ones are run."""
    from orchestrator.engines.llamacpp_tools import CONVERTERS, INTERPRETERS, QUANTIZERS

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
            hint="Give a llama.cpp checkout that is built, or its installation; or --in-container, its official image.",
            detail="\n".join(["looked for:", *(str(directory / name) for name in names)]),
        )
    interpreter = find(INTERPRETERS, os.X_OK) or shutil.which("python3")
    if interpreter is None:
        raise HostError("There is no python3 on PATH to run the converter.", hint="Make a .venv in the directory.")
    tools = _Given(directory, interpreter, converter, quantizer)
    told = {"interpreter": interpreter, "converter": converter, "quantizer": quantizer}
    session.screen.note({"tools": told}, f"With {interpreter} {converter}{', ' if quantizer else ''}{quantizer}")
    return tools


def _tell_how_to_serve(session: Session, output: Path, kind: FileType) -> None:
    from orchestrator.core.artifact import Recipe

    recipe = f"gguf-{kind.name.lower()}"
    if recipe in {known.value for known in Recipe}:
        text = f'To serve it, a profile names it: [artifacts."{recipe}"] path = "{output}"'
        session.screen.note({"serve": {"recipe": recipe, "path": str(output)}}, text)


def _has_room(source: Path, output: Path, wanted: FileType, first: FileType | None) -> int:
    """The bytes of the file that the converter will write, about; HostError when the disk has no room for all."""
    from orchestrator.artifacts.disk import host_errors
    from orchestrator.artifacts.foreign_gguf import room_needed, weights_size

    weights = weights_size(source)
    needed = room_needed(weights, wanted, first)
    with host_errors(f"write {output}"):
        free = shutil.disk_usage(output.parent).free
    if needed > free:
        parts = f"about {needed / 1e9:.1f} GB" + (f", the {first.name} file in between counted" if first else "")
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
    from orchestrator.artifacts.disk import host_errors
    from orchestrator.drivers.local.tools import end_tools

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
    from orchestrator.artifacts.disk import fsync_directory, fsync_file, host_errors

    with host_errors(f"write {output}"):
        fsync_file(made)
        made.replace(output)
        fsync_directory(output.parent)

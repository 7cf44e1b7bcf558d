"""`orch build gguf --in-container`: llama.cpp's own converter and quantizer, one after the other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import HostError

if TYPE_CHECKING:
    from orchestrator.artifacts.foreign_gguf import FileType
    from orchestrator.cli.session import Session
    from orchestrator.core.progress import Progress

LOCK = "tools.lock"
ANOTHER_IMAGE = "Use another image of llama.cpp's tools: orch images pin tools IMAGE:TAG"


def build_gguf_in_container(session: Session, directory: Path, output: Path, quant: str) -> None:
    """Make `output`, which appears only when it is whole, has the type that was asked for, and one architecture
    throughout. The image is pulled if it is not here."""
    from orchestrator.artifacts.foreign_gguf import architecture, file_type
    from orchestrator.drivers.records import exclusive
    from orchestrator.engines.llamacpp_tools import FIRST, UNQUANTIZED

    wanted = file_type(quant)
    first = None if wanted.name in UNQUANTIZED else file_type(FIRST)
    source, output = directory.resolve(), output.absolute()
    if output.is_dir():
        raise HostError(f"{output} is a directory.", hint="Name the file to write: -o FILE.gguf")
    size = _has_room(source, output, wanted, first)
    with exclusive(session.settings.data / LOCK, "build gguf --in-container"):
        bench = _bench(session, source)
        with _work_directory(output) as work:
            made = bench.convert(work, first or wanted, size)
            name = architecture(made, first or wanted)
            if first is not None:
                made = bench.quantize(work, made, wanted)
                if architecture(made, wanted) != name:
                    raise HostError(f"The quantizer did not keep the architecture {name}.", hint=ANOTHER_IMAGE)
            _take(made, output)


@dataclass(frozen=True)
class _Bench:
    """The tools, their image, and the weights that they may read."""

    session: Session
    image: str
    source: Path
    reads: tuple[str, ...]
    memory_mib: int

    def convert(self, work: Path, kind: FileType, size: int) -> Path:
        """The weights as a GGUF file of an unquantized kind; about `size` bytes."""
        from orchestrator.engines.llamacpp_tools import convert_words

        made = work / f"{kind.name.lower()}.gguf"

        def grown(what: str, done: int, total: int) -> None:
            # It does not count what it does, so the file's growth tells.
            written = made.stat().st_size if made.exists() else 0
            self.session.progress(what, *((done, total) if total else (min(written, size), size)))

        self._run("Converting", work, convert_words(str(self.source), str(made), kind.name), made, grown)
        return made

    def quantize(self, work: Path, first: Path, kind: FileType) -> Path:
        """The converted file in the wanted kind."""
        from orchestrator.engines.llamacpp_tools import quantize_words

        made = work / f"{kind.name.lower()}.gguf"
        words = quantize_words(str(first), str(made), kind.name, len(os.sched_getaffinity(0)))
        self._run("Quantizing", work, words, made, self.session.progress)
        return made

    def _run(self, what: str, work: Path, words: tuple[str, ...], made: Path, progress: Progress) -> None:
        from orchestrator.core.tools import Tool
        from orchestrator.drivers.docker.tools import DockerTools
        from orchestrator.engines.llamacpp_tools import failure

        session = self.session
        tools = DockerTools(session.daemon, session.images, session.settings.data, session.settings.logs)
        tool = Tool(what, self.image, words, self.reads, (str(work),), self.memory_mib)
        end = tools.run(tool, progress)
        # A word that the entrypoint does not know is answered with help and exit code 0.
        if end.code or not made.exists():
            raise failure(tool, end)


def _bench(session: Session, source: Path) -> _Bench:
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
    return _Bench(session, pin.reference, source, tuple(sorted(reads)), int(memory * MOST_OF_MEMORY) >> 20)


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

    Its name is always the same: the next attempt removes what a killed one left.
    """
    from orchestrator.artifacts.disk import host_errors

    work = output.with_name(f".{output.name}.tools")
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

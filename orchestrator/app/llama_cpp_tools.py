"""llama.cpp's own tools for what profiles are served with: those in the directory that ORCH_LLAMA_CPP names, else the
ones in their pinned image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.app.images import image_pins
from orchestrator.core.builders import Tools
from orchestrator.core.pins import ImagePin
from orchestrator.core.progress import Progress
from orchestrator.core.tools import TOOLS
from orchestrator.engines.llamacpp_tools import UNQUANTIZED
from orchestrator.errors import HostError

if TYPE_CHECKING:
    from orchestrator.app.gguf_tools import GivenTools
    from orchestrator.app.orchestrator import Orchestrator


class LlamaCppTools:
    """What the builder of artifacts is given to build with. How they are run is known by gguf_tools.py, which is
    imported when they are needed: it reads GGUF files, and most have nothing to do with these tools."""

    def __init__(self, orch: Orchestrator) -> None:
        self._orch = orch
        self._directory = orch.settings.llama_cpp

    @property
    def here(self) -> Tools:
        """Where they are, and whether they can be used."""
        if self._directory is None:
            return Tools(f"in the image {self._image.name}", self._orch.docker_facts.problem.rstrip("."))
        try:
            self._found(self._directory, quantizes=True)
        except HostError as error:
            return Tools(problem=f"{error.message.rstrip('.')} (ORCH_LLAMA_CPP)")
        return Tools(f"in {self._directory}")

    def versions(self, quant: str) -> dict[str, str]:
        """What makes the bytes: the image, or the SHA-256 of the programs."""
        if self._directory is None:
            return {"image": self._image.reference}
        found = self._found(self._directory, quantizes=quant.upper() not in UNQUANTIZED)
        programs = {"converter": found.converter, "quantizer": found.quantizer}
        digest, progress = self._orch.catalog.digest, self._orch.progress
        return {name: digest(Path(program), progress) for name, program in programs.items() if program}

    def build(self, source: Path, output: Path, quant: str, progress: Progress) -> None:
        """Make the GGUF file `output` of the weights in `source`."""
        # See above.
        from orchestrator.app.gguf_tools import build_gguf_with_tools

        build_gguf_with_tools(self._orch, source, output, quant, self._directory, progress)

    def _found(self, directory: Path, quantizes: bool) -> GivenTools:
        # See above.
        from orchestrator.app.gguf_tools import find_tools

        return find_tools(self._orch, directory, quantizes)

    @property
    def _image(self) -> ImagePin:
        return image_pins(self._orch)[TOOLS].docker[0]

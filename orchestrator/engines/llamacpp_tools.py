"""What is known of llama.cpp's converter and quantizer: as its `full` image has them, and as its users do. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.core.tools import ToolEnd
from orchestrator.errors import HostError, OrchError, SourceError

# What the converter writes by itself; all else is quantized from BF16.
UNQUANTIZED = ("F32", "F16", "BF16")
FIRST = "BF16"
TAIL_LINES = 25

# Where they lie in a checkout that was built, in what it installs, or side by side.
CONVERTERS = ("convert_hf_to_gguf.py", "bin/convert_hf_to_gguf.py")
QUANTIZERS = ("build/bin/llama-quantize", "bin/llama-quantize", "llama-quantize")
# The interpreter that has what the converter imports, if there is one of its own.
INTERPRETERS = (".venv/bin/python", "venv/bin/python", "bin/python")


@dataclass(frozen=True)
class Origin:
    """Where the tools come from, as hints say it: how others are taken, and newer ones."""

    others: str
    newer: str

    @classmethod
    def image(cls) -> Origin:
        """The pinned image."""
        return cls(
            "Is it an image of llama.cpp's tools? orch images ls; another one: orch images pin tools IMAGE:TAG",
            "A newer image may: orch images pin tools ghcr.io/ggml-org/llama.cpp:full",
        )

    @classmethod
    def given(cls, directory: str, interpreter: str) -> Origin:
        """A directory of the user's."""
        return cls(
            f"Are {directory} and {interpreter} as llama.cpp wants them? Its requirements.txt says what is imported.",
            "A newer llama.cpp may: --tools DIR of another checkout, or --in-container",
        )


# From convert_hf_to_gguf.py: the class of the model, or of its tokenizer, is one that it has no code for.
_UNKNOWN = re.compile(r"Model \S+ is not supported|Architecture .+ not supported|NotImplementedError\b.*")
# The first of these that some line fits tells why; of several such lines the first.
_TELLING = (
    _UNKNOWN,
    re.compile(r"No space left on device"),
    re.compile(r"failed to quantize: .+|invalid ftype.+|.*importance matrix.+"),
    re.compile(r"^\w*(?:Error|Exception): .+"),
    re.compile(r"what\(\):\s.+|terminate called .+"),
    re.compile(r"^ERROR:.+"),
)


def convert_words(source: str, out: str, kind: str) -> tuple[str, ...]:
    """For the converter: a Hugging Face directory to a GGUF file of an unquantized kind."""
    return (source, "--outfile", out, "--outtype", kind.lower())


def quantize_words(source: str, out: str, kind: str, threads: int) -> tuple[str, ...]:
    """For the quantizer: an unquantized GGUF file to one of this kind."""
    return (source, out, kind, str(threads))


def failure(what: str, end: ToolEnd, origin: Origin) -> OrchError:
    """Why a run made no file: SourceError when the weights are what it does not know, else HostError."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", end.log) if line.strip()]
    tail = "\n".join(lines[-TAIL_LINES:])
    said = _telling(lines)
    if end.out_of_memory:
        return HostError(f"{what} {end.out_of_memory}.", "Stop what else uses memory, then try again.", tail)
    if _UNKNOWN.search(said):
        return SourceError(f"llama.cpp's converter does not know these weights: {said}.", origin.newer, tail)
    if "No space left" in said:
        return HostError(f"{what} failed: the disk is full.", "Free some space, or write elsewhere.", tail)
    how = f"signal {end.code - 128}" if end.code > 128 else f"exit code {end.code}" if end.code else "no file"
    return HostError(f"{what} failed ({how}){f': {said}' if said else ''}.", origin.others, tail)


def _telling(lines: list[str]) -> str:
    for pattern in _TELLING:
        for line in lines:
            if found := pattern.search(line):
                return found[0].strip().rstrip(".")
    return lines[-1].rstrip(".") if lines else ""

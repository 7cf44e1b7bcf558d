"""The verbs that build artifacts, at a path of one's own."""

from __future__ import annotations

import os
import shutil
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, app, session_of
from orchestrator.errors import PlanRefused

if TYPE_CHECKING:
    from orchestrator.cli.session import Session

build = typer.Typer(help="Build one artifact, at a path of your own.", no_args_is_help=True)
app.add_typer(build, name="build")

WeightsDirectory = Annotated[
    Path, typer.Argument(help="A model directory: config, tokenizer, safetensors.", exists=True, file_okay=False)
]


@build.command("gguf")
def build_gguf(
    directory: WeightsDirectory,
    output: Annotated[Path, typer.Option("-o", "--output", help="The GGUF file to write.")],
    quant: Annotated[
        str, typer.Option(help="q6_k or bf16; with --in-container any that llama-quantize names.")
    ] = "q6_k",
    in_container: Annotated[
        bool, typer.Option("--in-container", help="Use llama.cpp's own tools, which know most models, in their image.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Safetensors of a dense Qwen3 to GGUF in one pass, its tensors byte-identical to those of llama.cpp's own tools;
    with --in-container other models too, by these tools."""
    with session_of(as_json) as session:
        from orchestrator.artifacts.gguf_file import Quant
        from orchestrator.artifacts.gguf_file import build_gguf as build_file
        from orchestrator.artifacts.quantize import Quantizer
        from orchestrator.cli.gguf_container import build_gguf_in_container
        from orchestrator.cli.session import quantizer_library

        name = quant.lower()
        if name not in typing.get_args(Quant) and not in_container:
            raise PlanRefused(
                f"orch does not know the quantization {quant}.", hint="Known: q6_k, bf16; others with --in-container"
            )
        if output.resolve().parent == directory.resolve() and output.exists():
            raise PlanRefused(f"{output} is one of the files it would be built from.", hint="Write to another place.")
        if in_container:
            build_gguf_in_container(session, directory, output, quant)
            _tell_file(session, output)
            return
        build_file(directory, output, typing.cast("Quant", name), Quantizer(quantizer_library()), session.progress)
        _tell_file(session, output)


@build.command("nvfp4")
def build_nvfp4(
    directory: WeightsDirectory,
    output: Annotated[Path, typer.Option("-o", "--output", help="The directory to write; must not exist.")],
    mode: Annotated[str, typer.Option(help="a16: 4-bit weights, 16-bit activations; needs no data.")] = "a16",
    as_json: AsJson = False,
) -> None:
    """Safetensors to NVFP4, in the layout that vLLM reads. Byte-identical to what llm-compressor writes."""
    with session_of(as_json) as session:
        from orchestrator.artifacts.nvfp4_checkpoint import build_nvfp4 as build_directory

        if mode != "a16":
            raise PlanRefused(f"orch does not know the NVFP4 mode {mode}.", hint="Known: a16")
        with _whole_directory(output) as work:
            build_directory(directory, work, session.progress)
        _tell_file(session, output)


@contextmanager
def _whole_directory(output: Path) -> Iterator[Path]:
    """A hidden sibling of `output` to build in; it takes the name once it is whole, and is removed on failure.

    Its name is always the same: the next attempt removes what a killed one left.
    """
    from orchestrator.artifacts.disk import fsync_directory, host_errors

    if os.path.lexists(output):
        raise PlanRefused(f"{output} exists already.", hint="Name a directory that does not exist yet, or remove it.")
    work = output.with_name(f".{output.name}.part")
    try:
        with host_errors(f"write {output}"):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
        yield work
        with host_errors(f"write {output}"):
            work.rename(output)
            fsync_directory(output.absolute().parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _tell_file(session: Session, output: Path) -> None:
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    size = sum(path.stat().st_size for path in files)
    session.screen.result({"built": str(output), "size": size}, f"{output}: {size / 1e6:.1f} MB.")

"""Artifacts that others have built: brought in, checked to be what they claim, and named as engines look for them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from orchestrator.artifacts.claims import check_fp8, check_nvfp4
from orchestrator.artifacts.disk import host_errors
from orchestrator.artifacts.gguf_claims import check_gguf
from orchestrator.artifacts.meaning import shards_of
from orchestrator.core.artifact import GGUF_FILE, FileEntry, Recipe
from orchestrator.core.progress import Progress
from orchestrator.core.weights import TEMPLATES, files_that_count
from orchestrator.errors import SourceError

_CHUNK = 1 << 20


def copy_in(path: Path, work: Path, expect: Callable[[int], None], progress: Progress) -> tuple[FileEntry, ...]:
    """Copies a file, or of a directory what weights consist of, into `work`, hashing on the way; `expect` is told how
    many bytes will come, and may refuse them."""
    files = [path] if path.is_file() else [path / name for name in _counted(path)]
    if not files:
        raise SourceError(f"{path} holds no weights.", "Name a GGUF file, or a directory with safetensors.")
    with host_errors(f"copy {path}"):
        total, done = sum(file.stat().st_size for file in files), 0
        expect(total)
        entries = []
        for file in files:
            digest, size = hashlib.sha256(), 0
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            (work / name).parent.mkdir(exist_ok=True)
            with file.open("rb") as source, (work / name).open("wb") as copy:
                while chunk := source.read(_CHUNK):
                    copy.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    progress(f"copying {path.name}", done + size, total)
            done += size
            entries.append(FileEntry(path=name, size=size, sha256=digest.hexdigest()))
        return tuple(entries)


def settle(recipe: Recipe, work: Path, files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
    """Checks what has been brought into `work`, and gives a GGUF the name that engines are told.

    SourceError if it is not what `recipe` says.
    """
    if recipe is Recipe.FP8:
        check_fp8(work)
    elif recipe in (Recipe.NVFP4, Recipe.NVFP4A16):
        check_nvfp4(work, recipe)
    if not recipe.quant:
        return files
    if len(files) != 1:
        raise SourceError(f"A GGUF is one file; these are {len(files)}: {', '.join(file.path for file in files)}.")
    with host_errors(f"name {files[0].path}"):
        # A link, not a rename: killed right after it, the download is still found under its own name.
        if files[0].path != GGUF_FILE:
            (work / GGUF_FILE).unlink(missing_ok=True)
            os.link(work / files[0].path, work / GGUF_FILE)
    check_gguf(work / GGUF_FILE, recipe)
    return (files[0].model_copy(update={"path": GGUF_FILE}),)


def _counted(directory: Path) -> tuple[str, ...]:
    with host_errors(f"read {directory}"):
        names = [path.name for path in directory.iterdir() if path.is_file()]
        templates = [f"{TEMPLATES}/{path.name}" for path in directory.glob(f"{TEMPLATES}/*.jinja")]
    return files_that_count([*names, *templates], lambda: shards_of(directory))

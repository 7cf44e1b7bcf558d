"""A container image that is here, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageFacts:
    """An image that the daemon has: its ID, what else names it exactly (NAME@DIGEST), its tags, and of its config
    the entrypoint, NVIDIA_REQUIRE_CUDA, and the Python ("3.12"; "": it does not say). None is inferred from tags."""

    id: str
    references: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    requires: str = ""
    size: int = 0
    python: str = ""

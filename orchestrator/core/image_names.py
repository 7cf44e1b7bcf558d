"""What people call an image, and what a name means now. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.core.images import ImageFacts

LATEST = "latest"
MOVING = re.compile(r"latest|nightly|main|edge|dev")


@dataclass(frozen=True)
class NamedImage:
    """The digest that a name has now. `local`: no registry states it, and it is the image's ID; `note` says who did
    not answer, empty when the registry did."""

    digest: str
    local: bool = False
    note: str = ""


@dataclass(frozen=True)
class ImageDetails:
    """An image that is here; `references` are the registries' digests that the daemon itself has checked, `version`
    its label, `layers` the SHA-256 of each unpacked layer: the same in every image store."""

    facts: ImageFacts
    version: str
    layers: tuple[str, ...]


def split_name(name: str) -> tuple[str, str]:
    """IMAGE and TAG of a name, as the daemon writes them; the tag is empty when there is none."""
    name = familiar(name)
    image, colon, tag = name.rpartition(":")
    return (image, tag) if colon and "/" not in tag else (name, "")


def familiar(name: str) -> str:
    """Without the words that mean Docker Hub."""
    return name.removeprefix("docker.io/").removeprefix("library/")


def moves(tag: str) -> bool:
    """Whether a tag is one that is meant to name another image tomorrow."""
    return MOVING.search(tag) is not None or not any(letter.isdigit() for letter in tag)

"""What `orch images save` writes first into its file, and `load` checks everything against. Pure.

The file is a plain tar: the lock, then the texts that the profile is calibrated with (`calibration.jsonl`), for each
store entry its files (`store/KEY/PATH`), and the images (`images/N.tar`, as the daemon exports them). The lock states
the size and SHA-256 of every one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated

from orchestrator.core.artifact import FileEntry, Manifest, Recipe
from orchestrator.core.part import Must, Part
from orchestrator.core.pins import Accelerator, ImagePin
from orchestrator.core.profile import Profile

FORMAT = 3
# 1 had no calibration, no recipes, and did not say what it leaves out; profiles of 2 knew of nothing published.
READABLE = (1, 2, FORMAT)
LOCK = "orch-archive.json"
CALIBRATION = "calibration.jsonl"

Sha256 = Annotated[str, Must(pattern=r"^[0-9a-f]{64}$")]


class SavedImage(Part):
    """An image: what orch calls it (`reference`: IMAGE@DIGEST, an ID, or the name of the gateway's own), its ID and
    layers, and its archive's size in bytes and SHA-256. `size` is what it takes unpacked."""

    name: str
    reference: str
    id: str
    layers: tuple[str, ...]
    requires: str = ""
    size: int
    archive_size: int = 0
    sha256: Sha256 = "0" * 64


class SavedEngine(Part):
    """An engine that the file was made for, what it computed on there, its image (None: target local), and the recipe
    that was asked for (None: the profile's choice)."""

    engine: str
    target: str
    accelerator: Accelerator
    image: ImagePin | None = None
    recipe: Recipe | None = None


class SavedAdapter(Part):
    """An adapter of the profile: its public name, and its entry in the store."""

    name: str
    key: str


class ArchiveLock(Part):
    """All of one file. `weights` is the store entry that takes the place of the directory that the profile names
    (empty: its weights are a hub's); `calibration` the file of texts that it names, if it is carried; `gateway_base` is
    ORCH_GATEWAY_BASE, if it was set; `left_out` has a sentence for each thing that the profile or another machine may
    want and that is not carried; `total` is the whole file's size in bytes."""

    format: int = FORMAT
    orch: str
    created: str
    profile: Profile
    engines: Annotated[tuple[SavedEngine, ...], Must(min_length=1)]
    weights: str = ""
    calibration: FileEntry | None = None
    adapters: tuple[SavedAdapter, ...] = ()
    gateway_base: str = ""
    left_out: tuple[str, ...] = ()
    images: tuple[SavedImage, ...] = ()
    entries: tuple[Manifest, ...] = ()
    total: int = 0

    @property
    def members(self) -> dict[str, int]:
        """Every file after the lock, and its size in bytes."""
        sizes = {CALIBRATION: self.calibration.size} if self.calibration is not None else {}
        sizes |= {entry_member(m.key, file.path): file.size for m in self.entries for file in m.files}
        return sizes | {image_member(number): image.archive_size for number, image in enumerate(self.images)}

    @property
    def bytes_inside(self) -> int:
        """Bytes of all entries and of all images, as far as they are known before they are exported."""
        texts = self.calibration.size if self.calibration is not None else 0
        return (
            texts + sum(m.size for m in self.entries) + sum(image.archive_size or image.size for image in self.images)
        )


def ready_made(lock: ArchiveLock, recipe: Recipe) -> str:
    """The key of the artifact of this recipe in the file; empty where it is not carried."""
    return next((manifest.key for manifest in lock.entries if manifest.recipe is recipe), "")


def entry_member(key: str, path: str) -> str:
    """Where a store entry's file is in the tar."""
    return f"store/{key}/{path}"


def image_member(number: int) -> str:
    """Where the n-th image is in the tar."""
    return f"images/{number}.tar"


def outside(manifest: Manifest) -> Iterator[str]:
    """The paths of a manifest that would lead out of its entry."""
    for file in manifest.files:
        parts = PurePosixPath(file.path).parts
        if not parts or ".." in parts or parts[0] == "/" or "/".join(parts) != file.path:
            yield file.path

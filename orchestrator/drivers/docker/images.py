"""Container images of the daemon: found by what names exactly one, pulled by digest, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.core.images import ImageFacts
from orchestrator.core.pins import ImagePin
from orchestrator.core.progress import Progress
from orchestrator.drivers import files
from orchestrator.drivers.docker.daemon import Daemon, NotThere
from orchestrator.drivers.docker.gateway_image import context
from orchestrator.errors import HostError

PULL_TICK_S = 0.2


class DockerImages:
    """`loaded` is a file that says which image IDs stand for which digests: an image that came in an archive has
    no digest of its own. The daemon is asked only if `in_use()`."""

    def __init__(self, daemon: Daemon, loaded: Path, in_use: Callable[[], bool]) -> None:
        self._daemon = daemon
        self._loaded = loaded
        self._in_use = in_use

    def observe(self) -> Mapping[str, ImageFacts]:
        """See Images."""
        if not self._in_use():
            return {}
        found: dict[str, ImageFacts] = {}
        for facts in self._daemon.patiently(self._all):
            found |= dict.fromkeys((facts.id, *facts.references, *facts.tags), facts)
        return found

    def find(self, reference: str) -> ImageFacts:
        """The image that a reference names. HostError when it is not here."""
        found = self._here(reference)
        if found is None:
            raise HostError(
                f"The image {reference} is not here.", hint="orch up pulls it; offline: orch images load FILE"
            )
        return found

    def pull(self, image: ImagePin, progress: Progress) -> ImageFacts:
        """See Images. What is here already is not asked for again."""
        facts = self._daemon.patiently(lambda: self._here(image.reference), progress)
        if facts is None and image.local:
            raise HostError(
                f"The image {image.name} with the ID {image.digest[:19]} is not here, and no registry has it.",
                hint=f"Make or load it again, then pin it: orch images pin ENGINE {image.name}",
            )
        if facts is None:
            self._daemon.patiently(lambda: self._pull(image, progress), progress)
            facts = self._here(image.reference)
        if facts is None:
            raise HostError(f"{image.name} was pulled, and is not here by its digest {image.digest[:19]}.")
        return facts

    def build(self, reference: str, base: str, progress: Progress) -> None:
        """See Images."""
        facts = self.find(base)

        def make() -> None:
            with self._daemon.told(f"build {reference}") as api:
                answer = api.build(fileobj=context(facts.id), custom_context=True, tag=reference, rm=True, decode=True)
                for line in answer:
                    if "error" in line:
                        raise HostError(f"The gateway's image could not be built: {line['error']}")

        self._daemon.patiently(lambda: self._daemon.ticking(make, progress, f"building {reference}"), progress)

    def resolve(self, name: str) -> tuple[str, bool]:
        """The digest that NAME:TAG has now, by its registry; or, of an image that only is here, its ID (then True)."""
        from docker.errors import APIError, NotFound

        try:
            with self._daemon.told(f"ask the registry for {name}") as api:
                return str(api.inspect_distribution(name)["Descriptor"]["digest"]), False
        except HostError as error:
            facts = self._here(name)
            if facts is None:
                raise HostError(f"{name} is not known: {error.message}", hint=error.hint) from error
            cause = error.__cause__
            unknown = isinstance(cause, NotFound | APIError)
            digest = next((ref.partition("@")[2] for ref in facts.references if "@" in ref), None)
            return (digest, False) if digest is not None and unknown else (facts.id, True)

    def save(self, references: Mapping[str, str], write: Callable[[bytes], object], progress: Progress) -> None:
        """All these images (reference to name) as one archive of `docker save`."""
        ids = [self.find(reference).id for reference in references]
        done = 0
        with self._daemon.told("save images") as api:
            # With names, `docker load` gives them back; an ID alone would come without any.
            for block in _stream(api, ids):
                write(block)
                done += len(block)
                progress("saving images", done, 0)

    def load(self, blocks: Iterator[bytes], expected: Mapping[str, str]) -> None:
        """Load an archive, and check that it brought `expected` (reference to image ID)."""
        with self._daemon.told("load images") as api:
            for _ in api.load_image(blocks, quiet=True):
                pass
        present = {facts.id for facts in self._all()}
        missing = [reference for reference, image in expected.items() if image not in present]
        if missing:
            raise HostError(f"The archive did not bring {', '.join(missing)}.", hint="Save it again where it was made.")
        known = self._known() | dict(expected)
        files.write_json(self._loaded, known, 0o600)

    def _known(self) -> dict[str, str]:
        try:
            value = files.read_json(self._loaded)
        except ValueError as error:
            raise HostError(
                f"{self._loaded} is damaged: {error}.", hint="Remove it, and load the images again."
            ) from error
        return {str(key): str(image) for key, image in value.items()} if isinstance(value, dict) else {}

    def _here(self, reference: str) -> ImageFacts | None:
        try:
            return self._inspect(reference)
        except NotThere:
            image = self._known().get(reference)
        try:
            return self._inspect(image) if image is not None else None
        except NotThere:
            return None

    def _all(self) -> list[ImageFacts]:
        with self._daemon.told("list images") as api:
            entries = api.images()
        stands_for: dict[str, list[str]] = {}
        for reference, image in self._known().items():
            stands_for.setdefault(image, []).append(reference)
        found = []
        for entry in entries:
            try:
                facts = self._inspect(entry["Id"])
            except NotThere:
                continue
            found.append(replace(facts, references=(*facts.references, *stands_for.get(facts.id, ()))))
        return found

    def _inspect(self, reference: str) -> ImageFacts:
        with self._daemon.told(f"inspect the image {reference}") as api:
            found = api.inspect_image(reference)
        config = found.get("Config") or {}
        env = dict(line.partition("=")[::2] for line in config.get("Env") or ())
        return ImageFacts(
            id=str(found["Id"]),
            references=tuple(found.get("RepoDigests") or ()),
            tags=tuple(found.get("RepoTags") or ()),
            entrypoint=tuple(config.get("Entrypoint") or ()),
            requires=env.get("NVIDIA_REQUIRE_CUDA", ""),
            size=int(found.get("Size") or 0),
        )

    def _pull(self, image: ImagePin, progress: Progress) -> None:
        layers: dict[str, tuple[int, int]] = {}
        with self._daemon.told(f"pull {image.name}") as api:
            for line in api.pull(image.image, tag=image.digest, stream=True, decode=True):
                if "error" in line:
                    raise HostError(f"{image.name} cannot be pulled: {line['error']}", hint=_pull_hint(line["error"]))
                _take(layers, line)
                progress(
                    f"pulling {image.name}", sum(d for d, _ in layers.values()), sum(t for _, t in layers.values())
                )


def _stream(api: Any, ids: list[str]) -> Iterator[bytes]:
    url = api._url("/images/get")
    answer = api._get(url, stream=True, params={"names": ids})
    api._raise_for_status(answer)
    yield from api._stream_raw_result(answer, 1 << 20, False)


def _take(layers: dict[str, tuple[int, int]], line: Mapping[str, Any]) -> None:
    detail = line.get("progressDetail") or {}
    if line.get("status") == "Downloading" and detail.get("total"):
        layers[str(line.get("id"))] = (int(detail.get("current") or 0), int(detail["total"]))
    elif line.get("status") in ("Download complete", "Pull complete") and line.get("id") in layers:
        total = layers[str(line["id"])][1]
        layers[str(line["id"])] = (total, total)


def _pull_hint(said: str) -> str:
    if "manifest unknown" in said or "not found" in said:
        return "The registry has no such digest any more: orch images pin ENGINE IMAGE:TAG"
    return "Offline: orch images save elsewhere, orch images load here."


__all__ = ["DockerImages", "json"]

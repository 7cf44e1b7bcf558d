"""Container images of the daemon: found by what names exactly one, pulled by digest, exported and loaded."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.core.image_names import ImageDetails, NamedImage, familiar, split_name
from orchestrator.core.images import ImageFacts
from orchestrator.core.pins import ImagePin
from orchestrator.core.progress import Progress
from orchestrator.drivers import files
from orchestrator.drivers.cancellable import cancellable
from orchestrator.drivers.docker.daemon import Daemon, DaemonGone, NotThere
from orchestrator.errors import HostError

if TYPE_CHECKING:
    from docker import APIClient

    from orchestrator.core.image_archive import SavedImage

Item = TypeVar("Item")

TICK_S = 0.1
# While it exports, unpacks or stores a layer of several gigabytes, the daemon says nothing.
SILENCE_S = 900.0
# The builder shows in red what a program says on stderr.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
VERSION_LABEL = "org.opencontainers.image.version"

# By a mark in what the daemon or the registry says; the first that fits decides.
PULL_HINTS: Mapping[str, str] = {
    "no basic auth": "The registry wants a login: docker login",
    "unauthorized": "The registry wants a login: docker login",
    # With its word: digests and ports have numbers of their own.
    "401 Unauthorized": "The registry wants a login: docker login",
    "verification failed": "What came is not what the digest names. Try again; is a proxy in the way?",
    "unexpected commit digest": "What came is not what the digest names. Try again; is a proxy in the way?",
    "unknown blob": "The registry has only a part of the image: pin another one, orch images pin ENGINE IMAGE:TAG",
    "manifest unknown": "The registry has no such digest any more: orch images pin ENGINE IMAGE:TAG",
    "not found": "The registry has no such digest any more: orch images pin ENGINE IMAGE:TAG",
    "EOF": "The connection broke. Run the same command again: layers that came completely are kept.",
    "connection reset": "The connection broke. Run the same command again: layers that came completely are kept.",
}
OFFLINE = "Without a registry: orch images save FILE on another machine, and here orch images load FILE."


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
        for facts in self._daemon.with_retry(self._all):
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
        facts = self._daemon.with_retry(lambda: self._here(image.reference), progress)
        if facts is None and image.local:
            raise HostError(
                f"The image {image.name} with the ID {image.digest[:19]} is not here, and no registry has it.",
                hint=f"Make or load it again, then pin it: orch images pin ENGINE {image.name}",
            )
        if facts is None:
            self._daemon.with_retry(lambda: self._pull(image, progress), progress)
            facts = self._here(image.reference)
        if facts is None:
            raise HostError(f"{image.name} was pulled, but is not here under its digest {image.digest[:19]}.")
        return facts

    def build(self, reference: str, base: str, progress: Progress) -> None:
        """See Images."""
        # Tar and the packages' metadata: only for this.
        from orchestrator.drivers.docker.gateway_image import context, python

        facts, what = self.find(base), f"building {reference}"

        def make() -> None:
            with self._daemon.api_for("make the gateway's image") as api:
                lines = list(
                    api.build(
                        fileobj=context(facts.id),
                        custom_context=True,
                        tag=reference,
                        network_mode="none",
                        rm=True,
                        forcerm=True,
                        decode=True,
                    )
                )
                failed = next((line for line in lines if "error" in line), None)
                if failed is not None:
                    said = "".join(str(line.get("stream", "")) for line in lines)
                    _remove_half_built(api, said, facts.id)
                    raise self._not_built(next(iter(facts.tags), base), python(), failed, said)

        self._daemon.with_retry(lambda: cancellable(make, lambda: progress(what, 0, 0), what), progress)

    def remove(self, facts: ImageFacts) -> None:
        """Remove an image, by all its names. HostError when a container is made of it, or another image."""
        known = self._known()
        for name in (*facts.tags, *facts.references) or (facts.id,):
            try:
                with self._daemon.api_for(f"remove the image {name}") as api:
                    api.remove_image(known.get(name, name))
            except NotThere:
                continue  # its last name was gone with the one before

    def _not_built(self, base: str, python: str, failed: Mapping[str, Any], said: str) -> HostError:
        """What a build has failed of: the image's own check of what it is made on, or the daemon."""
        exited = "code" in (failed.get("errorDetail") or {})
        if not exited and "executable file not found" not in failed["error"]:
            return self._daemon.refused("make the gateway's image", failed["error"])
        last = next((line for line in reversed(_COLOUR.sub("", said).splitlines()) if _is_of_a_program(line)), "")
        return HostError(
            f"The gateway cannot run in the image {base}: {last.strip() if exited else 'it has no python3'}",
            hint=f"Name an image that has Python {python} and glibc: ORCH_GATEWAY_BASE=IMAGE:TAG",
            detail=str(failed["error"])[:500],
        )

    def resolve(self, name: str) -> NamedImage:
        """What IMAGE:TAG means now, by its registry; where that does not tell, and the image is here, by the image."""
        try:
            with self._daemon.api_for(f"ask the registry for {name}") as api:
                return NamedImage(str(api.inspect_distribution(name)["Descriptor"]["digest"]))
        except DaemonGone:
            raise
        except HostError as error:
            details = self.details(name)
            if details is None:
                raise HostError(
                    f"What {name} means cannot be looked up: {error.message}", hint=error.hint or _hint(error.message)
                ) from error
            of_this = f"{split_name(name)[0]}@"
            stated = (ref for ref in details.facts.references if familiar(ref).startswith(of_this))
            digest = next(stated, "").partition("@")[2]
            return NamedImage(digest or details.facts.id, local=not digest, note=error.message)

    def details(self, reference: str) -> ImageDetails | None:
        """All of an image that is here; None when it is not."""
        found = self._daemon.with_retry(lambda: self._raw(reference))
        if found is None:
            return None
        labels = (found.get("Config") or {}).get("Labels") or {}
        layers = (found.get("RootFS") or {}).get("Layers") or ()
        return ImageDetails(_facts(found), str(labels.get(VERSION_LABEL, "")), tuple(layers))

    def export(self, image: str, progress: Progress) -> Iterator[bytes]:
        """The blocks of an image's archive, by its ID."""
        with self._silent(f"export {image}") as api:
            yield from _watched(lambda: api.get_image(image), lambda: progress("exporting an image", 0, 0))

    def load(self, saved: SavedImage, blocks: Iterable[bytes], progress: Progress) -> None:
        """Load one archive, see that it brought this image, and keep its name and what it stands for."""
        ids = []

        def tick() -> None:
            progress(f"loading {saved.name}", 0, 0)

        with self._silent(f"load {saved.name}") as api:
            for line in _watched(lambda: api.load_image(iter(blocks), quiet=True), tick):
                if "error" in line:
                    raise self._daemon.refused(f"load {saved.name}", line["error"])
                ids += re.findall(r"^Loaded image.*?: (\S+)$", str(line.get("stream", "")), re.MULTILINE)
        if not self.adopt(saved, ids):
            raise HostError(f"Docker took the archive of {saved.name}, but has no image {saved.id[:19]}.")

    def adopt(self, saved: SavedImage, ids: Iterable[str] = ()) -> bool:
        """If the image is here, by its ID or as one of `ids`: keep its name and what it stands for. Whether it is.

        Image stores differ in their IDs, but not in the layers of an image.
        """
        seen = [(name, self.details(name)) for name in (saved.id, *ids)]
        facts = next(
            (d.facts for name, d in seen if d is not None and (name == saved.id or d.layers == saved.layers)), None
        )
        if facts is None:
            return False
        self._name(saved, facts)
        if saved.reference not in (facts.id, *facts.references, *facts.tags, saved.name):
            files.write_json(self._loaded, self._known() | {saved.reference: facts.id}, 0o600)
        return True

    def _name(self, saved: SavedImage, facts: ImageFacts) -> None:
        """An image without a name would be pruned; a name that another image has by now is left to that."""
        other = self.details(saved.name)
        image, tag = split_name(saved.name)
        if other is not None and (other.facts.id == facts.id or facts.tags or facts.references):
            return
        with self._daemon.api_for(f"name the image {saved.name}") as api:
            api.tag(facts.id, image, tag if other is None else f"{tag}-{facts.id[7:19]}")

    def _known(self) -> dict[str, str]:
        try:
            value = files.read_json(self._loaded)
        except ValueError as error:
            raise HostError(
                f"{self._loaded} is damaged: {error}.", hint="Remove it, and load the images again."
            ) from error
        return {str(key): str(image) for key, image in value.items()} if isinstance(value, dict) else {}

    def _here(self, reference: str) -> ImageFacts | None:
        found = self._raw(reference)
        return _facts(found) if found is not None else None

    def _raw(self, reference: str) -> dict[str, Any] | None:
        try:
            return self._inspect(reference)
        except NotThere:
            image = self._known().get(reference)
        try:
            return self._inspect(image) if image is not None else None
        except NotThere:
            return None

    def _all(self) -> list[ImageFacts]:
        with self._daemon.api_for("list images") as api:
            entries = api.images()
        stands_for: dict[str, list[str]] = {}
        for reference, image in self._known().items():
            stands_for.setdefault(image, []).append(reference)
        found = []
        for entry in entries:
            try:
                facts = _facts(self._inspect(entry["Id"]))
            except DaemonGone:
                raise
            except HostError:
                continue  # gone meanwhile, or damaged: what needs it asks for it by name
            found.append(replace(facts, references=(*facts.references, *stands_for.get(facts.id, ()))))
        return found

    def _inspect(self, reference: str) -> dict[str, Any]:
        with self._daemon.api_for(f"inspect the image {reference}") as api:
            found: dict[str, Any] = api.inspect_image(reference)
            return found

    def _pull(self, image: ImagePin, progress: Progress) -> None:
        layers: dict[str, tuple[int, int]] = {}

        def tell() -> None:
            done, total = (sum(sizes) for sizes in zip((0, 0), *layers.values(), strict=True))
            progress(f"pulling {image.name}", done, total)

        try:
            with self._silent(f"pull {image.name}") as api:
                lines = _watched(lambda: api.pull(image.image, tag=image.digest, stream=True, decode=True), tell)
                for line in lines:
                    if "error" in line:
                        raise self._daemon.refused(f"pull {image.name}", line["error"])
                    _take(layers, line)
                    tell()
        except DaemonGone:
            raise
        except HostError as error:
            raise HostError(error.message, error.hint or _hint(error.message), error.detail) from error

    @contextmanager
    def _silent(self, what: str) -> Iterator[APIClient]:
        """As `api_for`, for what the daemon may think about for minutes without a word."""
        with self._daemon.api_for(what) as api:
            before, api.timeout = api.timeout, SILENCE_S
            try:
                yield api
            finally:
                api.timeout = before


def _facts(found: Mapping[str, Any]) -> ImageFacts:
    config = found.get("Config") or {}
    env = dict(line.partition("=")[::2] for line in config.get("Env") or ())
    return ImageFacts(
        id=str(found["Id"]),
        references=tuple(found.get("RepoDigests") or ()),
        tags=tuple(found.get("RepoTags") or ()),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        requires=env.get("NVIDIA_REQUIRE_CUDA", ""),
        size=int(found.get("Size") or 0),
        python=".".join(env.get("PYTHON_VERSION", "").split(".")[:2]),
    )


def _watched(source: Callable[[], Iterable[Item]], tick: Callable[[], None]) -> Iterator[Item]:
    """The items of `source()`, which a thread reads, so that `tick` can end the waiting by raising."""
    items: Queue[Item] = Queue(maxsize=4)
    failed: list[BaseException] = []
    left = threading.Event()

    def read() -> None:
        try:
            for item in source():
                while not left.is_set():
                    try:
                        items.put(item, timeout=TICK_S)
                    except Full:
                        continue
                    break
                if left.is_set():
                    return
        except BaseException as error:  # noqa: BLE001  raised again below, in the thread that asked
            failed.append(error)

    thread = threading.Thread(target=read, daemon=True, name="docker")
    thread.start()
    try:
        while thread.is_alive() or not items.empty():
            try:
                item = items.get(timeout=TICK_S)
            except Empty:
                tick()
                continue
            yield item
        if failed:
            raise failed[0]
    finally:
        left.set()


def _take(layers: dict[str, tuple[int, int]], line: Mapping[str, Any]) -> None:
    """Keep what a line says of a layer: (bytes that came, bytes in all)."""
    detail = line.get("progressDetail") or {}
    if line.get("status") == "Downloading" and detail.get("total"):
        layers[str(line.get("id"))] = (int(detail.get("current") or 0), int(detail["total"]))
    elif line.get("status") in ("Download complete", "Pull complete") and line.get("id") in layers:
        total = layers[str(line["id"])][1]
        layers[str(line["id"])] = (total, total)


def _hint(said: str) -> str:
    return next((hint for mark, hint in PULL_HINTS.items() if mark in said), OFFLINE)


def _remove_half_built(api: APIClient, said: str, base: str) -> None:
    """What a failed build was at stays as an image without a name."""
    from docker.errors import APIError

    ids = re.findall(r"^ ---> ([0-9a-f]{12,})$", said, re.MULTILINE)
    if ids and not base.removeprefix("sha256:").startswith(ids[-1]):
        with suppress(APIError):
            api.remove_image(ids[-1])


def _is_of_a_program(line: str) -> bool:
    """Not of the builder itself, which tells its steps, images and containers so."""
    return bool(line.strip()) and not line.startswith(("Step ", " --->", "Removing intermediate container"))

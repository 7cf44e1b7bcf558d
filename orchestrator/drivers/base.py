"""The doors to the world: one Protocol per driver, and the World that holds them.

Everything outside drivers/ (and the builders) sees only these. Drivers raise the OrchError tree and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator.core.artifact import FileEntry, Manifest, Recipe
from orchestrator.core.builders import BuiltBy
from orchestrator.core.calibration import Calibration
from orchestrator.core.deployment import Desired
from orchestrator.core.environment import EnvironmentObserved, EnvironmentSpec
from orchestrator.core.gateway_status import GatewayStatus, Listener
from orchestrator.core.host import Host
from orchestrator.core.images import ImageFacts
from orchestrator.core.keys import KeyRing
from orchestrator.core.launch import Instance, Launch, Usage
from orchestrator.core.pins import ImagePin
from orchestrator.core.progress import Progress, silent
from orchestrator.core.routes import Route
from orchestrator.core.weights import HubSnapshot, HubSource


class Hub(Protocol):
    """The upstream of weights."""

    def snapshot(
        self, source: HubSource, timeout: float, names: Sequence[str] | None = None, progress: Progress = silent
    ) -> HubSnapshot:
        """The source resolved to a commit, with the files to fetch: those named, by default the weights. `progress` is
        called while it waits, and may end the waiting by raising."""
        ...

    def fetch(self, snapshot: HubSnapshot, into: Path, progress: Progress) -> tuple[FileEntry, ...]:
        """Download and verify all files into a directory; resumes what is there."""
        ...


class Building(Protocol):
    """A store entry being made in `work`; `manifest` is set when it is finished (perhaps by another process)."""

    work: Path
    manifest: Manifest | None

    def expect(self, size: int, about: bool = False) -> None:
        """Say before the first byte how large the entry will be (`about`: an estimate); HostError if the store must
        not grow so far."""
        ...

    def discard(self) -> None:
        """Delete what has come so far."""
        ...

    def finish(
        self,
        recipe: Recipe,
        source: str,
        builder: dict[str, str],
        files: tuple[FileEntry, ...] | None = None,
        progress: Progress = silent,
    ) -> Manifest:
        """Write the manifest (hashing the files unless given) and move the entry to its place, in one rename."""
        ...


class Store(Protocol):
    """Content-addressed weights and artifacts."""

    def get(self, key: str) -> Manifest | None:
        """The manifest of a finished entry."""
        ...

    def path(self, key: str) -> Path:
        """Where the entry is, or will be."""
        ...

    def all(self) -> tuple[Manifest, ...]:
        """All finished entries."""
        ...

    def building(self, key: str, progress: Progress = silent, fresh: bool = False) -> AbstractContextManager[Building]:
        """Make an entry; one process at a time per key. `fresh` empties what an earlier try left."""
        ...

    def reading(self, path: Path, progress: Progress = silent) -> AbstractContextManager[None]:
        """Keep the entry at a path from being removed meanwhile; a path elsewhere is nobody's business here."""
        ...

    def read_ahead(self, path: Path, most: int, progress: Progress = silent) -> int:
        """Read the file, or the files of the entry, at a path, so that the kernel has them in memory; at most so many
        bytes. How many it were."""
        ...


class AdapterFacts(Protocol):
    """What a PEFT directory says of itself: its rank, and its `dir:SHA256` source."""

    @property
    def rank(self) -> int: ...

    @property
    def source(self) -> str: ...


class Builder(Protocol):
    """What makes artifacts of weights and adapters."""

    def adapter(self, directory: Path, base: Path | None) -> AdapterFacts:
        """Read a PEFT directory and check that it fits the weights in `base` (None: not there yet)."""
        ...

    def versions(self, recipe: Recipe, by: BuiltBy | None = None) -> dict[str, str]:
        """The versions of everything that its bytes depend on; `by` whom it is built as below."""
        ...

    def expected_bytes(self, recipe: Recipe, source: Path) -> int:
        """About how large the artifact will be."""
        ...

    def build(
        self,
        recipe: Recipe,
        source: Path,
        work: Path,
        progress: Progress,
        base: Path | None = None,
        calibration: Calibration | None = None,
        template: str = "",
        by: BuiltBy | None = None,
    ) -> None:
        """Make the artifact's files in `work`; an adapter's for `base`, 4-bit activations' with `calibration`, what
        says how chats become prompts with `template` where that is not the weights' own; `by` whom, where that is not
        the recipe's first builder."""
        ...

    def build_together(
        self, works: Mapping[Recipe, Path], source: Path, progress: Progress, template: str = ""
    ) -> None:
        """Make several artifacts in one read of the weights, each in its directory."""
        ...

    def copy_in(
        self, path: Path, work: Path, expect: Callable[[int], None], progress: Progress
    ) -> tuple[FileEntry, ...]:
        """Copy a ready-made artifact, a file or a directory, into `work`; `expect` is told how many bytes come."""
        ...

    def settle(self, recipe: Recipe, work: Path, files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
        """Check that what was brought into `work` is what the recipe says; its files as engines look for them."""
        ...


class Environments(Protocol):
    """Engine environments: virtual environments that orch makes and owns."""

    def observe(self) -> tuple[EnvironmentObserved, ...]:
        """All of them, also the broken and unfinished."""
        ...

    def ensure(self, spec: EnvironmentSpec, progress: Progress) -> Path:
        """Have it installed and checked; its bin/ directory."""
        ...


class Target(Protocol):
    """Where engines run. Every method decides from live state."""

    def observe(self) -> tuple[Instance, ...]:
        """All instances; reads only."""
        ...

    def ensure(self, name: str, launch: Launch, label: str) -> Instance:
        """Have the instance run and supervised; returns as soon as its process exists."""
        ...

    def relabel(self, name: str, launch: Launch, label: str) -> None:
        """Change what the next restart uses, without one; a container's command line excepted."""
        ...

    def write_file(self, name: str, filename: str, text: str) -> None:
        """Write one of the instance's files, atomically."""
        ...

    def remove_file(self, name: str, filename: str) -> None:
        """Remove one of the instance's files, if it is there."""
        ...

    def release(self, name: str) -> None:
        """Let its process end by itself: nothing starts it again, until `ensure`."""
        ...

    def stop(self, name: str, progress: Progress) -> None:
        """End it completely, its keeper too."""
        ...

    def remove(self, name: str) -> None:
        """Remove a stopped instance; its log stays."""
        ...

    def usage(self, instance: Instance) -> Usage:
        """What one that was observed takes now; of one that does not run nothing is known."""
        ...

    def log_tail(self, name: str, lines: int) -> str:
        """The end of the log of its latest start."""
        ...

    def log(self, name: str, lines: int, going_on: Callable[[], bool]) -> Iterator[str] | None:
        """The last lines of its log, over all starts, and those that come as long as `going_on`; also of one that is
        gone. None when there is no log."""
        ...

    def logs(self) -> tuple[str, ...]:
        """The names of all that there is a log of."""
        ...


class Images(Protocol):
    """The container images of the Docker daemon."""

    def observe(self) -> Mapping[str, ImageFacts]:
        """By everything that names one exactly (NAME@DIGEST, ID), and by tag."""
        ...

    def pull(self, image: ImagePin, progress: Progress) -> ImageFacts:
        """Have exactly this image here."""
        ...

    def build(self, reference: str, base: str, progress: Progress) -> None:
        """Make the gateway's image under this name, on a base that is here."""
        ...


class Gateway(Protocol):
    """The admin's side of the gateway; of the one that serves, where one replaces another."""

    def serving(self) -> str | None:
        """The instance that serves; None when none answers. HostError for one that hangs."""
        ...

    def status(self) -> GatewayStatus | None:
        """What it says of itself; None when nothing answers."""
        ...

    def status_of(self, instance: str) -> GatewayStatus | None:
        """What one of several says of itself; None when nothing answers."""
        ...

    def hand_over(self, old: str, new: str) -> None:
        """Have one give its listening sockets and its table to another, which waits for them."""
        ...

    def set_routes(self, owner: str, routes: tuple[Route, ...]) -> None:
        """Replace all routes of an owner, in one switch."""
        ...

    def remove_routes(self, owner: str) -> None:
        """Remove all routes of an owner."""
        ...

    def drain(self, backend: str, timeout_s: float, cancel: bool, progress: Progress) -> int:
        """Wait until nothing is in flight on a backend; how many were left (and cut, if cancel) at the deadline."""
        ...

    def pause(self, owner: str, expires_s: float) -> None:
        """Hold new requests for an owner's names, for at most so many seconds from now."""
        ...

    def resume(self, owner: str) -> None:
        """Let the requests that are held go on; none is no error."""
        ...

    def read_keys(self) -> str:
        """Have it read its API keys again; the mark of those that are in force then (see KeyRing)."""
        ...

    def keys_used(self) -> Mapping[str, str]:
        """When each API key was used last since it started, by its digest."""
        ...

    def credential(self) -> str:
        """What opens its front door for some minutes, like an API key."""
        ...


@dataclass(frozen=True)
class Reply:
    """An HTTP answer: its status, and its body as JSON (None when it is none) and as text."""

    status: int
    json: Any
    text: str


class EngineHttp(Protocol):
    """Plain HTTP to engines and to the gateway's public side. `key` is shown as a bearer token, if there is one."""

    def get(self, url: str, timeout_s: float, key: str = "") -> Reply | None:
        """None when nothing answers."""
        ...

    def post(
        self, url: str, body: Mapping[str, Any], timeout_s: float, progress: Progress = silent, key: str = ""
    ) -> Reply | None:
        """None when nothing answers. `progress` is called while it waits, and may end the waiting by raising."""
        ...

    def send(
        self,
        method: str,
        url: str,
        content: Mapping[str, Any] | Path | None,
        timeout_s: float,
        progress: Progress,
        key: str = "",
    ) -> Reply | None:
        """The same with any method, a JSON body or a file's bytes; the timeout is for a silence of the other side."""
        ...


class ApiKeys(Protocol):
    """The gateway's API keys on disk, as digests."""

    @property
    def has_old_file(self) -> bool:
        """Whether keys still lie there as plain text, as an earlier version kept them."""
        ...

    @property
    def written(self) -> bool:
        """Whether there are digests, of whatever keys."""
        ...

    def read(self) -> KeyRing:
        """The keys; those of the old file as long as none were written."""
        ...

    def write(self, ring: KeyRing) -> None:
        """Keep these. The gateway reads them when it is told, or starts."""
        ...

    def drop_old_file(self) -> None:
        """Remove what an earlier version wrote."""
        ...


class Records(Protocol):
    """What the world cannot tell, on disk."""

    def desired(self) -> dict[str, Desired]:
        """By profile name."""
        ...

    def unreadable(self) -> tuple[str, ...]:
        """A sentence for each record that cannot be read."""
        ...

    def record(self, profile: str, desired: Desired | None) -> None:
        """Write (or with None remove) what is wanted of a profile."""
        ...

    def starts(self) -> Mapping[str, float]:
        """How many seconds what was started took to answer, the last time, by Deployment.start_key."""
        ...

    def note_start(self, key: str, seconds: float) -> None:
        """Remember that."""
        ...

    def note(self, kind: str, profile: str, value: object) -> None:
        """Keep what was found out about a profile's engines, in place of what was of this kind."""
        ...

    def noted(self, kind: str, profile: str) -> object:
        """That; None where there is none, or it cannot be read."""
        ...


class Clock(Protocol):
    """Time."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class World(Protocol):
    """All drivers together."""

    @property
    def hub(self) -> Hub: ...

    @property
    def store(self) -> Store: ...

    @property
    def builder(self) -> Builder: ...

    @property
    def environments(self) -> Environments: ...

    @property
    def targets(self) -> Mapping[str, Target]: ...

    @property
    def images(self) -> Images: ...

    @property
    def gateway(self) -> Gateway: ...

    @property
    def http(self) -> EngineHttp: ...

    @property
    def keys(self) -> ApiKeys: ...

    @property
    def records(self) -> Records: ...

    @property
    def clock(self) -> Clock: ...

    def read_host(self) -> Host:
        """The machine at this moment."""
        ...

    def gateway_launch(
        self,
        target: str,
        instance: str,
        listeners: tuple[Listener, ...],
        origins: tuple[str, ...],
        limits: tuple[str, ...],
        take_over: bool,
    ) -> Launch:
        """How a gateway is started on a target, at its addresses; with `take_over` to wait for those of another."""
        ...

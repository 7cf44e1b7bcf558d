"""Everything that orch can do to the world, as values: what a Plan is made of.

A Step is to be done; it says `what` in plain words. `Ensure`, not `Start`: the driver decides from live state, because
the snapshot that a plan was made from is already stale.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.artifact import Recipe
from orchestrator.core.calibration import Calibration
from orchestrator.core.deployment import Adapter, Deployment, Desired
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.pins import ImagePin
from orchestrator.core.routes import Route
from orchestrator.core.vram import Budget
from orchestrator.core.weights import HubSource

GATEWAY = "gateway"


@dataclass(frozen=True)
class FetchWeights:
    """Download a hub snapshot, pinned to a commit, into the store."""

    source: HubSource
    key: str

    @property
    def what(self) -> str:
        return f"pull {self.source.repo} at {self.source.revision[:12]}"


@dataclass(frozen=True)
class BuildArtifact:
    """Make an artifact of weights (or of an adapter; then `base_path` are the weights it belongs to), where its
    activations are 4-bit with a `calibration`."""

    recipe: Recipe
    key: str
    source: str
    source_path: str
    base_path: str | None = None
    calibration: Calibration | None = None

    @property
    def what(self) -> str:
        return f"build {self.key}"


@dataclass(frozen=True)
class BuildTogether:
    """Make several artifacts of the same weights, in one read of them."""

    builds: tuple[BuildArtifact, ...]

    @property
    def what(self) -> str:
        return f"build {', '.join(build.key for build in self.builds)} in one read"


@dataclass(frozen=True)
class FetchArtifact:
    """Have a ready-made artifact: `file` of a hub repository or all of it, or what lies at `path`. It is checked to be
    what the recipe says."""

    recipe: Recipe
    key: str
    source: str
    hub: HubSource | None = None
    file: str = ""
    path: str = ""

    @property
    def what(self) -> str:
        if self.hub is None:
            return f"take {self.path} as {self.recipe.value}"
        file = f"{self.file} of " if self.file else ""
        return f"pull {file}{self.hub.repo} at {self.hub.revision[:12]}"


@dataclass(frozen=True)
class ImportAdapter:
    """Copy a PEFT directory into the store, so that it outlives the place it came from."""

    name: str
    source_path: str
    key: str
    digest: str

    @property
    def what(self) -> str:
        return f"import adapter {self.name}"


@dataclass(frozen=True)
class EnsureEnvironment:
    """Have the engine's environment installed and checked."""

    spec: EnvironmentSpec

    @property
    def what(self) -> str:
        return f"install {self.spec.name}"


@dataclass(frozen=True)
class PullImage:
    """Have a container image here, exactly this one."""

    image: ImagePin

    @property
    def what(self) -> str:
        return f"pull {self.image.name}"


@dataclass(frozen=True)
class BuildImage:
    """Make the gateway's image: this orch, on a base image that has its Python."""

    reference: str
    base: str

    @property
    def what(self) -> str:
        return f"build {self.reference}"


@dataclass(frozen=True)
class EnsureGateway:
    """Have the gateway run, supervised, at its address."""

    target: str
    listen: str

    @property
    def what(self) -> str:
        return f"start the gateway at {self.listen}"


@dataclass(frozen=True)
class WriteFile:
    """Write one of an instance's files (atomically, before it starts)."""

    target: str
    instance: str
    name: str
    text: str

    @property
    def what(self) -> str:
        return f"write {self.name} of {self.instance}"


@dataclass(frozen=True)
class EnsureEngine:
    """Have this generation run, supervised, with exactly this launch."""

    deployment: Deployment

    @property
    def what(self) -> str:
        return f"start {self.deployment.instance}"


@dataclass(frozen=True)
class AwaitMemory:
    """Wait until so many bytes of a GPU are free: what a process held may linger after its end."""

    gpu: str
    size: int

    @property
    def what(self) -> str:
        return f"wait for {self.size / 2**30:.1f} GiB of GPU memory"


@dataclass(frozen=True)
class ImportArtifact:
    """Hand artifact and adapters to an engine that keeps a store of its own (Ollama), as soon as it answers."""

    deployment: Deployment

    @property
    def what(self) -> str:
        return f"import {self.deployment.artifact_key} into {self.deployment.instance}"


@dataclass(frozen=True)
class AwaitReady:
    """Wait until the engine answers one real token under its served name, or is dead, or the deadline passed."""

    deployment: Deployment
    timeout_s: float

    @property
    def what(self) -> str:
        return f"wait for {self.deployment.instance} to answer"


@dataclass(frozen=True)
class LoadAdapter:
    """Load an adapter into a running engine; `deployment` is what it is afterwards."""

    deployment: Deployment
    adapter: Adapter

    @property
    def what(self) -> str:
        return f"load adapter {self.adapter.name} into {self.deployment.instance}"


@dataclass(frozen=True)
class UnloadAdapter:
    """Take an adapter out of a running engine; `deployment` is what it is afterwards, `before` what it is now."""

    deployment: Deployment
    name: str
    before: Deployment

    @property
    def what(self) -> str:
        return f"unload adapter {self.name} from {self.deployment.instance}"


@dataclass(frozen=True)
class RecordDesired:
    """Write down what is wanted of a profile (None: nothing any more)."""

    profile: str
    desired: Desired | None

    @property
    def what(self) -> str:
        if self.desired is None:
            return f"forget {self.profile}"
        if self.desired.stopped:
            return f"record {self.profile} as stopped"
        return f"record {self.profile} on {self.desired.wish.engine}"


@dataclass(frozen=True)
class SetRoute:
    """Point all names of a profile at an instance, in one switch; each Route's url is filled in when it is done."""

    target: str
    owner: str
    routes: tuple[Route, ...]

    @property
    def what(self) -> str:
        backends = ", ".join(sorted({route.backend for route in self.routes}))
        return f"route {self.owner} to {backends}"


@dataclass(frozen=True)
class RemoveRoute:
    """Take all names of a profile off the gateway."""

    owner: str

    @property
    def what(self) -> str:
        return f"remove the routes of {self.owner}"


@dataclass(frozen=True)
class VerifyRoute:
    """One token through the gateway, under each of these public names."""

    names: tuple[str, ...]

    @property
    def what(self) -> str:
        return f"ask {', '.join(self.names)} through the gateway"


@dataclass(frozen=True)
class Drain:
    """Wait until nothing is in flight on an instance; what is left at the deadline is cut with an error event."""

    instance: str
    timeout_s: float

    @property
    def what(self) -> str:
        return f"drain {self.instance}"


@dataclass(frozen=True)
class StopEngine:
    """End an instance, its whole process group, and its keeper."""

    target: str
    instance: str

    @property
    def what(self) -> str:
        return f"stop {'the gateway' if self.instance == GATEWAY else self.instance}"


@dataclass(frozen=True)
class RemoveEngine:
    """Remove what a stopped instance left behind, its log excepted."""

    target: str
    instance: str

    @property
    def what(self) -> str:
        return f"remove {'the gateway' if self.instance == GATEWAY else self.instance}"


Step = (
    FetchWeights
    | BuildArtifact
    | BuildTogether
    | FetchArtifact
    | ImportAdapter
    | EnsureEnvironment
    | PullImage
    | BuildImage
    | EnsureGateway
    | WriteFile
    | AwaitMemory
    | EnsureEngine
    | ImportArtifact
    | AwaitReady
    | LoadAdapter
    | UnloadAdapter
    | RecordDesired
    | SetRoute
    | RemoveRoute
    | VerifyRoute
    | Drain
    | StopEngine
    | RemoveEngine
)


@dataclass(frozen=True)
class Action:
    """A Step to be done, and the Steps that take it back (in the order to run them)."""

    step: Step
    undo: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Skip:
    """Something that need not be done: what, and why not."""

    what: str
    why: str


@dataclass(frozen=True)
class Plan:
    """Ordered values. A failure in the first `commit` items undoes all before it; after them it goes forward only.

    `budget` is the memory of the engine that it starts, where that is known.
    """

    verb: str
    items: tuple[Action | Skip, ...]
    commit: int
    budget: Budget | None = None

    @property
    def actions(self) -> tuple[Action, ...]:
        """The items that are to be done."""
        return tuple(item for item in self.items if isinstance(item, Action))

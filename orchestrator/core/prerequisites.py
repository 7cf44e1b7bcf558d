"""Steps that only have something here: weights, artifacts, adapters, environments, images. Nothing that serves changes.

All have one face, so that screens, plans, lock files, offline bundles and garbage collection never ask which kind of
step it is: by what name it is kept and where, what it is made of, and what comes over the network for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from orchestrator.core.artifact import Recipe, has_template
from orchestrator.core.builders import BuiltBy, builder_of
from orchestrator.core.calibration import Calibration
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.pins import ImagePin
from orchestrator.core.steps import Duration, Step
from orchestrator.core.weights import HubSource, hub_source


class Storage(StrEnum):
    """Where something is kept once it is here: orch's store, its environments, the Docker daemon's images."""

    STORE = "store"
    ENVIRONMENTS = "environments"
    IMAGES = "images"


@dataclass(frozen=True)
class Download:
    """What comes over the network: from a hub (`hub`; these `files`, else all that is wanted of it), or as `name` says.

    How large it is, the hub or the registry tells when it is asked.
    """

    name: str
    hub: HubSource | None = None
    files: tuple[str, ...] = ()


class Prerequisite(Step):
    """Something to have here. `key` names it where it is kept, `source` says what it is made of, as its record will;
    `recipe` is what an entry of the store is."""

    duration = Duration.LONG
    storage: ClassVar[Storage] = Storage.STORE

    # For the type checker alone: a dataclass takes its base's property for the default of a field of that name.
    if TYPE_CHECKING:

        @property
        def key(self) -> str: ...

        @property
        def source(self) -> str: ...

        @property
        def recipe(self) -> Recipe | None: ...

    # What it is depends on the versions of what builds it.
    is_built: ClassVar[bool] = False

    @property
    def download(self) -> Download | None:
        """What comes over the network for it; None when nothing does."""
        return None

    @property
    def made_from(self) -> tuple[str, ...]:
        """Keys of other prerequisites that only serve to make this one."""
        return ()

    @property
    def rests_on(self) -> tuple[str, ...]:
        """Keys of other prerequisites that it is of no use without, once it is made too."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Directories of this machine that it is made of."""
        return ()

    @property
    def parts(self) -> tuple[Prerequisite, ...]:
        """What it has here, one by one."""
        return (self,)


@dataclass(frozen=True)
class FetchWeights(Prerequisite):
    """Download a hub snapshot, pinned to a commit, into the store."""

    recipe = Recipe.WEIGHTS

    hub: HubSource
    key: str

    @property
    def what(self) -> str:
        return f"pull {self.hub.repo} at {self.hub.revision[:12]}"

    @property
    def source(self) -> str:
        return str(self.hub)

    @property
    def download(self) -> Download:
        return Download(self.hub.repo, self.hub)


@dataclass(frozen=True)
class BuildArtifact(Prerequisite):
    """Make an artifact of weights (or of an adapter; then `base_path` are the weights it belongs to), where its
    activations are 4-bit with a `calibration`, where a profile has a chat template with that. `weights_key` are weights
    in the store that it is built from."""

    is_built = True

    recipe: Recipe
    key: str
    source: str
    source_path: str
    base_path: str | None = None
    calibration: Calibration | None = None
    weights_key: str = ""
    template: str = ""

    @property
    def what(self) -> str:
        return f"build {self.key}"

    @property
    def by(self) -> BuiltBy:
        """Who builds it: the source of what is made by another than the recipe's first builder says so."""
        return builder_of(self.recipe, self.source)

    @property
    def streamed(self) -> bool:
        """Whether it is made in one read of the weights, together with others."""
        return self.by is BuiltBy.ORCH and self.recipe.streamed

    @property
    def made_from(self) -> tuple[str, ...]:
        environment = self.calibration.environment.name if self.calibration is not None else ""
        weights = self.weights_key if self.recipe is not Recipe.VIEW else ""
        return tuple(filter(None, (weights, environment)))

    @property
    def rests_on(self) -> tuple[str, ...]:
        return (self.weights_key,) if self.weights_key and self.recipe is Recipe.VIEW else ()

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.source_path, *((self.base_path,) if self.base_path is not None else ()))


@dataclass(frozen=True)
class BuildTogether(Prerequisite):
    """Make several artifacts of the same weights, in one read of them."""

    recipe = None

    builds: tuple[BuildArtifact, ...]

    @property
    def what(self) -> str:
        return f"build {self.key} in one read"

    @property
    def key(self) -> str:
        return ", ".join(build.key for build in self.builds)

    @property
    def source(self) -> str:
        return self.builds[0].source

    @property
    def reads(self) -> tuple[str, ...]:
        return self.builds[0].reads

    @property
    def parts(self) -> tuple[Prerequisite, ...]:
        return self.builds


@dataclass(frozen=True)
class FetchArtifact(Prerequisite):
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

    @property
    def download(self) -> Download | None:
        if self.hub is None:
            return None
        return Download(self.hub.repo, self.hub, (self.file,) if self.file else ())


@dataclass(frozen=True)
class ImportAdapter(Prerequisite):
    """Copy a PEFT directory into the store, so that it outlives the place it came from. What it carries of the weights
    is compared with those in `base_path`, where they are there."""

    duration = Duration.SHORT
    recipe = Recipe.ADAPTER

    name: str
    source_path: str
    key: str
    digest: str
    base_path: str = ""

    @property
    def what(self) -> str:
        return f"import adapter {self.name}"

    @property
    def source(self) -> str:
        return f"dir:{self.digest}"

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.source_path,)


@dataclass(frozen=True)
class EnsureEnvironment(Prerequisite):
    """Have the environment of an engine or builder installed and checked."""

    storage = Storage.ENVIRONMENTS
    recipe = None

    spec: EnvironmentSpec

    @property
    def what(self) -> str:
        return f"install {self.spec.name}"

    @property
    def key(self) -> str:
        return self.spec.name

    @property
    def source(self) -> str:
        return f"{self.spec.engine} {self.spec.version}"

    @property
    def download(self) -> Download:
        return Download(self.spec.name)


@dataclass(frozen=True)
class PullImage(Prerequisite):
    """Have a container image here, exactly this one."""

    storage = Storage.IMAGES
    recipe = None

    image: ImagePin

    @property
    def what(self) -> str:
        return f"pull {self.image.name}"

    @property
    def key(self) -> str:
        return self.image.reference

    @property
    def source(self) -> str:
        return self.image.name

    @property
    def download(self) -> Download:
        return Download(self.image.name)


@dataclass(frozen=True)
class BuildImage(Prerequisite):
    """Make the gateway's image: this orch, on a base image that has its Python."""

    storage = Storage.IMAGES
    recipe = None

    reference: str
    base: str

    @property
    def what(self) -> str:
        return f"build {self.reference}"

    @property
    def key(self) -> str:
        return self.reference

    @property
    def source(self) -> str:
        return self.base

    @property
    def made_from(self) -> tuple[str, ...]:
        return (self.base,)


def way_of(key: str, recipe: Recipe, source: str, weights: str, ready: bool) -> Prerequisite | None:
    """How an entry of this recipe and source is made, as far as they tell: pulled, taken ready-made (`ready`), or built
    from its weights in the directory `weights`. None for a LoRA, for a directory's files and for what a profile's chat
    template is in: where they lay is not said."""
    if has_template(source):
        return None
    hub, file = hub_source(source) or (None, "")
    if recipe is Recipe.WEIGHTS:
        return FetchWeights(hub, key) if hub is not None else None
    if hub is not None and (ready or file):
        return FetchArtifact(recipe, key, source, hub, file)
    return BuildArtifact(recipe, key, source, weights) if recipe.served or recipe is Recipe.VIEW else None

"""A Deployment: a Profile resolved on this host, generation by generation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from orchestrator.core.artifact import Recipe
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.launch import Launch
from orchestrator.core.model_card import ModelCard
from orchestrator.core.part import Part
from orchestrator.core.pins import Accelerator, ImagePin
from orchestrator.core.profile import Profile, ReadSettings

# Of Desired and Deployment as JSON: in records, and in the labels of what runs. Where none is told it is 1.
VERSION = 2


class Adapter(Part):
    """A LoRA to serve: public name, SHA-256 over its files, rank, and where orch keeps its copy.

    `origin` is the directory it was imported from; `path` is orch's copy of it, `gguf` the same adapter for
    llama.cpp. Both lie in the store, a new place per version, because vLLM's prefix cache knows adapters by
    name and path only.
    """

    name: str
    digest: str
    rank: int
    origin: str
    key: str
    path: str
    gguf_key: str
    gguf: str


class Asleep(Part):
    """What an engine that sleeps still holds, in bytes: its weights in the host's memory, and a part of the GPU."""

    host: int
    gpu: int


class Deployment(Part):
    """Everything that decides what one generation of a profile serves, and how it was started.

    It travels as the label of the running process, so that what runs can be compared with what is wanted without
    remembering anything. `model_path` is what the engine loads; `adapter_args` end the launch's argv, `adapter_lines`
    the first of its files; `adapter_loads` counts distinct adapters given to this process since it started (vLLM never
    frees a slot); `hot_adapters` can be changed while it serves. `gpu` are the UUIDs of the GPUs that it is to see,
    with commas between, empty where there is no choice; its container is given them `gpu_way`, and by name the device
    nodes `gpu_nodes`. `own_store`: what it serves must be imported into it. Without `chats` the model has no chat
    template; `defaults` is what the gateway fills into requests that do not say (None: as earlier versions did).
    `card` is what clients are told of it (None: nothing of that was known yet); it is recorded with what is wanted, and
    what runs neither bears it nor differs by it. `memory` are the bytes that it was started to take (0: that is not
    known); what runs bears them, and nothing differs by them. `share` is what it takes of a GPU where it came beside
    another engine, and that is less than the profile's (None: it is as the profile has it); `share_args` tell it so.
    Where it can sleep as a standby, `asleep` is what it holds then.
    """

    profile: str
    engine: str
    target: str
    generation: int = 0
    served_name: str
    public_names: tuple[str, ...]
    recipe: Recipe
    weights_source: str
    weights_path: str
    artifact_key: str
    model_path: str
    base_launch: Launch
    files: tuple[tuple[str, str], ...] = ()
    own_store: bool = False
    accelerator: Accelerator = Accelerator.CPU
    adapters: tuple[Adapter, ...] = ()
    adapter_args: tuple[str, ...] = ()
    adapter_lines: str = ""
    adapter_slots: int = 0
    adapter_loads: int = 0
    gpu: str = ""
    gpu_way: str = ""
    gpu_nodes: tuple[str, ...] = ()
    hot_adapters: bool = False
    chats: bool = True
    defaults: dict[str, Any] | None = None
    card: ModelCard | None = None
    memory: int = 0
    share: float | None = None
    share_args: tuple[str, ...] = ()
    asleep: Asleep | None = None

    @property
    def can_rest(self) -> bool:
        """Whether its server can go on without a model in memory."""
        return self.own_store or self.asleep is not None

    @property
    def store(self) -> str:
        """The store that the artifact lies in; empty where it is a directory of the user's."""
        path = PurePath(self.model_path)
        return next((str(place.parent) for place in (path, *path.parents) if place.name == self.artifact_key), "")

    @property
    def instance(self) -> str:
        """The name of its process or container: PROFILE-ENGINE-gN."""
        return f"{self.profile}-{self.engine}-g{self.generation}"

    @property
    def launch(self) -> Launch:
        """The full launch, adapters included, so that a restart brings them back, and on as much of the same GPUs."""
        launch = replace(self.base_launch, argv=(*self.base_launch.argv, *self.adapter_args, *self.share_args))
        if not self.gpu:
            return launch
        if launch.container is not None:
            devices = (*launch.container.devices, *self.gpu_nodes)
            gpus = tuple(self.gpu.split(","))
            container = replace(launch.container, gpus=gpus, gpu_way=self.gpu_way, devices=devices)
            return replace(launch, container=container)
        return replace(launch, env=(*launch.env, ("CUDA_VISIBLE_DEVICES", self.gpu)))

    @property
    def written(self) -> tuple[tuple[str, str], ...]:
        """Its files as they are written, adapters included."""
        if not self.adapter_lines:
            return self.files
        (name, text), *others = self.files
        return ((name, text + self.adapter_lines), *others)

    @property
    def fingerprint(self) -> str:
        """Equal for two deployments that one process can serve: all but generation, GPUs and how much of them, adapters
        and aliases."""
        of_adapters = {"adapters", "adapter_args", "adapter_lines", "adapter_loads"}
        of_gpus = {"gpu", "gpu_way", "gpu_nodes", "memory", "share", "share_args", "asleep"}
        left_out = {"generation", "public_names", "card"} | of_gpus | of_adapters
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """All of it, as what runs bears it; of a container's labels a chat template would be most."""
        return to_record(self.model_copy({"card": None}))

    @classmethod
    def from_label(cls, label: str) -> Deployment:
        """What `label` wrote, in this version or another. Raises Unfit."""
        return cls.model_validate_json(label, extra="ignore")

    @property
    def start_key(self) -> str:
        """What how long it takes to start is remembered by: the same program and model on the same target."""
        return f"{self.target} {self.engine} {self.artifact_key}"

    def adapter(self, name: str) -> Adapter | None:
        """The adapter of that public name, if it is part of this deployment."""
        return next((adapter for adapter in self.adapters if adapter.name == name), None)


class DeploymentSpec(Part):
    """What to serve a profile with: what `up` and `migrate` set, and `rollback` returns to."""

    profile: Profile
    engine: str
    target: str
    recipe: Recipe | None = None

    def with_settings(self, settings: ReadSettings) -> DeploymentSpec:
        """The same with the profile's settings of engines as they are read here. Raises Unfit."""
        profile = self.profile.model_copy({"engines": settings(self.profile.engines, "ignore")})
        return self.model_copy({"profile": profile})


class Resolution(Part):
    """What a spec has come to on this host, whole: what starts the same again, whatever pins, templates and the machine
    have become since. The deployment is of no generation; its program is an image, an environment, or orch's own."""

    deployment: Deployment
    image: ImagePin | None = None
    environment: EnvironmentSpec | None = None

    @property
    def program(self) -> str:
        """What the engine is started from, by a name that means exactly this; empty where it is orch's own."""
        return self.image.reference if self.image else self.environment.name if self.environment else ""

    @property
    def program_name(self) -> str:
        """The same as people know it."""
        return self.image.name if self.image else self.program

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for two that serve the same bytes by the same program."""
        made = self.deployment
        return made.recipe.value, made.accelerator.value, made.weights_source, made.artifact_key, self.program


class Served(Part):
    """A spec, and what it had come to; None where an earlier version of orch has recorded the spec alone."""

    spec: DeploymentSpec
    resolution: Resolution | None = None


class Desired(Part):
    """What the world cannot tell: the spec and its resolution (None: it is to be resolved anew), what was served
    before, and the adapters (they outlive a migration).

    `stopped`: taken down; nothing of it is to run until the next `up`, which finds it all here. `held`: it was gone
    back to, and what it was gone back from is not taken again by itself. `keeps`: what was served before stands by.
    """

    spec: DeploymentSpec
    resolution: Resolution | None = None
    before: Served | None = None
    adapters: tuple[Adapter, ...] = ()
    stopped: bool = False
    held: bool = False
    keeps: bool = False

    @classmethod
    def from_record(cls, document: object, settings: ReadSettings) -> Desired:
        """What `to_record` wrote, in this version or another; its profiles' settings of engines are read, and completed
        with what has become a setting since, by `settings`. Raises Unfit."""
        if isinstance(document, dict) and "wish" in document:
            # Earlier records have it as "wish".
            document = {"spec": document["wish"], **document}
        if isinstance(document, dict) and document.get("previous") is not None:
            # Earlier ones have of what was before the spec alone.
            document = {"before": {"spec": document["previous"]}, **document}
        found = cls.model_validate(document, extra="ignore")
        before = found.before
        if before is not None:
            before = before.model_copy({"spec": before.spec.with_settings(settings)})
        return found.model_copy({"spec": found.spec.with_settings(settings), "before": before})

    @property
    def served(self) -> Served:
        """What `rollback` returns to once something else is served."""
        return Served(spec=self.spec, resolution=self.resolution)

    @property
    def without_card(self) -> Desired:
        """As a version of orch has recorded it that had nothing to tell clients of a model."""
        if self.resolution is None:
            return self
        untold = self.resolution.deployment.model_copy({"card": None})
        return self.model_copy({"resolution": self.resolution.model_copy({"deployment": untold})})

    @property
    def stores(self) -> frozenset[str]:
        """The stores that what is served, and what was before, lie in."""
        known = (served.resolution for served in (self.served, self.before) if served is not None)
        return frozenset(made.deployment.store for made in known if made is not None) - {""}

    def stands_by(self, deployment: Deployment) -> bool:
        """Whether that is what was served before, and is kept."""
        before = self.before.resolution if self.before is not None else None
        return self.keeps and before is not None and before.deployment.fingerprint == deployment.fingerprint

    def changed_to(self, spec: DeploymentSpec) -> Desired:
        """The same with another spec, to be resolved; the one before becomes what `rollback` returns to."""
        if spec == self.spec:
            return self.model_copy({"stopped": False})
        return Desired(spec=spec, before=self.served, adapters=self.adapters)

    def resolved_anew(self, resolution: Resolution) -> Desired:
        """The same spec by another resolution; the one before becomes what `rollback` returns to."""
        if self.resolution is None:
            return self.model_copy({"resolution": resolution})
        return self.model_copy({"resolution": resolution, "before": self.served, "held": False})

    def gone_back(self) -> Desired:
        """What was served before, as it was; ValueError when there is nothing."""
        if self.before is None:
            raise ValueError("nothing was served before")
        spec, resolution = self.before.spec, self.before.resolution
        return Desired(
            spec=spec,
            resolution=resolution,
            before=self.served,
            adapters=self.adapters,
            held=True,
            keeps=self.keeps,
        )


def to_record(value: Deployment | Desired, indent: int | None = None) -> str:
    """JSON for others to read: this version of orch, or an earlier or a later one."""
    return json.dumps({"version": VERSION, **value.model_dump()}, indent=indent, ensure_ascii=False)

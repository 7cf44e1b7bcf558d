"""What orch knows of an engine: one fact sheet each, pure. Everything that differs between engines is in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Adapter, Deployment
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.host import Host
from orchestrator.core.launch import Launch
from orchestrator.core.meaning import SamplingDefault
from orchestrator.core.memory import MemoryRequest
from orchestrator.core.parity import Chat, Tokens
from orchestrator.core.part import Must, Part
from orchestrator.core.pins import Accelerator, EnginePin, ImagePin
from orchestrator.core.profile import Profile
from orchestrator.core.routes import ANTHROPIC, OPENAI
from orchestrator.core.weights import Shape

if TYPE_CHECKING:
    from typing import Self

# Renders a template by its path under templates/ with these variables; strict: an undefined one is an error.
Render = Callable[[str, Mapping[str, Any]], str]


class EngineSettings(Part):
    """What a profile may say of an engine, in the table engines.NAME; each sheet has its own, all with defaults.

    recipes: the artifacts that it may serve, best first; the first that the host can serve is taken. What refusals
    advise to change has the same name on every sheet that has it: gpus, gpu_memory_utilization, kv_cache_mib.
    """

    recipes: Annotated[tuple[Recipe, ...], Must(min_length=1)]

    @classmethod
    def of(cls, profile: Profile, engine: str) -> Self:
        """What a profile says of the engine of that name."""
        return cls.model_validate(profile.engines.get(engine, {}))


@dataclass(frozen=True)
class LaunchRequest:
    """What a launch is made from. `model_path` is the directory or file of the artifact; with an `image` it is to run
    in a container, on an address of its own. `sampling` is what is taken where a request does not say, all of it;
    without `chats` the model has no chat template; `thinks` is what its `template` takes for enable_thinking where
    nobody says it."""

    profile: Profile
    recipe: Recipe
    model_path: str
    accelerator: Accelerator
    host: Host
    environment: EnvironmentSpec | None
    image: ImagePin | None = None
    sampling: tuple[SamplingDefault, ...] = ()
    chats: bool = True
    thinks: bool | None = None
    template: str = ""

    @property
    def bind(self) -> str:
        """The address to listen at."""
        return "0.0.0.0" if self.image is not None else "127.0.0.1"


@dataclass(frozen=True)
class LaunchSpec:
    """How an engine is started: launch and files by name, both without adapters."""

    launch: Launch
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class EngineCall:
    """A request to an engine: a JSON `body`, or the bytes of `file`. Where `unless` (a path) answers 200 to a HEAD, it
    need not be made; nor where `done` is answered with 200, by an engine that was never another generation's."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    file: str = ""
    unless: str = ""
    done: EngineCall | None = None


# The SHA-256 of an artifact's file, by its path.
Digest = Callable[[str], str]


@dataclass(frozen=True)
class Failure:
    """Why an engine died: the telling line of its log, and what to do, where that is known."""

    line: str
    hint: str = ""


class EngineSheet(Protocol):
    """The knowledge of one engine."""

    name: str
    # What a profile may say of it.
    settings: type[EngineSettings]
    # The programs of the host that it is run from on target local, by their names on PATH.
    programs: tuple[str, ...]
    # Adapters can be loaded and unloaded while it serves.
    hot_adapters: bool
    # Why it cannot score texts that it is given, token by token; empty where it can, by the base at least.
    cannot_score: str
    # It is made to serve many at a time; the others are simple, and made for few.
    for_many: bool
    # It computes on a GPU where there is one.
    takes_gpu: bool
    # It serves only what was imported into a store of its own.
    own_store: bool
    # There are images of it.
    in_containers: bool
    # Whose APIs it knows.
    speaks: tuple[str, ...]
    # The HTTP paths on which it heeds what `patch` adds to a request; None: on all.
    patch_paths: tuple[str, ...] | None
    # What a request says besides, so that its answer does not end before its limit.
    endless: Mapping[str, Any]
    # How its program is told which share of a GPU to take; empty where it takes what it needs.
    share_option: str
    # Where it tells its version, and under which name in the JSON there; empty where it does not.
    version_at: tuple[str, str]
    # The package that it is, where it runs in orch's own environment; else empty.
    package: str
    # Seconds from its start to its first answer, besides reading the model: ASSUMPTION, until it has been seen here.
    starts_in_s: float

    def accelerator(self, host: Host) -> Accelerator:
        """What it computes on, on this host."""
        ...

    def gpus(self, profile: Profile, accelerator: Accelerator) -> int:
        """Over how many GPUs the model is spread; 1 on a CPU."""
        ...

    def cannot_split(self, shape: Shape, gpus: int) -> str:
        """Why a model of this shape cannot be spread over so many GPUs; empty when it can."""
        ...

    def shm_mib(self, gpus: int) -> int:
        """Shared memory of its container, in MiB, for so many GPUs."""
        ...

    def needs_environment(self) -> bool:
        """Whether orch installs it into an environment of its own."""
        ...

    def missing(self, host: Host) -> tuple[str, str]:
        """What the host lacks to run it at all, and a hint; empty strings when nothing."""
        ...

    def cannot_serve(self, recipe: Recipe, accelerator: Accelerator, host: Host) -> str:
        """Why it cannot serve what the recipe makes, on this host; empty when it can."""
        ...

    def model_file(self, recipe: Recipe) -> str:
        """The file within the artifact that is given to it; empty for the directory itself."""
        ...

    def launch(self, request: LaunchRequest, render: Render) -> LaunchSpec:
        """argv, environment, files; without adapters."""
        ...

    def adapter_args(self, adapters: tuple[Adapter, ...]) -> tuple[str, ...]:
        """What ends the argv so that it starts with these adapters."""
        ...

    def adapter_lines(self, adapters: tuple[Adapter, ...]) -> str:
        """What ends the first of its files so that it starts with these adapters."""
        ...

    def cannot_adapt(self, profile: Profile, adapters: tuple[Adapter, ...]) -> str:
        """Why it cannot serve these adapters together; empty when it can."""
        ...

    def adapter_slots(self, profile: Profile, accelerator: Accelerator) -> int:
        """How many distinct adapters one process may be given in its life."""
        ...

    def upstream(self, deployment: Deployment, adapter: Adapter | None) -> str:
        """The name to ask it for, for the base (None) or an adapter."""
        ...

    def patch(self, deployment: Deployment, adapter: Adapter | None) -> dict[str, Any]:
        """What must be merged into each request's body for the base (None) or an adapter."""
        ...

    def defaults(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """What of these defaults must be filled into each request that does not say it."""
        ...

    def memory_request(
        self, profile: Profile, weights: int, shape: Shape, accelerator: Accelerator, adapters: int
    ) -> MemoryRequest:
        """The memory that one more needs, for an artifact of so many bytes and this many adapters."""
        ...

    def hold_less(self, accelerator: Accelerator) -> str:
        """The profile's settings that, lowered, make it hold less of the host's memory; empty when none does."""
        ...

    def liveness_path(self) -> str:
        """Answers 200 as soon as the server can take commands; that says nothing of the model yet."""
        ...

    def identity_path(self) -> str:
        """What to read to know which model it serves."""
        ...

    def recognises(self, deployment: Deployment, reply: Any) -> bool:
        """Whether the JSON at identity_path is that of this deployment, and not of a stranger on the port."""
        ...

    def loaded(self, deployment: Deployment, reply: Any) -> tuple[tuple[str, str], ...] | None:
        """The adapters (name, path) that the JSON at identity_path shows; None where it does not tell."""
        ...

    def spare(self, deployment: Deployment, reply: Any) -> tuple[str, ...]:
        """What lies in its own store, by the JSON at identity_path, and is of no adapter of this deployment."""
        ...

    def import_peak(self, size: int) -> int:
        """The bytes of disk that its own store takes while an artifact of `size` is imported; then it is `size`."""
        ...

    def import_requests(self, deployment: Deployment, digest: Digest) -> tuple[EngineCall, ...]:
        """What puts the artifact into its own store."""
        ...

    def spent(self, call: EngineCall, answer: str) -> str:
        """The file of the instance that nothing needs any more once a request of an import, or its `done`, has got this
        answer; empty when there is none."""
        ...

    def discard_requests(self, spare: str) -> tuple[EngineCall, ...]:
        """What takes that out of its own store."""
        ...

    def sleeps(self, profile: Profile, accelerator: Accelerator) -> bool:
        """Whether it is started so that it can sleep: its server goes on, and its GPU is free."""
        ...

    def rest_requests(self, deployment: Deployment) -> tuple[EngineCall, ...]:
        """What has it give back the memory of all that it serves; asked of those with a store of their own, and of
        those that can sleep."""
        ...

    def wake_requests(self, deployment: Deployment) -> tuple[EngineCall, ...]:
        """What wakes one that sleeps; who has a store of its own loads what it is asked for."""
        ...

    def sleep_path(self) -> str:
        """What to read to know whether it sleeps."""
        ...

    def asleep(self, reply: Any) -> bool:
        """Whether it does, by the JSON at sleep_path."""
        ...

    def load_requests(self, deployment: Deployment, adapter: Adapter, digest: Digest) -> tuple[EngineCall, ...]:
        """What loads an adapter, in place of one of that name if there is one."""
        ...

    def unload_requests(self, deployment: Deployment, adapter: str) -> tuple[EngineCall, ...]:
        """What unloads the adapter of that name; `deployment` is what runs, with it."""
        ...

    def refusal(self, status: int, text: str) -> str:
        """What an answer says was wrong; empty when nothing."""
        ...

    def passes(self, refusal: str) -> bool:
        """Whether the same request, made again, may well succeed."""
        ...

    def tokens_request(self, deployment: Deployment, text: str) -> EngineCall | None:
        """What is answered with the tokens of a text, as a completion would begin; None where it does not tell."""
        ...

    def prompt_request(self, deployment: Deployment, chat: Chat) -> EngineCall | None:
        """What is answered with the prompt that it makes of a chat; None where it does not tell."""
        ...

    def prompt_in(self, reply: Any) -> Tokens | str:
        """The tokens that such an answer tells, or the text that they are of."""
        ...

    def asked_to_think(self, on: bool) -> dict[str, Any]:
        """What is said in a chat, besides, for an answer with thoughts or without."""
        ...

    def forced_end(self, number: int) -> dict[str, Any] | None:
        """What added to a request makes it answer with this one token; None where it cannot be made to."""
        ...

    def pulse_path(self) -> str:
        """What to read to know what it has loaded, where its server answers for it even if that hangs; else empty."""
        ...

    def pulse(self, reply: Any) -> EngineCall | None:
        """What is answered at once if that does not hang, and loads nothing; None when nothing is loaded."""
        ...

    def gpu_path(self) -> str:
        """What to read, once it has answered, to know whether it computes on the GPU; empty where it cannot but do."""
        ...

    def not_on_gpu(self, reply: Any) -> str:
        """What the JSON at gpu_path says against it; empty when all is on the GPU."""
        ...

    def failure(self, log: str) -> Failure:
        """The telling line of a dead engine's log."""
        ...


def error_message(text: str) -> str:
    """The message of an error answer, OpenAI's shape or Ollama's; else its text."""
    try:
        error = json.loads(text).get("error")
    except (ValueError, AttributeError):
        return text[:500]
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or text)[:500]


class EngineDefaults:
    """For the sheets of engines without a store of their own, and that cannot but use the one GPU they are given."""

    programs: tuple[str, ...] = ()
    own_store = False
    in_containers = True
    speaks: tuple[str, ...] = (OPENAI, ANTHROPIC)
    patch_paths: tuple[str, ...] | None = None
    share_option = ""
    endless: Mapping[str, Any] = MappingProxyType({"ignore_eos": True})
    version_at = ("", "")
    package = ""
    cannot_score = "it tells no probabilities of a prompt"
    for_many = False
    starts_in_s = 3.0

    def gpus(self, profile: Profile, accelerator: Accelerator) -> int:
        """One."""
        return 1

    def cannot_split(self, shape: Shape, gpus: int) -> str:
        """One GPU has it whole."""
        return ""

    def shm_mib(self, gpus: int) -> int:
        """Docker's default."""
        return 64

    def hold_less(self, accelerator: Accelerator) -> str:
        """A KV cache for each of its requests; on a GPU it is there."""
        return "serving.context or serving.parallel" if accelerator is Accelerator.CPU else ""

    def defaults(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """It was told all of them at its start."""
        return {}

    def adapter_lines(self, adapters: tuple[Adapter, ...]) -> str:
        """Nothing of it stands in a file."""
        return ""

    def spare(self, deployment: Deployment, reply: Any) -> tuple[str, ...]:
        """It keeps nothing."""
        return ()

    def import_peak(self, size: int) -> int:
        """Nothing is imported."""
        return 0

    def import_requests(self, deployment: Deployment, digest: Digest) -> tuple[EngineCall, ...]:
        """It reads the artifact where it is."""
        return ()

    def spent(self, call: EngineCall, answer: str) -> str:
        """Nothing is imported."""
        return ""

    def discard_requests(self, spare: str) -> tuple[EngineCall, ...]:
        """Never asked for where nothing is spare."""
        return ()

    def sleeps(self, profile: Profile, accelerator: Accelerator) -> bool:
        """It cannot."""
        return False

    def rest_requests(self, deployment: Deployment) -> tuple[EngineCall, ...]:
        """Never asked for where there is no store, and no sleep."""
        return ()

    def wake_requests(self, deployment: Deployment) -> tuple[EngineCall, ...]:
        """Never asked for where there is no sleep."""
        return ()

    def sleep_path(self) -> str:
        """Never asked for where there is no sleep."""
        return ""

    def asleep(self, reply: Any) -> bool:
        """Never asked for where there is no sleep."""
        return False

    def tokens_request(self, deployment: Deployment, text: str) -> EngineCall | None:
        """It does not tell."""
        return None

    def prompt_request(self, deployment: Deployment, chat: Chat) -> EngineCall | None:
        """It does not tell."""
        return None

    def prompt_in(self, reply: Any) -> Tokens | str:
        """Tokens by their ids."""
        found = reply.get("tokens") if isinstance(reply, dict) else None
        return Tokens(tuple(found) if isinstance(found, list) else None)

    def asked_to_think(self, on: bool) -> dict[str, Any]:
        """As templates are asked."""
        return {"chat_template_kwargs": {"enable_thinking": on}}

    def forced_end(self, number: int) -> dict[str, Any] | None:
        """By a bias, as OpenAI's API has it."""
        return {"logit_bias": {str(number): 100}}

    def refusal(self, status: int, text: str) -> str:
        """Its status tells."""
        return "" if status == 200 else error_message(text) or f"HTTP {status}"

    def passes(self, refusal: str) -> bool:
        """It means what it says."""
        return False

    def pulse_path(self) -> str:
        """It serves what it computes itself."""
        return ""

    def pulse(self, reply: Any) -> EngineCall | None:
        """Never asked for where `pulse_path` is empty."""
        return None

    def gpu_path(self) -> str:
        """Nothing to ask: it dies where it finds no GPU."""
        return ""

    def not_on_gpu(self, reply: Any) -> str:
        """Never asked for where `gpu_path` is empty."""
        return ""


class StaticAdapters(EngineDefaults):
    """For the sheets of engines whose adapters are given at start."""

    hot_adapters = False

    def loaded(self, deployment: Deployment, reply: Any) -> tuple[tuple[str, str], ...] | None:
        """Nothing tells."""
        return None

    def load_requests(self, deployment: Deployment, adapter: Adapter, digest: Digest) -> tuple[EngineCall, ...]:
        """Never asked for where `hot_adapters` is false."""
        raise TypeError("adapters can only be given at start")

    def unload_requests(self, deployment: Deployment, adapter: str) -> tuple[EngineCall, ...]:
        """Never asked for where `hot_adapters` is false."""
        raise TypeError("adapters can only be given at start")


Pins = Mapping[str, EnginePin]

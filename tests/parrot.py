"""An engine that orch does not ship: what adding one takes is here, and nothing of it elsewhere.

It says what its settings tell it to, whatever it is asked. `python -m tests.parrot` is `orch` with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from string import Template
from typing import Annotated, Any

from orchestrator.cli import main
from orchestrator.core.artifact import GGUF_FILE, Recipe
from orchestrator.core.deployment import Adapter, Deployment
from orchestrator.core.host import Host
from orchestrator.core.launch import Launch
from orchestrator.core.memory import MIB, MemoryRequest
from orchestrator.core.part import Must
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import Profile
from orchestrator.core.weights import Shape
from orchestrator.engines import ENGINES
from orchestrator.engines.base import EngineSettings, Failure, LaunchRequest, LaunchSpec, Render, StaticAdapters

PROGRAM = "parrot-server"
CONFIG = Template('{"model": $model, "name": $name, "words": $words, "times": $times}\n')


class ParrotSettings(EngineSettings):
    """words: its answer to everything; times: how often it says them."""

    recipes: tuple[Recipe, ...] = (Recipe.GGUF_Q8_0,)
    words: Annotated[str, Must(min_length=1)] = "Hello"
    times: Annotated[int, Must(ge=1, le=9)] = 1

    def __post_init__(self) -> None:
        if self.words.isspace():
            raise ValueError("a parrot needs words")


class Parrot(StaticAdapters):
    """See EngineSheet."""

    name = "parrot"
    settings: type[EngineSettings] = ParrotSettings
    programs: tuple[str, ...] = (PROGRAM,)
    takes_gpu = False
    in_containers = False

    def accelerator(self, host: Host) -> Accelerator:
        return Accelerator.CPU

    def needs_environment(self) -> bool:
        return False

    def missing(self, host: Host) -> tuple[str, str]:
        if PROGRAM in host.programs:
            return "", ""
        return f"There is no {PROGRAM} on PATH.", "Buy a parrot."

    def cannot_serve(self, recipe: Recipe, accelerator: Accelerator, host: Host) -> str:
        return "" if recipe.quant else "parrots read GGUF files only"

    def model_file(self, recipe: Recipe) -> str:
        return GGUF_FILE

    def launch(self, request: LaunchRequest, render: Render) -> LaunchSpec:
        settings = ParrotSettings.of(request.profile, self.name)
        said = {"model": request.model_path, "name": request.profile.served_name}
        said |= {"words": settings.words, "times": settings.times}
        config = CONFIG.substitute({key: json.dumps(value) for key, value in said.items()})
        program = request.host.programs.get(PROGRAM, PROGRAM)
        return LaunchSpec(Launch((program, "{dir}/parrot.json", "{port}")), files=(("parrot.json", config),))

    def adapter_args(self, adapters: tuple[Adapter, ...]) -> tuple[str, ...]:
        return ()

    def cannot_adapt(self, profile: Profile, adapters: tuple[Adapter, ...]) -> str:
        return "Parrots learn nothing new" if adapters else ""

    def adapter_slots(self, profile: Profile, accelerator: Accelerator) -> int:
        return 0

    def upstream(self, deployment: Deployment, adapter: Adapter | None) -> str:
        return deployment.served_name

    def patch(self, deployment: Deployment, adapter: Adapter | None) -> dict[str, Any]:
        return {}

    def memory_request(
        self, profile: Profile, weights: int, shape: Shape, accelerator: Accelerator, adapters: int
    ) -> MemoryRequest:
        return MemoryRequest(
            name=self.name,
            weights=weights,
            kv_token=shape.kv_token_bytes,
            context=profile.serving.context,
            parallel=profile.serving.parallel,
            engine=20 * MIB,
        )

    def liveness_path(self) -> str:
        return "/model"

    def identity_path(self) -> str:
        return "/model"

    def recognises(self, deployment: Deployment, reply: Any) -> bool:
        return isinstance(reply, dict) and reply.get("model") == deployment.model_path

    def failure(self, log: str) -> Failure:
        return Failure((log.strip().splitlines() or [""])[-1])


@contextmanager
def known() -> Iterator[None]:
    """orch knows it meanwhile, in this process."""
    ENGINES[Parrot.name] = Parrot()
    try:
        yield
    finally:
        del ENGINES[Parrot.name]


if __name__ == "__main__":
    with known():
        main()

"""The engines that the clients ask, each with its models behind a gateway of orch's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chain_model
from orch_command import ANSWER, ASSETS, Orch, children, stopped_afterwards, with_environments
from stand_in_orch import OnStandIn

ALPHA = "Ahoy! The answer is alpha."


@dataclass(frozen=True)
class Served:
    """Two models may be there: `tiny`, with the adapter `alpha`, and `chain`, which thinks and calls tools."""

    orch: Orch
    tiny: bool
    chain: bool

    @property
    def url(self) -> str:
        return f"http://{self.orch.listen}"

    @property
    def model(self) -> str:
        """The one that is asked what any model can answer."""
        return "tiny" if self.tiny else "chain"

    @property
    def blanks_end(self) -> bool:
        """Whether a model comes to the end of its JSON: vLLM's grammars let it put in blanks for ever, and the tiny
        one likes to."""
        return self.chain or self.orch.engine == "ollama"

    @property
    def answer(self) -> str:
        """What that says to anything, greedy."""
        return ANSWER if self.tiny else chain_model.SAID

    @property
    def names(self) -> list[str]:
        """All that it is to have, as Ollama lists them."""
        tiny = ["alpha:latest", "test/Tiny:latest", "tiny:latest"] if self.tiny else []
        return sorted(tiny + (["chain:latest"] if self.chain else []))

    def status(self) -> dict[str, Any]:
        """What the gateway says of itself."""
        return self.orch.gateway_status()

    def in_flight(self) -> int:
        """Requests that the engines are at."""
        return sum(int(backend["in_flight"]) for backend in self.status()["backends"].values())

    def requests(self) -> int:
        """Requests that there were."""
        return int(self.status()["totals"]["requests"])

    @contextmanager
    def stands_still(self) -> Iterator[None]:
        """No engine does anything meanwhile, the processes that it started no more than itself."""
        pids = [int(engine["pid"]) for engine in self.orch.engines().values()]
        pids += [child for pid in pids for child in children(pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


@contextmanager
def serving(engine: str, place: Path, environments: Path) -> Iterator[Served]:
    """An engine with its models: Ollama's stand-in has no tools, and of vLLM one process is enough."""
    kind = OnStandIn if engine == "stand-in" else Orch
    name = {"stand-in": "ollama", "vllm-tiny": "vllm"}.get(engine, engine)
    with stopped_afterwards(kind(place / "home")) as orch:
        orch.engine = name
        if name == "vllm":
            with_environments(orch, environments)
        served = Served(orch, tiny=engine != "vllm", chain=engine in ("llamacpp", "vllm"))
        if served.tiny:
            orch.run("up", name, "-p", str(orch.profile))
            orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
        if served.chain:
            orch.run("up", name, "-p", str(chain_profile(place)))
        yield served


def chain_profile(place: Path) -> Path:
    """A profile of the model that thinks and calls tools."""
    weights = chain_model.write(place / "chain")
    profile = place / "chain.toml"
    profile.write_text(
        f'name = "chain"\npublic_names = ["chain"]\n[weights]\npath = "{weights}"\n'
        "[serving]\ncontext = 512\nparallel = 2\n[sampling]\ntemperature = 0.0\n"
        "[engines.llamacpp]\nthreads = 1\n[engines.vllm]\nkv_cache_mib = 64\n"
    )
    return profile

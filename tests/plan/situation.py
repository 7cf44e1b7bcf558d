"""The compact notation of case files: a few words per engine instead of a whole Observed."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from fakes.asks import CPU, GIB, LISTEN, adapter, gpu, resolved, tiny
from fakes.world import gateway_launch

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Deployment, Desired, Wish
from orchestrator.core.environment import EnvironmentObserved
from orchestrator.core.host import Host
from orchestrator.core.launch import Exit, Instance, InstanceState
from orchestrator.core.observed import EngineObserved, GatewayObserved, Observed
from orchestrator.core.routes import Counts, GatewayStatus, Route, RouteTable
from orchestrator.core.steps import GATEWAY, Action, EnsureEnvironment, ImportAdapter, Plan, Skip

HOSTS: dict[str, Host] = {
    "cpu": CPU,
    "rtx-5090": replace(CPU, gpus=(gpu("GeForce RTX 5090", (12, 0), 32),)),
    "v100": replace(CPU, gpus=(gpu("Tesla V100-SXM2-32GB", (7, 0), 32),)),
    "old-cpu": replace(CPU, cpu_flags=frozenset({"avx"})),
}
FIRST_PORT = 20001
DEAD_PORT = 20999


class Situation:
    """A case file's world as an Observed.

    `command` is what the user typed, `profile` what has changed in the tiny profile since. `engines` has a line per
    generation: `ENGINE gN [RECIPE] [backoff|stopped] [unsupervised] [silent] [context=N] [aliases=X,Y] [adapters=A,B]
    [loaded=A,B] [loads=N]`; without words it runs, is supervised and answers, with its adapters loaded. `routes` (to
    which generation all names lead), `desired` and `previous` are written the same way. `gateway` is well (where
    there are engines), absent, silent or unsupervised; `foreign` are public names of another profile. `host`, `ollama`,
    `free_gib` and `free_gpu_gib` are the machine; `finished` ("nothing", else all) is the store, `environment` absent,
    installed or what is wrong with it. `expect` is the plan as `shown` writes it, or `error` and `hint` the refusal.
    """

    def __init__(self, case: dict[str, Any]) -> None:
        self._case = case
        self.host = HOSTS[case.get("host", "cpu")]
        if case.get("ollama", False):
            self.host = replace(self.host, ollama="/usr/bin/ollama")
        if "free_gib" in case:
            self.host = replace(self.host, memory_available=int(case["free_gib"] * GIB))
        if "free_gpu_gib" in case:
            gpus = tuple(replace(one, memory_free=int(case["free_gpu_gib"] * GIB)) for one in self.host.gpus)
            self.host = replace(self.host, gpus=gpus)

    def observed(self) -> Observed:
        engines = tuple(self._engine(line, index) for index, line in enumerate(self._case.get("engines", [])))
        desired = self._desired()
        return Observed(
            host=self.host,
            engines=engines,
            gateway=self._gateway(engines),
            finished=self._finished(),
            environments=self._environments(),
            desired={"tiny": desired} if desired is not None else {},
        )

    def _wish(self, words: list[str]) -> Desired:
        """`ENGINE [RECIPE] [context=N] [adapters=A,B]`."""
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        recipe = next((Recipe(word) for word in words if word in list(Recipe)), None)
        changes: dict[str, Any] = {}
        if "context" in settings:
            changes["serving"] = {"context": int(settings["context"])}
        if "aliases" in settings:
            changes["public_names"] = ["tiny", *settings["aliases"].split(",")]
        profile = tiny(**changes)
        adapters = tuple(adapter(text, profile) for text in settings.get("adapters", "").split(",") if text)
        wish = Wish(profile=profile, engine=words[0], target="local", recipe=recipe)
        return Desired(wish=wish, adapters=adapters)

    def _deployment(self, words: list[str]) -> Deployment:
        wish = self._wish(words)
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        generation = next(int(word[1:]) for word in words if re.fullmatch(r"g\d+", word))
        loads = int(settings.get("loads", len(wish.adapters)))
        made = resolved(wish, replace(self.host, ollama=self.host.ollama or "/usr/bin/ollama"))
        return made.deployment.model_copy(update={"generation": generation, "adapter_loads": loads})

    def _engine(self, line: str, index: int) -> EngineObserved:
        words = line.split()
        deployment = self._deployment(words)
        state = next((InstanceState(word) for word in words if word in list(InstanceState)), InstanceState.RUNNING)
        running = state is InstanceState.RUNNING
        instance = Instance(
            name=deployment.instance,
            state=state,
            supervised="unsupervised" not in words and state is not InstanceState.STOPPED,
            launch=deployment.launch,
            label=deployment.model_dump_json(),
            port=FIRST_PORT + index,
            pid=101 + index if running else None,
            starts=1,
            last_exit=Exit(1, None, "before") if state is InstanceState.BACKOFF else None,
        )
        answers = running and "silent" not in words
        loaded = None
        if deployment.hot_adapters and answers:
            shown = [word for word in words if word.startswith("loaded=")]
            texts = shown[0].removeprefix("loaded=").split(",") if shown else None
            adapters = deployment.adapters
            if texts is not None:
                adapters = tuple(adapter(text, tiny()) for text in texts if text)
            loaded = tuple((a.name, a.path) for a in adapters)
        return EngineObserved(instance, deployment, answers, loaded)

    def _gateway(self, engines: tuple[EngineObserved, ...]) -> GatewayObserved:
        state = self._case.get("gateway", "well" if engines else "absent")
        if state == "absent":
            return GatewayObserved(None, None)
        launch = gateway_launch(LISTEN)
        living = state != "silent"
        instance = Instance(
            name=GATEWAY,
            state=InstanceState.RUNNING if living else InstanceState.STOPPED,
            supervised=state == "well",
            launch=launch,
            label=LISTEN,
            port=launch.port,
            pid=100 if living else None,
            starts=1,
        )
        if not living:
            return GatewayObserved(instance, None)
        table = RouteTable([*self._routes(engines), *self._foreign_routes()])
        status = GatewayStatus(100, "1", LISTEN, "2026-01-01T00:00:00+00:00", table, {}, Counts(), {}, 0)
        return GatewayObserved(instance, status)

    def _routes(self, engines: tuple[EngineObserved, ...]) -> list[Route]:
        text = self._case.get("routes", "")
        if not text:
            return []
        deployment = self._deployment(text.split())
        wish = self._wish(text.split())
        ports = {engine.instance.name: engine.instance.port for engine in engines}
        port = ports.get(deployment.instance, DEAD_PORT)
        made = resolved(wish, replace(self.host, ollama=self.host.ollama or "/usr/bin/ollama"))
        url = f"http://127.0.0.1:{port}"
        return [replace(route, backend=deployment.instance, url=url) for route in made.routes]

    def _foreign_routes(self) -> list[Route]:
        names = self._case.get("foreign", [])
        return [Route(name, "other", "other-llamacpp-g1", f"http://127.0.0.1:{DEAD_PORT}") for name in names]

    def _desired(self) -> Desired | None:
        if "desired" not in self._case:
            return None
        desired = self._wish(self._case["desired"].split())
        if "previous" in self._case:
            desired = desired.model_copy(update={"previous": self._wish(self._case["previous"].split()).wish})
        return desired

    def _supply(self) -> list[Any]:
        profile = tiny()
        adapters = tuple(adapter(text, profile) for text in ("a", "b"))
        able = replace(self.host, cpu_flags=CPU.cpu_flags)
        steps: list[Any] = []
        for engine in ("llamacpp", "vllm"):
            wish = Wish(profile=profile, engine=engine, target="local")
            steps += resolved(Desired(wish=wish, adapters=adapters), able).supply
        return steps

    def _finished(self) -> dict[str, int]:
        if self._case.get("finished", "all") != "all":
            return {}
        return {step.key: GIB for step in self._supply() if not isinstance(step, EnsureEnvironment)}

    def _environments(self) -> dict[str, EnvironmentObserved]:
        state = self._case.get("environment", "installed")
        if state == "absent":
            return {}
        problem = "" if state == "installed" else state
        specs = [step.spec for step in self._supply() if isinstance(step, EnsureEnvironment)]
        return {spec.name: EnvironmentObserved(spec.name, spec.engine, spec.version, GIB, problem) for spec in specs}


def shown(plan: Plan) -> str:
    """A plan as case files write it: `=` skipped, `+` done, `<` its undo, `---` the commit point; hashes as `*`."""
    lines = []
    for index, item in enumerate(plan.items):
        if index == plan.commit:
            lines.append("---")
        match item:
            case Skip(what, why):
                lines.append(f"= {what}: {why}")
            case Action(step, undo):
                version = f" ({step.digest[:4]})" if isinstance(step, ImportAdapter) else ""
                lines.append(f"+ {step.what}{version}")
                lines += [f"  < {back.what}" for back in undo]
    if plan.commit == len(plan.items):
        lines.append("---")
    text = "\n".join(lines)
    return re.sub(r"-([0-9a-f]{16}|[0-9a-f]{8})(?![0-9a-f])", "-*", text)

"""The compact notation of case files: a few words per engine instead of a whole Observed."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from fakes.asks import CPU, DAEMON, GATEWAY_BASE, GATEWAY_IMAGE, GIB, LISTEN, PINS, adapter, gpu, resolved, tiny
from fakes.materials import built_facts, image_facts
from fakes.target import CONTAINER_PORT, FIRST_PORT, LOOPBACK, PAUSED
from fakes.world import gateway_launch

from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Deployment, Desired, Wish
from orchestrator.core.docker import DockerFacts
from orchestrator.core.environment import EnvironmentObserved
from orchestrator.core.host import DRIVER_RESERVE, DRIVER_SHARE, Gpu, GpuUser, Host
from orchestrator.core.images import ImageFacts
from orchestrator.core.launch import DOCKER, LOCAL, Exit, Instance, InstanceState
from orchestrator.core.observed import EngineObserved, GatewayObserved, Observed
from orchestrator.core.resolved import Resolved
from orchestrator.core.routes import Counts, GatewayStatus, Route, RouteTable
from orchestrator.core.steps import GATEWAY, Action, EnsureEnvironment, ImportAdapter, Plan, Skip
from orchestrator.errors import HostError

HOSTS: dict[str, Host] = {
    "cpu": CPU,
    "rtx-5090": replace(CPU, gpus=(gpu("GeForce RTX 5090", (12, 0), 32),)),
    "two-rtx-5090": replace(
        CPU,
        gpus=tuple(replace(gpu("GeForce RTX 5090", (12, 0), 32), uuid=f"GPU-{n}", index=n, minor=n) for n in (0, 1)),
    ),
    "unlike": replace(
        CPU, gpus=(gpu("GeForce RTX 5090", (12, 0), 32), replace(gpu("H200", (9, 0), 140), index=1, minor=1))
    ),
    "h200": replace(CPU, gpus=(gpu("H200", (9, 0), 140),)),
    "v100": replace(CPU, gpus=(gpu("Tesla V100-SXM2-32GB", (7, 0), 32),)),
    "old-cpu": replace(CPU, cpu_flags=frozenset({"avx"})),
    "amd": replace(CPU, amd=True),
}
CUDA_OF = {"570": (12, 8), "575": (12, 9), "580": (13, 0)}
DAEMONS: dict[str, DockerFacts] = {
    "hook": DAEMON,
    "by number": DockerFacts(runtimes=("runc",), cdi_devices=("nvidia.com/gpu=0", "nvidia.com/gpu=all")),
    "no toolkit": DockerFacts(runtimes=("runc",), cgroup_driver="systemd"),
    "down": DockerFacts(problem="Docker does not answer.", hint="Start it: systemctl start docker"),
}
DRIFTS = {"drift=paused": PAUSED, "drift=renamed": "was renamed to mine"}
DEAD_PORT = 20999


class Situation:
    """A case file's world as an Observed.

    `command` is what the user typed, `profile` what has changed in the tiny profile since. `engines` has a line per
    generation: `ENGINE gN [RECIPE] [target=docker] [backoff|stopped] [unsupervised] [silent] [drift=paused|renamed]
    [context=N] [aliases=X,Y] [adapters=A,B] [loaded=A,B] [loads=N]`; without words it runs, is supervised and answers,
    with its adapters loaded. `routes` (to which generation all names lead), `desired` and `previous` are written the
    same way. `gateway` is well (where there are engines), absent, silent, unsupervised or renamed, `gateway_target`
    where it is; `foreign` are public names of another profile.
    `host`, `ollama`, `free_gib` and `free_gpu_gib` are the machine; `driver` is the NVIDIA driver's version,
    `lingering_gib` GPU memory that a dead process has not given back, `gpu_users` lines `NAME PID GIB` of living ones;
    what is said of GPU memory is of each GPU, or a list with a number for each.
    `docker` is the daemon: hook (what is there else), "by number", "no toolkit", or down: then its engines are not
    seen. `images` ("nothing", else all that are pinned and built) are those that it has, `requires` says what the
    config of vLLM's demands; `finished` ("nothing", else all) is the store, `environment` absent, installed or what
    is wrong with it. `expect` is the plan as `shown` writes it, or `error` and `hint` the refusal.
    """

    def __init__(self, case: dict[str, Any]) -> None:
        self._case = case
        self.docker = DAEMONS[case.get("docker", "hook")]
        self.host = HOSTS[case.get("host", "cpu")]
        if case.get("ollama", False):
            self.host = replace(self.host, ollama="/usr/bin/ollama")
        if "driver" in case:
            self.host = replace(self.host, driver=case["driver"], cuda=CUDA_OF[case["driver"].split(".")[0]])
        if "free_gib" in case:
            self.host = replace(self.host, memory_available=int(case["free_gib"] * GIB))
        self.host = replace(self.host, gpus=tuple(self._gpu(one, n) for n, one in enumerate(self.host.gpus)))

    def _gpu(self, one: Gpu, n: int) -> Gpu:
        lines = [line.split() for line in self._case.get("gpu_users", [])]
        users = tuple(GpuUser(int(pid), name, int(float(gib) * GIB)) for name, pid, gib in lines)
        said = {key: self._case[key] for key in ("free_gpu_gib", "lingering_gib") if key in self._case}
        said = {key: value[n] if isinstance(value, list) else value for key, value in said.items()}
        free = int(said["free_gpu_gib"] * GIB) if "free_gpu_gib" in said else one.memory_free
        if "lingering_gib" in said:
            reserve = max(DRIVER_RESERVE, int(one.memory_total * DRIVER_SHARE))
            held = int(said["lingering_gib"] * GIB) + sum(user.memory for user in users)
            free = one.memory_total - reserve - held
        return replace(one, memory_free=free, users=users, users_told="lingering_gib" in said)

    def observed(self) -> Observed:
        engines = tuple(self._engine(line, index) for index, line in enumerate(self._case.get("engines", [])))
        unreachable = {}
        if self.docker.problem and any(engine.instance.target == DOCKER for engine in engines):
            unreachable = {DOCKER: HostError(self.docker.problem, hint=self.docker.hint)}
            engines = tuple(engine for engine in engines if engine.instance.target != DOCKER)
        desired = self._desired()
        return Observed(
            host=self.host,
            engines=engines,
            gateway=self._gateway(engines),
            finished=self._finished(),
            environments=self._environments(),
            desired={"tiny": desired} if desired is not None else {},
            images=self._images(),
            unreachable=unreachable,
        )

    def _wish(self, words: list[str]) -> Desired:
        """`ENGINE [RECIPE] [target=docker] [context=N] [adapters=A,B]`."""
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        recipe = next((Recipe(word) for word in words if word in list(Recipe)), None)
        changes: dict[str, Any] = {}
        if "context" in settings:
            changes["serving"] = {"context": int(settings["context"])}
        if "aliases" in settings:
            changes["public_names"] = ["tiny", *settings["aliases"].split(",")]
        profile = tiny(**changes)
        adapters = tuple(adapter(text, profile) for text in settings.get("adapters", "").split(",") if text)
        wish = Wish(profile=profile, engine=words[0], target=settings.get("target", LOCAL), recipe=recipe)
        return Desired(wish=wish, adapters=adapters)

    def _deployment(self, words: list[str]) -> Deployment:
        wish = self._wish(words)
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        generation = next(int(word[1:]) for word in words if re.fullmatch(r"g\d+", word))
        loads = int(settings.get("loads", len(wish.adapters)))
        return self._resolved(wish).deployment.model_copy(update={"generation": generation, "adapter_loads": loads})

    def _resolved(self, desired: Desired) -> Resolved:
        """As it was resolved when it was started: everything was there."""
        host = replace(self.host, ollama=self.host.ollama or "/usr/bin/ollama")
        daemon = DAEMON if self.docker.problem else self.docker
        return resolved(desired, host, docker=daemon, images=self._images())

    def _engine(self, line: str, index: int) -> EngineObserved:
        words = line.split()
        deployment = self._deployment(words)
        state = next((InstanceState(word) for word in words if word in list(InstanceState)), InstanceState.RUNNING)
        running, in_docker = state is InstanceState.RUNNING, deployment.target == DOCKER
        drift = next((DRIFTS[word] for word in words if word in DRIFTS), "")
        instance = Instance(
            name=deployment.instance,
            state=state,
            supervised="unsupervised" not in words and state is not InstanceState.STOPPED,
            launch=deployment.launch,
            label=deployment.model_dump_json(),
            port=CONTAINER_PORT if in_docker else FIRST_PORT + index,
            pid=101 + index if running else None,
            starts=1,
            last_exit=Exit(1, None, "before") if state is InstanceState.BACKOFF else None,
            target=deployment.target,
            host=f"172.30.0.{2 + index}" if in_docker else LOOPBACK,
            drift=drift,
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
        target = self._case.get("gateway_target", LOCAL)
        launch = gateway_launch(target, LISTEN)
        living = state != "silent"
        instance = Instance(
            name=GATEWAY,
            state=InstanceState.RUNNING if living else InstanceState.STOPPED,
            supervised=state in ("well", "renamed"),
            launch=launch,
            label=LISTEN,
            port=launch.port,
            pid=100 if living else None,
            starts=1,
            target=target,
            drift=DRIFTS["drift=renamed"] if state == "renamed" else "",
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
        urls = {engine.instance.name: engine.instance.url for engine in engines}
        url = urls.get(deployment.instance, f"http://127.0.0.1:{DEAD_PORT}")
        return [replace(route, backend=deployment.instance, url=url) for route in self._resolved(wish).routes]

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
            wish = Wish(profile=profile, engine=engine, target=LOCAL)
            steps += resolved(Desired(wish=wish, adapters=adapters), able).supply
        return steps

    def _finished(self) -> dict[str, int]:
        if self._case.get("finished", "all") != "all":
            return {}
        return {step.key: GIB for step in self._supply() if not isinstance(step, EnsureEnvironment)}

    def _images(self) -> dict[str, ImageFacts]:
        if self._case.get("images", "all") != "all":
            return {}
        facts = [image_facts(GATEWAY_BASE), built_facts(GATEWAY_IMAGE)]
        for engine, pin in PINS.items():
            facts += [
                image_facts(one, self._case.get("requires", "") if engine == "vllm" else "") for one in pin.docker
            ]
        return {name: one for one in facts for name in (one.id, *one.references, *one.tags)}

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

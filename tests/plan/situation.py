"""The compact notation of case files: a few words per engine instead of a whole Observed."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from fakes.asks import (
    CPU,
    DAEMON,
    GATEWAY_BASE,
    GATEWAY_IMAGE,
    GIB,
    LISTEN,
    PINS,
    adapter,
    gateway_launch,
    gpu,
    plan_of,
    resolved,
    tiny,
)
from fakes.storage import built_facts, image_facts
from fakes.target import CONTAINER_PORT, FIRST_PORT, LOOPBACK, PAUSED

from orchestrator import __version__
from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import Deployment, DeploymentSpec, Desired
from orchestrator.core.docker import DockerFacts
from orchestrator.core.environment import EnvironmentObserved
from orchestrator.core.gateway_status import (
    GATEWAY,
    BackendLoad,
    GatewayStatus,
    HeldLoad,
    Listener,
    Phase,
    Traffic,
    gateway_label,
)
from orchestrator.core.host import DRIVER_RESERVE, DRIVER_SHARE, Gpu, GpuUser, Host
from orchestrator.core.images import ImageFacts
from orchestrator.core.launch import DOCKER, LOCAL, Children, Exit, Instance, InstanceState
from orchestrator.core.observed import EngineObserved, GatewayObserved, Observed, OtherGateway
from orchestrator.core.plan import Action, Plan, Skip
from orchestrator.core.prerequisites import EnsureEnvironment, ImportAdapter
from orchestrator.core.resolved import Resolved
from orchestrator.core.routes import FIRST_WITH_CARDS, PROTOCOL, Backend, Route, RouteTable
from orchestrator.errors import HostError, OrchError

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
    "down": DockerFacts(problem="Docker does not answer.", hint="Start it: systemctl start docker."),
}
DRIFTS = {"drift=paused": PAUSED, "drift=renamed": "was renamed to mine"}
DEAD_PORT = 20999


AT = (Listener(LISTEN),)


def gateway_status(routes: RouteTable) -> GatewayStatus:
    """What the gateway of a case says of itself."""
    return GatewayStatus(100, __version__, AT, "2026-01-01T00:00:00+00:00", routes)


class Situation:
    """A case file's world as an Observed.

    `command` is what the user typed, `profile` what has changed in the tiny profile since. `engines` has a line per
    generation: `ENGINE gN [RECIPE] [target=docker] [backoff|stopped] [unsupervised] [silent|hangs|rests|sleep|asleep]
    [drift=paused|renamed] [spare=MODEL] [context=N] [parallel=N] [aliases=X,Y] [adapters=A,B] [loaded=A,B] [loads=N]
    [share=N]`; without words it runs, is supervised and answers, with its adapters loaded. `routes` (to which
    generation all names lead), `desired` and `previous` are written the same way; `untold`: by a version of orch that
    told clients nothing of models; `keeps`: what was before stands by. `gateway` is well (where there are engines),
    absent, silent, unsupervised or renamed, `gateway_target` where it is, `gateway_name`, `gateway_protocol` and
    `gateway_version` which one, `gateway_origins` whose pages it lets in, and `origins` what ORCH_ORIGINS says of that;
    `other_gateways` has lines `NAME waiting|leaving|silent|stopped`, `in_flight` counts requests by instance, and with
    `paused` those to the profile are held; `foreign` are public names of another profile. `engine_memory_gib` is
    ORCH_ENGINE_MEMORY.
    `host`, `ollama`, `free_gib`, `free_disk_gb` and `free_gpu_gib` are the machine; `driver` is the version of
    NVIDIA's, `lingering_gib` GPU memory that a dead process has not given back, `gpu_users` lines `NAME PID GIB` of
    living ones; what is said of GPU memory is of each GPU, or a list with a number for each.
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
            self.host = replace(self.host, programs={"ollama": "/usr/bin/ollama"})
        if "driver" in case:
            self.host = replace(self.host, driver=case["driver"], cuda=CUDA_OF[case["driver"].split(".")[0]])
        if "free_disk_gb" in case:
            self.host = replace(self.host, disk_free=int(case["free_disk_gb"] * 10**9))
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
        return replace(one, memory_free=free, users=users, users_complete="lingering_gib" in said)

    def plan(self, observed: Observed) -> Plan:
        """The plan of the case's command."""
        case = self._case
        origins = tuple(case["origins"]) if "origins" in case else None
        memory = int(case["engine_memory_gib"] * GIB) if "engine_memory_gib" in case else None
        profile = tiny(**case.get("profile", {}))
        return plan_of(case["command"], profile, observed, docker=self.docker, origins=origins, engine_memory=memory)

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

    def _desired_of(self, words: list[str]) -> Desired:
        """`ENGINE [RECIPE] [target=docker] [context=N] [parallel=N] [sleep] [adapters=A,B]`."""
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        recipe = next((Recipe(word) for word in words if word in list(Recipe)), None)
        changes: dict[str, Any] = {}
        if serving := {name: int(settings[name]) for name in ("context", "parallel") if name in settings}:
            changes["serving"] = serving
        if {"sleep", "asleep"} & {*words}:
            changes["engines"] = {"vllm": {"sleep": True}}
        if "aliases" in settings:
            changes["public_names"] = ["tiny", *settings["aliases"].split(",")]
        profile = tiny(**changes)
        adapters = tuple(adapter(text, profile) for text in settings.get("adapters", "").split(",") if text)
        spec = DeploymentSpec(profile=profile, engine=words[0], target=settings.get("target", LOCAL), recipe=recipe)
        return Desired(spec=spec, adapters=adapters)

    def _deployment(self, words: list[str]) -> Deployment:
        desired = self._desired_of(words)
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        generation = next(int(word[1:]) for word in words if re.fullmatch(r"g\d+", word))
        loads = int(settings.get("loads", len(desired.adapters)))
        changes: dict[str, Any] = {"generation": generation, "adapter_loads": loads}
        made = self._resolved(desired)
        if "share" in settings:
            share = settings["share"]
            changes |= {"share": float(share), "share_args": (made.share_option, share)}
            if made.memory_fit is not None:
                changes["memory"] = made.memory_fit.with_share(float(share)).requested
        return made.deployment.model_copy(update=changes)

    def _resolved(self, desired: Desired) -> Resolved:
        """As it was resolved when it was started: everything was there."""
        host = replace(self.host, programs={"ollama": "/usr/bin/ollama"})
        daemon = DAEMON if self.docker.problem else self.docker
        return resolved(desired, host, docker=daemon, images=self._images())

    def _engine(self, line: str, index: int) -> EngineObserved:
        words = line.split()
        # As what runs tells it.
        deployment = Deployment.from_label(self._deployment(words).label)
        state = next((InstanceState(word) for word in words if word in list(InstanceState)), InstanceState.RUNNING)
        running, in_docker = state is InstanceState.RUNNING, deployment.target == DOCKER
        drift = next((DRIFTS[word] for word in words if word in DRIFTS), "")
        instance = Instance(
            name=deployment.instance,
            state=state,
            supervised="unsupervised" not in words and state is not InstanceState.STOPPED,
            launch=deployment.launch,
            label=deployment.label,
            port=CONTAINER_PORT if in_docker else FIRST_PORT + index,
            pid=101 + index if running else None,
            starts=1,
            last_exit=Exit(1, None, "before") if state is InstanceState.BACKOFF else None,
            target=deployment.target,
            host=f"172.30.0.{2 + index}" if in_docker else LOOPBACK,
            drift=drift,
            children=Children(1, 0) if "hangs" in words else Children(0, 0) if "rests" in words else None,
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
        hangs = "hangs" in words
        spare = tuple(word.removeprefix("spare=") for word in words if word.startswith("spare="))
        sleeps = "asleep" in words
        return EngineObserved(instance, deployment, answers and not hangs, loaded, hangs, spare, sleeps)

    def _gateway(self, engines: tuple[EngineObserved, ...]) -> GatewayObserved:
        state = self._case.get("gateway", "well" if engines else "absent")
        others = tuple(self._other_gateway(line.split()) for line in self._case.get("other_gateways", []))
        if state == "absent":
            return GatewayObserved(None, None, others)
        living = state != "silent"
        instance = replace(
            self._gateway_instance(self._case.get("gateway_name", GATEWAY), living),
            supervised=state in ("well", "renamed"),
            drift=DRIFTS["drift=renamed"] if state == "renamed" else "",
        )
        if not living:
            return GatewayObserved(instance, None, others)
        table = RouteTable([*self._routes(engines), *self._foreign_routes()])
        status = replace(
            gateway_status(table),
            protocol=self._case.get("gateway_protocol", PROTOCOL),
            version=self._case.get("gateway_version", __version__),
            origins=tuple(self._case.get("gateway_origins", ())),
            paused={"tiny": 60.0} if self._case.get("paused", False) else {},
            traffic=Traffic(
                {name: BackendLoad(count) for name, count in self._case.get("in_flight", {}).items()},
                holds={"tiny": HeldLoad()} if self._case.get("paused", False) else {},
            ),
        )
        return GatewayObserved(instance, status, others)

    def _gateway_instance(self, name: str, living: bool) -> Instance:
        target = self._case.get("gateway_target", LOCAL)
        launch = gateway_launch(target, name, AT, tuple(self._case.get("gateway_origins", ())), (), take_over=False)
        return Instance(
            name=name,
            state=InstanceState.RUNNING if living else InstanceState.STOPPED,
            supervised=False,
            launch=launch,
            label=gateway_label(AT),
            port=launch.port,
            pid=100 if living else None,
            starts=1,
            target=target,
        )

    def _other_gateway(self, words: list[str]) -> OtherGateway:
        name, phase = words
        instance = self._gateway_instance(name, phase != "stopped")
        if phase not in list(Phase):
            return OtherGateway(instance, None)
        return OtherGateway(instance, replace(gateway_status(RouteTable()), phase=Phase(phase)))

    def _routes(self, engines: tuple[EngineObserved, ...]) -> list[Route]:
        text = self._case.get("routes", "")
        if not text:
            return []
        deployment = self._deployment(text.split())
        desired = self._desired_of(text.split())
        urls = {engine.instance.name: engine.instance.url for engine in engines}
        url = urls.get(deployment.instance, f"http://127.0.0.1:{DEAD_PORT}")
        backend = Backend(deployment.instance, url, deployment.target)
        protocol = self._case.get("gateway_protocol", PROTOCOL)
        if "untold" in text.split():
            protocol = FIRST_WITH_CARDS - 1
        return [route.led_to(backend).known_to(protocol) for route in self._resolved(desired).routes]

    def _foreign_routes(self) -> list[Route]:
        names = self._case.get("foreign", [])
        backend = Backend("other-llamacpp-g1", f"http://127.0.0.1:{DEAD_PORT}")
        return [Route(name, "other", (backend,)) for name in names]

    def _desired(self) -> Desired | None:
        if "desired" not in self._case:
            return None
        desired = self._as_recorded(self._case["desired"])
        desired = desired.model_copy({"keeps": "keeps" in self._case["desired"].split()})
        if "previous" in self._case:
            desired = desired.model_copy({"before": self._as_recorded(self._case["previous"]).served})
        return desired

    def _as_recorded(self, line: str) -> Desired:
        """With what it came to, as far as this host can tell."""
        desired = self._desired_of(line.split())
        try:
            found = desired.model_copy({"resolution": self._resolved(desired).resolution})
            return found.without_card if "untold" in line.split() else found
        except OrchError:
            return desired

    def _prerequisites(self) -> list[Any]:
        profile = tiny()
        adapters = tuple(adapter(text, profile) for text in ("a", "b"))
        able = replace(self.host, cpu_flags=CPU.cpu_flags)
        steps: list[Any] = []
        for engine in ("llamacpp", "vllm"):
            spec = DeploymentSpec(profile=profile, engine=engine, target=LOCAL)
            steps += resolved(Desired(spec=spec, adapters=adapters), able).prerequisites
        return steps

    def _finished(self) -> dict[str, int]:
        if self._case.get("finished", "all") != "all":
            return {}
        return {step.key: GIB for step in self._prerequisites() if not isinstance(step, EnsureEnvironment)}

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
        specs = [step.spec for step in self._prerequisites() if isinstance(step, EnsureEnvironment)]
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

"""What served comes back as it was: by rollback and by healing, whatever pins, weights and machine are by now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.asks import CPU, DAEMON, GIB, PINS, MadeUpCatalog, MadeUpOrchestrator, gpu, image, intent_of, tiny
from fakes.world import FakeWorld

from orchestrator.app.deploy import Options, plan_for, plan_to
from orchestrator.app.intent import AddAdapter, GoBack, Intent, MoveTo, RemoveAdapter
from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.deployment import Desired
from orchestrator.core.docker import DockerFacts
from orchestrator.core.host import Host, Memory
from orchestrator.core.launch import InstanceState
from orchestrator.core.pins import Accelerator, EnginePin
from orchestrator.core.plan import Plan, Remark, Upgrade
from orchestrator.core.profile import Profile, Weights
from orchestrator.core.progress import Progress, silent
from orchestrator.core.weights import WeightsFacts
from orchestrator.engines.settings import read_settings
from orchestrator.errors import HostError, PlanRefused, UsageError

RTX_5090 = replace(CPU, gpus=(gpu("GeForce RTX 5090", (12, 0), 32),))
OLD = PINS["vllm"].docker[0]
NEW = image("vllm/vllm-openai", "v2", Accelerator.CUDA, cuda="13.0")
LOCAL_IMAGE = OLD.model_copy({"local": True, "tag": "mine"})


def pinned(*images: object) -> dict[str, EnginePin]:
    """The pins, with these images of vLLM."""
    return {**PINS, "vllm": PINS["vllm"].model_copy({"docker": images})}


class Changed(MadeUpCatalog):
    """The same directory, with other weights in it."""

    def of_directory(self, weights: Weights, progress: Progress) -> WeightsFacts:
        facts = super().of_directory(weights, progress)
        return replace(facts, source="dir:other", key=artifact_key(Recipe.WEIGHTS, "dir:other"))


class Box:
    """A machine that serves the tiny model, and what is pinned and lies there."""

    def __init__(self, host: Host = RTX_5090, target: str = "docker") -> None:
        self.world, self.target = FakeWorld(host), target
        self.pins: Mapping[str, EnginePin] = PINS
        self.catalog = MadeUpCatalog()
        self.docker = DAEMON

    def plan(self, command: str, profile: Profile | None = None) -> Plan:
        """What a command would do; `status`: what would be healed."""
        if command == "status":
            observed = self.world.observe()
            return plan_to(self.orch, "status", observed.desired["tiny"], observed, Options())
        asked = f"{command} --target {self.target}" if command.startswith(("up", "migrate")) else command
        return self.plan_of(intent_of(asked, profile or tiny()))

    def plan_of(self, intent: Intent) -> Plan:
        return plan_for(self.orch, "a test", intent, self.world.observe(), Options())

    @property
    def orch(self) -> MadeUpOrchestrator:
        orch = MadeUpOrchestrator(self.world.host, self.docker)
        orch.pins = self.pins  # type: ignore[assignment]
        orch.catalog = self.catalog  # type: ignore[assignment]
        return orch

    def do(self, command: str, profile: Profile | None = None) -> Plan:
        plan = self.plan(command, profile)
        self.world.run(plan)
        return plan

    @property
    def serving(self) -> tuple[str, str, str]:
        """The one engine: its name, its image and its artifact."""
        (engine,) = self.world.observe().engines_of("tiny")
        assert self.world.chat("tiny") == 200
        container = engine.deployment.launch.container
        return engine.instance.name, container.image if container else "", engine.deployment.artifact_key

    @property
    def label(self) -> dict[str, object]:
        """All that the one engine was started with, but which generation it is, and what it was thought to take."""
        (engine,) = self.world.observe().engines_of("tiny")
        return engine.deployment.model_dump(exclude=("generation", "memory"))


@pytest.fixture
def box() -> Box:
    box = Box()
    box.do("up vllm")
    assert box.serving[:2] == ("tiny-vllm-g1", OLD.reference)
    return box


def upgrade(plan: Plan) -> list[tuple[str, str]]:
    return [(item.what, item.why) for item in plan.items if isinstance(item, Upgrade)]


def test_a_new_pin_is_no_drift_and_up_takes_it(box: Box) -> None:
    box.pins = pinned(NEW)
    looked = box.plan("status")
    assert looked.actions == ()
    assert upgrade(looked) == [("upgrade to vllm/vllm-openai:v2", "it is available; orch up takes it")]
    box.do("up vllm")
    assert box.serving[:2] == ("tiny-vllm-g2", NEW.reference)
    assert upgrade(box.plan("status")) == []


def test_rollback_brings_back_the_image_and_stays_there(box: Box) -> None:
    before = box.label
    box.pins = pinned(NEW)
    box.do("up vllm")
    box.do("rollback")
    assert box.serving[:2] == ("tiny-vllm-g3", OLD.reference)
    assert box.label == before
    gone_back = [("upgrade to vllm/vllm-openai:v2", "it was rolled back; orch rollback goes forward again")]
    for command in ("status", "up vllm"):
        plan = box.plan(command)
        assert (plan.actions, upgrade(plan)) == ((), gone_back)
    box.do("rollback")
    assert box.serving[:2] == ("tiny-vllm-g4", NEW.reference)
    box.do("rollback")
    # Another one than was gone back from is taken.
    box.pins = pinned(image("vllm/vllm-openai", "v3", Accelerator.CUDA, cuda="13.0"))
    assert any("tiny-vllm-g6" in action.step.what for action in box.plan("up vllm").actions)


def test_a_pin_that_fits_nothing_keeps_nobody_from_anything(box: Box) -> None:
    before = box.label
    box.do("up vllm", tiny(serving={"context": 256}))
    box.pins = pinned()
    assert box.plan("status").actions == ()
    box.do("rollback")
    assert box.label == before
    box.world.docker.crash("tiny-vllm-g3")
    assert box.plan("up vllm").actions
    box.do("up vllm")
    assert box.label == before


def test_what_has_died_comes_back_as_it_was(box: Box) -> None:
    before = box.label
    box.pins = pinned(NEW)
    box.world.docker.stop("tiny-vllm-g1", silent)
    box.world.docker.remove("tiny-vllm-g1")
    healed = box.do("up vllm")
    assert upgrade(healed) == [
        ("upgrade to vllm/vllm-openai:v2", "what is not serving comes back as it was first; the next orch up takes it")
    ]
    assert box.label == before
    box.do("up vllm")
    assert box.serving[1] == NEW.reference


def test_taken_down_it_comes_back_as_it_was(box: Box) -> None:
    before = box.label
    box.pins = pinned(NEW)
    (engine,) = box.world.observe().engines_of("tiny")
    box.world.records.record("tiny", box.world.observe().desired["tiny"].model_copy({"stopped": True}))
    box.world.gateway.remove_routes("tiny")
    box.world.docker.stop(engine.instance.name, silent)
    assert engine.instance.state is InstanceState.RUNNING
    box.do("up vllm")
    assert box.label == before


def test_an_adapter_brings_no_other_image(box: Box) -> None:
    box.pins = pinned(NEW)
    box.do("lora add a")
    assert box.serving[1] == OLD.reference
    box.do("lora rm a")
    assert box.serving[1] == OLD.reference


def test_an_edited_profile_is_served_by_what_is_pinned_now(box: Box) -> None:
    before = box.label
    box.pins = pinned(NEW)
    box.do("up vllm", tiny(serving={"context": 256}))
    assert box.serving[1] == NEW.reference
    box.do("rollback")
    assert box.label == before


def test_an_image_that_was_made_here_and_removed_is_named() -> None:
    box = Box()
    box.pins = pinned(LOCAL_IMAGE)
    box.do("up vllm")
    box.pins = pinned(NEW)
    box.do("up vllm")
    images = box.world.images
    del images.here[images.observe()[LOCAL_IMAGE.reference].id]
    with pytest.raises(PlanRefused) as refused:
        box.plan("rollback")
    assert "the image vllm/vllm-openai:mine" in refused.value.message
    assert box.serving[1] == NEW.reference


def test_of_other_weights_the_artifact_before_is_gone_back_to() -> None:
    box = Box(CPU, "local")
    box.do("up llamacpp")
    before, kept = box.label, box.serving[2]
    box.catalog = Changed()
    assert box.plan("status").actions, "weights that changed in place are asked for"
    box.do("up llamacpp")
    assert box.serving[2] != kept
    box.do("rollback")
    assert box.label == before
    for command in ("status", "up llamacpp"):
        assert box.plan(command).actions == ()


def test_weights_that_changed_where_they_lie_are_named() -> None:
    box = Box(CPU, "local")
    box.do("up vllm weights")
    box.do("migrate llamacpp")
    box.catalog = Changed()
    with pytest.raises(PlanRefused) as refused:
        box.plan("rollback")
    assert "/weights/tiny" in refused.value.message
    assert refused.value.hint.startswith("orch migrate --to vllm")


@pytest.mark.parametrize(("engine", "cpus"), [("llamacpp", 1), ("vllm", 2)])
def test_what_the_machine_happens_to_be_replaces_nothing(engine: str, cpus: int) -> None:
    box = Box(CPU, "local")
    box.do(f"up {engine}")
    box.world.host = replace(CPU, cpus=cpus)
    for command in ("status", f"up {engine}"):
        assert box.plan(command).actions == ()


BY_CDI = ("nvidia.com/gpu=GPU-GeForce RTX 5090",)


@pytest.mark.parametrize(
    "docker",
    [
        replace(DAEMON, version="29.1"),
        replace(DAEMON, cgroup_driver="cgroupfs", nodes=()),
        replace(DAEMON, memory=Memory(4 * GIB, GIB // 2), cpus=1),
        replace(DAEMON, hook=False, runtimes=("runc",), cdi_devices=BY_CDI),
    ],
)
def test_what_the_daemon_happens_to_be_replaces_nothing(box: Box, docker: DockerFacts) -> None:
    box.docker = docker
    assert box.plan("status").actions == box.plan("up vllm").actions == ()


@pytest.mark.parametrize(
    "host",
    [
        replace(RTX_5090, memory_available=GIB // 2, memory_limit_file="/sys/fs/cgroup/memory.max"),
        replace(RTX_5090, cpus=1, cpu_flags=frozenset(), driver="580.65.06", cuda=(13, 0), amd=True),
        replace(RTX_5090, gpus=tuple(replace(one, memory_free=GIB) for one in RTX_5090.gpus)),
        replace(RTX_5090, gpus=(*RTX_5090.gpus, gpu("H200", (9, 0), 141))),
    ],
)
def test_what_the_machine_has_by_now_replaces_nothing(box: Box, host: Host) -> None:
    box.world.host = host
    assert box.plan("status").actions == box.plan("up vllm").actions == ()


def test_a_gpu_that_is_not_seen_from_here_changes_nothing_of_what_runs() -> None:
    """As by sudo or cron, whose environment leads to no driver."""
    box = Box(target="local")
    box.do("up vllm")
    before = box.label
    box.world.host = CPU
    for command in ("status", "up vllm"):
        plan = box.plan(command)
        assert plan.actions == ()
        assert plan.items[0] == Remark("see its GPU", "tiny serves on cuda, and no such GPU is seen from here")
    box.do("lora add a")
    assert box.label["base_launch"] == before["base_launch"]
    # What has to be started is not started on the CPU, unless somebody asks for that.
    box.world.target.crash("tiny-vllm-g1")
    box.world.target.stop("tiny-vllm-g1", silent)
    with pytest.raises(HostError, match="no such GPU is found now"):
        box.plan("up vllm")
    box.world.host = replace(CPU, gpus_asked=True)
    box.do("up vllm")
    assert box.label["accelerator"] == "cpu"


def test_a_gpu_that_came_later_is_taken_when_it_is_asked_for() -> None:
    box = Box(CPU, target="local")
    box.do("up vllm")
    before = box.label
    box.world.host = RTX_5090
    for command in ("status", "up vllm"):
        plan = box.plan(command)
        assert plan.actions == ()
        assert [item.why for item in plan.items if isinstance(item, Remark) and item.what == "compute on cuda"] == [
            "tiny computes on the CPU, as it did; CUDA_VISIBLE_DEVICES=0 (or another) asks for a GPU"
        ]
    box.world.target.stop("tiny-vllm-g1", silent)
    box.do("up vllm")
    assert box.label == before
    box.world.host = replace(RTX_5090, gpus_asked=True)
    box.do("up vllm")
    assert box.label["accelerator"] == "cuda"
    box.do("rollback")
    assert box.label == before


def test_what_an_earlier_version_recorded_is_gone_back_to_as_far_as_that_goes() -> None:
    """It knew the spec alone."""
    box = Box(CPU, "local")
    box.do("up llamacpp")
    box.do("migrate vllm")
    document = box.world.observe().desired["tiny"].model_dump(exclude=("resolution", "before", "held"))
    document["previous"] = {**document["spec"], "engine": "llamacpp"}
    box.world.records.record("tiny", Desired.from_record(document, read_settings))
    box.do("rollback")
    (engine,) = box.world.observe().engines_of("tiny")
    assert engine.deployment.engine == "llamacpp"
    assert box.world.observe().desired["tiny"].resolution is not None


@pytest.mark.parametrize("found", [{}, {"ollama": "/opt/another/ollama"}], ids=["nowhere", "elsewhere"])
def test_a_program_is_where_it_was_found_first(found: dict[str, str]) -> None:
    """cron has a shorter PATH than a shell."""
    box = Box(replace(CPU, programs={"ollama": "/usr/bin/ollama"}), "local")
    box.do("up ollama")
    before = box.label
    box.world.host = replace(CPU, programs=found)
    for command in ("status", "up ollama"):
        assert box.plan(command).actions == ()
    box.world.target.stop("tiny-ollama-g1", silent)
    box.do("up ollama")
    assert box.label == before


FILE = """name = "{name}"
public_names = ["tiny", "tiny:latest"]
[weights]
path = "/weights/tiny"
[serving]
context = 256
parallel = 2
"""


def file_of(folder: Path, name: str = "tiny") -> str:
    path = folder / "edited.toml"
    path.write_text(FILE.format(name=name))
    return str(path)


def test_a_file_changes_profile_and_engine_in_one_migration(tmp_path: Path) -> None:
    box = Box(CPU, "local")
    box.do("up llamacpp")
    before = box.label
    box.world.run(box.plan_of(MoveTo("vllm", file_of(tmp_path), "local")))
    (engine,) = box.world.observe().engines_of("tiny")
    assert engine.deployment.engine == "vllm"
    assert box.world.observe().desired["tiny"].spec.profile.serving.context == 256
    box.do("rollback")
    assert box.label == before


def test_a_file_of_a_profile_that_is_not_deployed_is_not_migrated(tmp_path: Path) -> None:
    box = Box(CPU, "local")
    box.do("up llamacpp")
    with pytest.raises(PlanRefused, match="other is not deployed"):
        box.plan_of(MoveTo("vllm", file_of(tmp_path, "other"), "local"))


@pytest.mark.parametrize(
    "verb",
    [GoBack, lambda file: AddAdapter("a", Path("/adapters/a"), file), lambda file: RemoveAdapter("a", file)],
    ids=["rollback", "lora add", "lora rm"],
)
def test_where_a_file_would_not_count_it_is_refused(verb: Callable[[str], Intent], tmp_path: Path) -> None:
    box = Box(CPU, "local")
    box.do("up llamacpp")
    with pytest.raises(UsageError) as refused:
        box.plan_of(verb(file_of(tmp_path)))
    assert "-p tiny" in refused.value.hint
    assert f"orch up -p {tmp_path}/edited.toml" in refused.value.hint

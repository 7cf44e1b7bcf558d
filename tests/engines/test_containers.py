"""How each engine and the gateway are started in Docker: what the daemon is sent, as reviewed JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.asks import (
    CPU,
    DAEMON,
    GIB,
    LISTEN,
    PINS,
    adapter,
    context_of,
    gateway_launch,
    gpu,
    image,
    resolved,
    tiny,
    weights_of,
)
from fakes.storage import store_path

from orchestrator.core.artifact import Recipe
from orchestrator.core.container import HostContext, container_spec
from orchestrator.core.deployment import Deployment, DeploymentSpec, Desired
from orchestrator.core.docker import CDI, HOOK, DockerFacts
from orchestrator.core.gateway_status import Listener
from orchestrator.core.host import Host
from orchestrator.core.launch import Launch
from orchestrator.core.pins import Accelerator
from orchestrator.drivers.docker.request import create_body
from orchestrator.engines.resolve import resolve
from orchestrator.errors import PlanRefused

GOLDEN = Path(__file__).parent / "golden" / "docker"
RTX_5090 = replace(CPU, gpus=(gpu("GeForce RTX 5090", (12, 0), 32),), driver="580.65.06", cuda=(13, 0))
TWO = replace(
    RTX_5090,
    gpus=tuple(replace(gpu("GeForce RTX 5090", (12, 0), 32), uuid=f"GPU-{n}", index=n, minor=n) for n in (0, 1)),
)
ON_TWO = {"engines": {"vllm": {"gpus": 2}}}
HOST_CONTEXT = HostContext(
    "/home/containers/NAME/files", "/home/cache/containers", "1000:1000", ("vllm", "serve"), 3, memory_mib=58_982
)
LABELS = {"orch.home": "/home", "orch.instance": "NAME"}
NETWORK, ADDRESS = "orch-123456", "172.30.0.2"


def deployment(
    engine: str, host: Host, adapters: tuple[str, ...] = (), docker: DockerFacts = DAEMON, **profile: object
) -> Deployment:
    made = tiny(**profile)
    spec = DeploymentSpec(profile=made, engine=engine, target="docker")
    fitted = tuple(adapter(text, made) for text in adapters)
    return resolved(Desired(spec=spec, adapters=fitted), host, docker=docker).deployment


def sent(launch: Launch, context: HostContext = HOST_CONTEXT) -> str:
    """The JSON for a launch; hashes of the store as `*`."""
    alone = launch.container is not None and launch.container.host_network
    body = create_body(container_spec(launch, context), LABELS, "" if alone else NETWORK, "" if alone else ADDRESS)
    return re.sub(r"-([0-9a-f]{16}|[0-9a-f]{8})(?![0-9a-f])", "-*", json.dumps(body, indent=1)) + "\n"


OLLAMA_CONTEXT = replace(HOST_CONTEXT, entrypoint=("/bin/ollama",))
CASES = {
    "vllm_rtx-5090": sent(deployment("vllm", RTX_5090, ("a",)).launch),
    "vllm_two-rtx-5090": sent(deployment("vllm", TWO, ("a",), **ON_TWO).launch),
    "ollama_rtx-5090": sent(deployment("ollama", RTX_5090, ("a",)).launch, OLLAMA_CONTEXT),
    "ollama_amd": sent(
        deployment("ollama", replace(CPU, amd=True)).launch, replace(OLLAMA_CONTEXT, groups=("44", "993"))
    ),
    "gateway": sent(
        gateway_launch("docker", "gateway", (Listener(LISTEN),), (), (), False), replace(HOST_CONTEXT, entrypoint=())
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_daemon_is_sent_what_was_reviewed(name: str) -> None:
    assert CASES[name] == (GOLDEN / f"{name}.json").read_text()


def test_there_is_a_case_for_each_reviewed_file() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == CASES.keys()


@pytest.mark.parametrize(
    ("facts", "way", "devices"),
    [
        (DAEMON, HOOK, ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0")),
        (replace(DAEMON, cgroup_driver="cgroupfs"), HOOK, ()),
        (replace(DAEMON, cdi_devices=(f"nvidia.com/gpu={RTX_5090.gpus[0].uuid}",)), CDI, ()),
    ],
)
def test_the_gpu_is_given_by_its_uuid(facts: DockerFacts, way: str, devices: tuple[str, ...]) -> None:
    launch = deployment("vllm", RTX_5090, docker=facts).launch
    assert launch.container is not None
    assert (launch.container.gpus, launch.container.gpu_way) == ((RTX_5090.gpus[0].uuid,), way)
    assert launch.container.devices == devices
    # The container sees it alone, so nothing has to choose.
    assert "CUDA_VISIBLE_DEVICES" not in dict(launch.env)
    (asked,) = json.loads(sent(launch))["HostConfig"]["DeviceRequests"]
    by_cdi = {"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={RTX_5090.gpus[0].uuid}"]}
    assert asked == (by_cdi if way == CDI else {"DeviceIDs": [RTX_5090.gpus[0].uuid], "Capabilities": [["gpu"]]})


def test_the_best_of_two_gpus_is_given_alone() -> None:
    two = replace(RTX_5090, gpus=(*RTX_5090.gpus, replace(gpu("Tesla T4", (7, 5), 16), index=1, minor=1)))
    container = deployment("vllm", two).launch.container
    assert container is not None
    assert container.gpus == (RTX_5090.gpus[0].uuid,)
    assert "/dev/nvidia1" not in container.devices


def test_two_gpus_are_given_with_the_nodes_of_both_and_more_shared_memory() -> None:
    docker = replace(DAEMON, nodes=(*DAEMON.nodes, "/dev/nvidia1", "/dev/nvidia2"))
    third = replace(gpu("Tesla T4", (7, 5), 16), index=2, minor=2)
    two, one = (
        deployment("vllm", replace(TWO, gpus=(*gpus, third)), docker=docker, **settings).launch.container
        for gpus, settings in ((TWO.gpus, ON_TWO), (TWO.gpus[:1], {}))
    )
    assert two is not None
    assert one is not None
    assert (two.gpus, two.shm_mib) == (("GPU-0", "GPU-1"), 8192)
    assert (one.gpus, one.shm_mib) == (("GPU-0",), 2048)
    assert set(two.devices) - set(one.devices) == {"/dev/nvidia1"}


def test_two_gpus_are_given_by_cdi() -> None:
    known = replace(DAEMON, cdi_devices=("nvidia.com/gpu=GPU-0", "nvidia.com/gpu=GPU-1"))
    (asked,) = json.loads(sent(deployment("vllm", TWO, docker=known, **ON_TWO).launch))["HostConfig"]["DeviceRequests"]
    assert asked == {"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-0", "nvidia.com/gpu=GPU-1"]}


def test_vllm_on_amd_gpus_is_told_how_many() -> None:
    profile, amd = tiny(**ON_TWO), replace(CPU, amd=True)
    pin = PINS["vllm"].model_copy(update={"docker": (image("vllm/vllm-openai-rocm", "v1", Accelerator.ROCM),)})
    spec = DeploymentSpec(profile=profile, engine="vllm", target="docker")
    made = resolve(spec, (), weights_of(profile), amd, replace(context_of(tiny()), pins={"vllm": pin}))
    assert "tensor-parallel-size: 2\n" in dict(made.deployment.files)["serve.yaml"]
    assert made.passed_over[0].what == "leave out nvfp4a16"


@pytest.mark.parametrize(
    ("engine", "change", "local"),
    [("vllm", {"docker": ()}, True), ("vllm", {"docker": (), "local": ()}, False), ("ollama", {"docker": ()}, False)],
    ids=["a build is pinned", "no build is pinned", "its program is not there"],
)
def test_without_an_image_a_process_is_offered_where_it_can_be_one(
    engine: str, change: dict[str, object], local: bool
) -> None:
    spec = DeploymentSpec(profile=tiny(), engine=engine, target="docker")
    pins = {engine: PINS[engine].model_copy(change)}
    with pytest.raises(PlanRefused) as refused:
        resolve(spec, (), weights_of(tiny()), CPU, replace(context_of(tiny()), pins=pins))
    assert ("--target local" in refused.value.hint) is local
    assert refused.value.hint.startswith(f"orch images pin {engine} IMAGE:TAG --accelerator cpu")


def test_which_gpu_and_its_nodes_are_no_part_of_the_fingerprint() -> None:
    first, other = (deployment("vllm", RTX_5090) for _ in range(2))
    moved = other.model_copy(update={"gpu": "GPU-2", "gpu_way": CDI, "gpu_nodes": ("/dev/nvidia1",)})
    assert moved.fingerprint == first.fingerprint
    assert moved.launch != first.launch


def test_a_cpu_is_asked_for_no_gpu() -> None:
    container = deployment("ollama", CPU).launch.container
    assert container is not None
    assert (container.gpus, container.gpu_way, container.devices) == ((), "", ())


def test_an_amd_gpu_is_given_by_its_nodes_and_its_own_image() -> None:
    made = deployment("ollama", replace(CPU, amd=True))
    assert made.launch.container is not None
    assert made.launch.container.devices == ("/dev/kfd", "/dev/dri")
    assert made.launch.container.image == PINS["ollama"].docker[1].reference
    assert not any("nvidia" in value for _, value in made.launch.env)


def test_vllm_on_an_amd_gpu_is_told_nothing_of_nvidia() -> None:
    profile, amd = tiny(), replace(CPU, amd=True)
    pin = PINS["vllm"].model_copy(update={"docker": (image("vllm/vllm-openai-rocm", "v1", Accelerator.ROCM),)})
    spec = DeploymentSpec(profile=profile, engine="vllm", target="docker")
    made = resolve(spec, (), weights_of(profile), amd, replace(context_of(tiny()), pins={"vllm": pin}))
    assert made.deployment.recipe is Recipe.WEIGHTS
    assert [skip.what for skip in made.passed_over] == ["leave out nvfp4a16"]
    assert "LD_LIBRARY_PATH" not in dict(made.deployment.launch.env)
    assert "dtype: auto\n" in dict(made.deployment.files)["serve.yaml"]
    assert made.memory_fit is None


def test_weights_outside_of_the_store_are_read_where_they_are() -> None:
    made = deployment("vllm", RTX_5090, engines={"vllm": {"recipes": ["weights"]}})
    assert made.launch.container is not None
    assert made.launch.container.reads == tuple(sorted((str(store_path("k").parent), "/weights/tiny")))


def test_weights_that_are_links_are_read_where_they_lead() -> None:
    """As in the hub client's cache."""
    profile = tiny(engines={"vllm": {"recipes": ["weights"]}})
    facts = replace(weights_of(profile), linked=("/cache/blobs",))
    spec = DeploymentSpec(profile=profile, engine="vllm", target="docker")
    made = resolve(spec, (), facts, RTX_5090, replace(context_of(tiny()), docker=DAEMON)).deployment
    assert made.launch.container is not None
    assert "/cache/blobs" in made.launch.container.reads


def test_an_entry_of_a_shared_store_is_read_where_it_is_and_adapters_from_the_own_store() -> None:
    shared = Path("/shared/store")

    def path(key: str) -> Path:
        return shared / key if key.startswith("nvfp4") else store_path(key)

    profile = tiny()
    lora = (adapter("a", profile),)
    spec = DeploymentSpec(profile=profile, engine="vllm", target="docker")
    made = resolve(spec, lora, weights_of(profile), RTX_5090, replace(context_of(tiny()), store_path=path)).deployment
    assert made.launch.container is not None
    assert made.model_path == str(shared / made.artifact_key)
    assert made.launch.container.reads == (str(shared / made.artifact_key), str(store_path("k").parent))
    assert made.adapters[0].path.startswith(str(store_path("k").parent))


def test_memory_is_the_profiles_or_the_grounds_which_is_no_part_of_the_fingerprint() -> None:
    own, most = deployment("ollama", CPU, serving={"memory_mib": 4096}), deployment("ollama", CPU)
    assert [container_spec(made.launch, HOST_CONTEXT).memory_mib for made in (own, most)] == [
        4096,
        HOST_CONTEXT.memory_mib,
    ]
    assert most.fingerprint == deployment("ollama", replace(CPU, memory_total=CPU.memory_total - 1)).fingerprint
    assert CPU.memory_total == 64 * GIB


@pytest.mark.parametrize("engine", ["vllm", "ollama"])
def test_it_listens_where_the_gateway_can_reach_it_and_nowhere_on_the_host(engine: str) -> None:
    made = deployment(engine, RTX_5090)
    words = " ".join((*made.launch.argv, *(value for _, value in made.launch.env)))
    assert "0.0.0.0" in words
    assert "127.0.0.1" not in words
    body = json.loads(sent(made.launch))
    assert body["HostConfig"]["NetworkMode"] == NETWORK
    assert "PortBindings" not in body["HostConfig"]
    assert "ExposedPorts" not in body


def test_vllm_ends_by_itself_before_docker_ends_it() -> None:
    made = deployment("vllm", RTX_5090)
    grace = int(made.launch.argv[made.launch.argv.index("--shutdown-timeout") + 1])
    assert 0 < grace < made.launch.stop_grace_s


def test_an_engine_without_an_image_is_refused_with_the_way_to_pin_one() -> None:
    with pytest.raises(PlanRefused) as refused:
        deployment("vllm", CPU)
    assert refused.value.hint.startswith("orch images pin vllm IMAGE:TAG --accelerator cpu")

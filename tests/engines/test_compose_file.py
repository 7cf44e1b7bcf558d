"""The same container for `docker compose` as for the Docker API, and YAML that says what was meant."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from orchestrator.app import compose_file as compose
from orchestrator.core.container import ContainerSpec, HostContext, container_spec
from orchestrator.core.launch import Container, Launch
from orchestrator.core.routes import Backend, Route
from orchestrator.drivers.docker.request import MIB, create_body

IMAGE = "sha256:" + "0" * 64
GPU = "GPU-5d0c1ee2-0000-0000-0000-000000000000"
ENGINE = Launch(
    ("{entrypoint}", "--config", "{dir}/serve.yaml", "--port", "{port}"),
    env=(("CACHE", "{cache}/x"), ("PRICE", "5$ & 'more'")),
    stop_grace_s=35.0,
    container=Container(IMAGE, reads=("/models",), shm_mib=2048, memory_mib=4096),
)
GATEWAY = Launch(
    ("{python}", "-m", "gateway", "--state", "{dir}/routes.json"),
    port=8484,
    container=Container("orch-gateway:1", reads=("/keys",), host_network=True),
)
AT = compose.place("a name")


def container(**changes: Any) -> ContainerSpec:
    launch = replace(ENGINE, container=replace(ENGINE.container or Container(IMAGE), **changes))
    return container_spec(launch, HostContext("/files", "/cache", "7:8", ("server", "serve"), 3))


def document(loading: Launch | None = None) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(compose.yaml_text(compose.document(ENGINE, loading, GATEWAY, "7:8", 3, AT)))
    return made


NVIDIA = {"gpus": (GPU,), "gpu_way": "nvidia", "devices": ("/dev/nvidiactl",)}
CDI = {"gpus": (GPU,), "gpu_way": "cdi"}


@pytest.mark.parametrize(
    "made", [container(), container(memory_mib=None), container(**NVIDIA), container(**CDI)], ids=str
)
def test_the_same_container_as_the_docker_driver_asks_for(made: ContainerSpec) -> None:
    """Every setting that the driver sends, and none besides."""
    body = create_body(made, {}, "net", "10.0.0.2")
    host, said = body["HostConfig"], compose.settings(made, own_entrypoint=False)
    requests = said.pop("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    limits = said.pop("ulimits")
    asked = {
        "Image": said.pop("image"),
        "Entrypoint": said.pop("entrypoint"),
        "Cmd": said.pop("command"),
        "Env": [f"{name}={value}" for name, value in said.pop("environment").items()],
        "User": said.pop("user"),
        "StopTimeout": int(said.pop("stop_grace_period").removesuffix("s")),
        "Labels": {},
        "NetworkingConfig": body["NetworkingConfig"],
    }
    assert asked == {key: value for key, value in body.items() if key != "HostConfig"}
    logging = said.pop("logging")
    asked_of_host = {
        "NetworkMode": "net",
        "RestartPolicy": {"Name": said.pop("restart")},
        "Mounts": [
            {"Type": m["type"], "Source": m["source"], "Target": m["target"], "ReadOnly": m.get("read_only", False)}
            for m in said.pop("volumes")
        ],
        "Tmpfs": dict(line.split(":", 1) for line in said.pop("tmpfs")),
        "ReadonlyRootfs": said.pop("read_only"),
        "CapDrop": said.pop("cap_drop"),
        "SecurityOpt": said.pop("security_opt"),
        "PidsLimit": said.pop("pids_limit"),
        "ShmSize": int(said.pop("shm_size").removesuffix("m")) * MIB,
        "Init": said.pop("init"),
        "Ulimits": [{"Name": name, "Soft": one["soft"], "Hard": one["hard"]} for name, one in limits.items()],
        "LogConfig": {"Type": logging["driver"], "Config": logging["options"]},
        "Devices": [
            dict(zip(("PathOnHost", "PathInContainer", "CgroupPermissions"), line.split(":"), strict=True))
            for line in said.pop("devices", [])
        ],
    }
    for key, name in (("mem_limit", "Memory"), ("memswap_limit", "MemorySwap")):
        if key in said:
            asked_of_host[name] = int(said.pop(key).removesuffix("m")) * MIB
    assert said == {}
    assert asked_of_host == {key: value for key, value in host.items() if key != "DeviceRequests"}
    assert [one["device_ids"] for one in requests] == [one["DeviceIDs"] for one in host["DeviceRequests"]]


@pytest.mark.parametrize(
    ("way", "driver", "name"), [("nvidia", "nvidia", GPU), ("cdi", "cdi", f"nvidia.com/gpu={GPU}")]
)
def test_a_gpu_is_asked_for_by_what_names_it_for_ever(way: str, driver: str, name: str) -> None:
    said = compose.settings(container(gpus=(GPU,), gpu_way=way), own_entrypoint=True)
    assert said["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": driver, "device_ids": [name], "capabilities": ["gpu"]}
    ]


def test_the_images_own_entrypoint_is_left_to_the_image() -> None:
    engine = document()["services"]["engine"]
    assert "entrypoint" not in engine
    assert engine["command"] == ["--config", "/orch/files/serve.yaml", "--port", "8000"]
    assert document()["services"]["gateway"]["entrypoint"] == ["python3"]


def test_a_value_is_what_it_was_meant_to_be() -> None:
    # compose reads a doubled dollar as one, and a single one as a variable.
    assert document()["services"]["engine"]["environment"]["PRICE"] == "5$$ & 'more'"
    words = {"no": "no", "number": "65536", "time": "12:30", "empty": "", "dash": "- x", "text": 'a "b" \\ ü: #'}
    assert yaml.safe_load(compose.yaml_text({"a": {"b": [words, words]}, "c": [1, True]})) == {
        "a": {"b": [words, words]},
        "c": [1, True],
    }


def test_only_the_gateway_is_on_the_hosts_network() -> None:
    made = document()
    engine, gateway = made["services"]["engine"], made["services"]["gateway"]
    assert made["networks"] == {"engines": {"internal": True, "ipam": {"config": [{"subnet": AT.subnet}]}}}
    assert engine["networks"] == {"engines": {"ipv4_address": AT.engine}}
    assert "network_mode" not in engine
    assert gateway["network_mode"] == "host"
    assert "networks" not in gateway
    assert "ports" not in engine | gateway


def test_an_engine_with_a_store_of_its_own_is_filled_before_the_gateway_starts() -> None:
    loading = compose.loading_launch(ENGINE, "orch-gateway:1", "/alive")
    parts = document(loading)["services"]
    assert parts["import"]["command"][1:] == ["/orch/files/requests.json", "http://engine:8000", "/alive"]
    assert parts["import"]["restart"] == "no"
    assert [one["source"] for one in parts["import"]["volumes"]] == ["./files/import", "./cache", "/models"]
    assert parts["gateway"]["depends_on"] == {"import": {"condition": "service_completed_successfully"}}
    assert document()["services"]["gateway"]["depends_on"] == ["engine"]


def test_every_name_leads_to_the_engine() -> None:
    nowhere = (Backend("", ""),)
    routes = (Route("tiny", "tiny", nowhere), Route("alpha", "tiny", nowhere, upstream="a-1", patch={"x": 1}))
    alpha, tiny = json.loads(compose.routes_text(routes, AT))["routes"]
    assert (alpha["name"], alpha["upstream"], alpha["patch"]) == ("alpha", "a-1", {"x": 1})
    assert {one["backends"][0]["url"] for one in (alpha, tiny)} == {f"http://{AT.engine}:8000"}


def test_a_place_stays_and_differs_between_names() -> None:
    places = [compose.place(str(number)) for number in range(50)]
    assert compose.place("7") == places[7]
    assert len({one.subnet for one in places}) == 50
    assert all(one.subnet.startswith("10.") and one.subnet.endswith("/29") for one in places)
    assert all(one.engine != one.loading for one in places)


def test_what_is_no_container_is_refused() -> None:
    with pytest.raises(ValueError, match="container"):
        compose.loading_launch(Launch(("x",)), "i", "/")

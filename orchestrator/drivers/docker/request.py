"""What the Docker API is sent to create a container: its JSON, made of a ContainerSpec. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.core.container import (
    DROPPED,
    LOG_FILES,
    LOG_SIZE,
    OPEN_FILES,
    RESTART,
    SECURITY,
    TMP,
    TMP_OPTIONS,
    ContainerSpec,
)
from orchestrator.core.docker import CDI

MIB = 2**20


def create_body(spec: ContainerSpec, labels: Mapping[str, str], network: str, address: str) -> dict[str, Any]:
    """POST /containers/create. `address` is its fixed one on `network`; both are empty on the host's network."""
    host: dict[str, Any] = {
        "NetworkMode": "host" if spec.host_network else network,
        "RestartPolicy": {"Name": RESTART},
        "Mounts": [
            {"Type": "bind", "Source": m.source, "Target": m.target, "ReadOnly": m.read_only} for m in spec.mounts
        ],
        "Tmpfs": {TMP: TMP_OPTIONS},
        "ReadonlyRootfs": True,
        "CapDrop": list(DROPPED),
        "SecurityOpt": list(SECURITY),
        "PidsLimit": spec.pids,
        "ShmSize": spec.shm_mib * MIB,
        "Init": True,
        "Ulimits": [{"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES}],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": LOG_SIZE, "max-file": LOG_FILES}},
        "Devices": [{"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"} for path in spec.devices],
        "DeviceRequests": _device_requests(spec),
    }
    if spec.groups:
        host["GroupAdd"] = list(spec.groups)
    if spec.memory_mib is not None:
        # The same with swap: an engine that swaps answers nobody.
        host |= {"Memory": spec.memory_mib * MIB, "MemorySwap": spec.memory_mib * MIB}
    body: dict[str, Any] = {
        "Image": spec.image,
        "Entrypoint": [spec.command[0]],
        "Cmd": list(spec.command[1:]),
        "Env": [f"{name}={value}" for name, value in spec.env],
        "User": spec.user,
        "Labels": dict(labels),
        "StopTimeout": spec.stop_grace_s,
        "HostConfig": host,
    }
    if not spec.host_network:
        endpoint = {"IPAMConfig": {"IPv4Address": address}}
        body["NetworkingConfig"] = {"EndpointsConfig": {network: endpoint}}
    return body


def _device_requests(spec: ContainerSpec) -> list[dict[str, Any]]:
    if not spec.gpus:
        return []
    ids = list(spec.gpus)
    if spec.gpu_way == CDI:
        return [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={uuid}" for uuid in ids]}]
    return [{"DeviceIDs": ids, "Capabilities": [["gpu"]]}]

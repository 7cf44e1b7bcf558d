"""What the Docker API is sent to create a container: its JSON, made of a Placed. Pure."""

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
    Placed,
)
from orchestrator.core.docker import CDI

MIB = 2**20


def create_body(placed: Placed, labels: Mapping[str, str], network: str, address: str) -> dict[str, Any]:
    """POST /containers/create. `address` is its fixed one on `network`; both are empty on the host's network."""
    host: dict[str, Any] = {
        "NetworkMode": "host" if placed.host_network else network,
        "RestartPolicy": {"Name": RESTART},
        "Mounts": [
            {"Type": "bind", "Source": m.source, "Target": m.target, "ReadOnly": m.read_only} for m in placed.mounts
        ],
        "Tmpfs": {TMP: TMP_OPTIONS},
        "ReadonlyRootfs": True,
        "CapDrop": list(DROPPED),
        "SecurityOpt": list(SECURITY),
        "PidsLimit": placed.pids,
        "ShmSize": placed.shm_mib * MIB,
        "Init": True,
        "Ulimits": [{"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES}],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": LOG_SIZE, "max-file": LOG_FILES}},
        "Devices": [
            {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"} for path in placed.devices
        ],
        "DeviceRequests": _device_requests(placed),
    }
    if placed.groups:
        host["GroupAdd"] = list(placed.groups)
    if placed.memory_mib is not None:
        # The same with swap: an engine that swaps answers nobody.
        host |= {"Memory": placed.memory_mib * MIB, "MemorySwap": placed.memory_mib * MIB}
    body: dict[str, Any] = {
        "Image": placed.image,
        "Entrypoint": [placed.command[0]],
        "Cmd": list(placed.command[1:]),
        "Env": [f"{name}={value}" for name, value in placed.env],
        "User": placed.user,
        "Labels": dict(labels),
        "StopTimeout": placed.stop_grace_s,
        "HostConfig": host,
    }
    if not placed.host_network:
        endpoint = {"IPAMConfig": {"IPv4Address": address}}
        body["NetworkingConfig"] = {"EndpointsConfig": {network: endpoint}}
    return body


def _device_requests(placed: Placed) -> list[dict[str, Any]]:
    if not placed.gpus:
        return []
    ids = list(placed.gpus)
    if placed.gpu_way == CDI:
        return [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={uuid}" for uuid in ids]}]
    return [{"DeviceIDs": ids, "Capabilities": [["gpu"]]}]

"""What the tests of images work with: small images, pins, and what the daemon has."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.errors import ImageNotFound
from docker_orch import SYSTEM
from orch_command import Orch, free_port, script

registry_server = script("registry_server")

HOST = os.environ.get("DOCKER_HOST", SYSTEM)
# Made by scripts/docker-images; the gateway's image is made on it.
BASE = "orch-test/python:latest"


def orch_at(home: Path) -> Orch:
    """`orch` with the data directory `home`."""
    command = Orch(home)
    nobody = f"http://127.0.0.1:{free_port()}"
    command.env = {"HF_ENDPOINT": nobody, "DOCKER_HOST": HOST, "ORCH_GATEWAY_BASE": BASE}
    return command


# Its own in each process of tests: they share the daemon.
SMALL = f"orch-test-small/tool-{os.getpid()}:1"


def new_image(megabytes: float = 0.1, **config: Any) -> Any:
    """An image that no daemon has: a layer of random bytes."""
    return registry_server.image_of_files({"data": os.urandom(int(megabytes * 1e6))}, **config)


def layer_of(image: Any) -> str:
    """The path pattern of its (only) layer in a registry."""
    return f"*/blobs/{registry_server.digest_of(image.layers[0])}"


def small_image(client: DockerClient, name: str, **env: str) -> str:
    """An image that only the daemon has, under this name; its ID."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("data")
        entry.size = 500_000
        tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    image, tag = name.split(":")
    changes = [f"ENV {key}={value}" for key, value in env.items()]
    client.api.import_image_from_data(out.getvalue(), repository=image, tag=tag, changes=changes)
    return str(client.images.get(name).id)


def here(client: DockerClient, reference: str) -> bool:
    """Whether the daemon has an image."""
    try:
        client.images.get(reference)
    except ImageNotFound:
        return False
    return True


def remove(client: DockerClient, reference: str) -> None:
    """Remove an image, all its names with it; no error when it is not there."""
    try:
        client.images.remove(reference, force=True)
    except ImageNotFound:
        return


def pin_text(engine: str, image: str, digest: str, **more: str) -> str:
    """A user's pin for CPUs, as `orch images pin` writes it; `more` are further keys with their TOML values."""
    image, _, tag = image.rpartition(":")
    lines = [f'engine = "{engine}"', "[[docker]]", f'image = "{image}"', f'tag = "{tag}"', f'digest = "{digest}"']
    lines += ['accelerators = ["cpu"]', "verified = false", 'source = "a test"']
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in more.items())])


def pinned(orch: Orch, engine: str, text: str) -> None:
    """Have the data directory pin it."""
    (orch.home / "pins").mkdir(exist_ok=True)
    (orch.home / "pins" / f"{engine}.toml").write_text(text)


def rows(orch: Orch, engine: str) -> list[dict[str, Any]]:
    """What `orch images ls` tells of an engine."""
    return [line for line in orch.run("images", "ls", "--json").lines if line.get("for") == engine]

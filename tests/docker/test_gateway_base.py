"""What the gateway's image is made on: a base that it could not run in is told before anything changes."""

from __future__ import annotations

import io
import json
import os
import platform
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from docker import DockerClient
from docker_orch import DockerOrch, nothing_left
from image_bench import BASE, remove, small_image

from orchestrator.drivers.docker import gateway_image

pytestmark = pytest.mark.llamacpp

NEEDED = ".".join(platform.python_version_tuple()[:2])
# Its Python says that it is another one, and so does nothing else of it.
LIAR = "import sys\nsys.version_info = (3, 99, 0, 'final', 0)\n"
# As of a base with another C library: what is compiled cannot be loaded.
STRANGE = "import sys\nsys.modules['uvloop'] = None\n"


@contextmanager
def base(client: DockerClient, sitecustomize: str) -> Iterator[str]:
    """The usual base, but for what its Python does first."""
    name = f"orch-test-small/base-{os.getpid()}:1"
    place = client.containers.run(
        BASE, ["python3", "-c", "import os; print(os.__file__)"], remove=True, network_mode="none"
    ).decode()
    lines = f"FROM {BASE}\nENV PYTHON_VERSION=\nCOPY s {Path(place.strip()).parent}/site-packages/sitecustomize.py\n"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, text in (("Dockerfile", lines), ("s", sitecustomize)):
            entry = tarfile.TarInfo(path)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    out.seek(0)
    client.images.build(fileobj=out, custom_context=True, tag=name, rm=True, network_mode="none")
    try:
        yield name
    finally:
        remove(client, name)


@contextmanager
def without_python(client: DockerClient, **says: str) -> Iterator[str]:
    """No Python at all, whatever it says of itself (variables, as the official images have)."""
    name = f"orch-test-small/base-{os.getpid()}:1"
    small_image(client, name, **says)
    try:
        yield name
    finally:
        remove(client, name)


@pytest.mark.parametrize(
    ("made", "code", "told"),
    [
        (
            lambda client: without_python(client, PYTHON_VERSION="3.99.1"),
            5,
            f"it has Python 3.99, and the packages of this orch are made for {NEEDED}",
        ),
        (
            lambda client: base(client, LIAR),
            4,
            f"it has Python 3.99, and the packages of this orch are made for {NEEDED}",
        ),
        (lambda client: base(client, STRANGE), 4, "uvloop"),
        (without_python, 4, "it has no python3"),
    ],
    ids=["says so", "does not say", "cannot load", "no python"],
)
def test_a_base_that_the_gateway_cannot_run_in_is_told_before_anything_changes(
    images: dict[str, str],
    client: DockerClient,
    tmp_path: Path,
    made: Callable[[DockerClient], AbstractContextManager[str]],
    code: int,
    told: str,
) -> None:
    nameless = {image.id for image in client.images.list(filters={"dangling": True})}
    with made(client) as name, nothing_left(DockerOrch(tmp_path / "home", images)) as orch:
        orch.env["ORCH_GATEWAY_BASE"] = name
        line = orch.run("up", "ollama", "-p", str(orch.profile), "--json", code=code).lines[-1]
        assert told in line["error"]
        assert name in line["error"]
        assert "address" not in json.dumps(line)
        assert f"Python {NEEDED}" in line["hint"]
        assert "ORCH_GATEWAY_BASE=IMAGE:TAG" in line["hint"]
        assert orch.containers() == []
    assert {image.id for image in client.images.list(filters={"dangling": True})} <= nameless
    left = [container.attrs["Config"]["Image"] for container in client.containers.list(all=True, ignore_removed=True)]
    assert name not in left


def test_a_base_without_a_word_is_not_refused_for_that() -> None:
    assert gateway_image.unfit("") == gateway_image.unfit(NEEDED) == ""

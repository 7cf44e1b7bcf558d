"""A daemon whose disk is full: told in our words with what to do, and nothing half-made stays."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docker import DockerClient
from image_bench import BASE, HOST, new_image, registry_server
from own_daemon import OwnDaemon

from orchestrator.core.image_archive import SavedImage
from orchestrator.core.pins import ImagePin
from orchestrator.core.progress import silent
from orchestrator.drivers.docker.daemon import Daemon
from orchestrator.drivers.docker.endpoints import Endpoint
from orchestrator.drivers.docker.images import DockerImages
from orchestrator.errors import HostError

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(OwnDaemon.why_not()), reason=OwnDaemon.why_not() or "-"),
]

STAND_IN = "orch-test/ollama:stand-in"


class Full:
    """A daemon of its own, with the gateway's base in it, whose data lie on a small file system."""

    def __init__(self, home: Path) -> None:
        self.data = home / "data"
        self.own = OwnDaemon(home)
        self.daemon = Daemon(Endpoint(self.own.host), patience_s=0)
        self.images = DockerImages(self.daemon, home / "images.json", lambda: True)

    def leave(self, size: int) -> None:
        """Fill it, but for so many bytes."""
        filler = self.data / "filler"
        filler.unlink(missing_ok=True)
        seen = os.statvfs(self.data)
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, seen.f_bavail * seen.f_frsize - size)

    def build(self) -> None:
        self.images.build("orch-gateway:full", BASE, silent)

    def load(self) -> None:
        system = DockerClient(base_url=HOST)
        image = system.images.get(STAND_IN)
        layers = tuple(image.attrs["RootFS"]["Layers"])
        saved = SavedImage(name=STAND_IN, reference=image.id, id=image.id, layers=layers, size=1)
        try:
            self.images.load(saved, image.save(named=True), silent)
        finally:
            system.close()

    def pull(self) -> None:
        with registry_server.RegistryServer({}) as registry:
            image = new_image(30)
            registry.put("test/tool:1.0", image)
            name, kinds = f"{registry.address}/test/tool", ("cpu",)
            pin = ImagePin(
                image=name, tag="1.0", digest=image.digest, accelerators=kinds, verified=False, source="a test"
            )
            self.images.pull(pin, silent)

    def create(self) -> None:
        with self.daemon.api_for("create one") as api:
            api.create_container(BASE, ["true"])


@pytest.fixture(scope="module")
def full(images: dict[str, str]) -> Iterator[Full]:
    home = Path(tempfile.mkdtemp(prefix="od"))
    (home / "data").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=260m", "none", str(home / "data")], check=True)
    try:
        made = Full(home)
        made.own.start()
        try:
            made.own.take([BASE])
            yield made
        finally:
            (made.data / "filler").unlink(missing_ok=True)
            made.own.close()
    finally:
        subprocess.run(["umount", "-l", str(home / "data")], check=True)


@pytest.mark.parametrize(
    ("write", "left"),
    [(Full.build, 5_000_000), (Full.build, 0), (Full.load, 5_000_000), (Full.pull, 5_000_000), (Full.create, 0)],
    ids=["build", "build, nothing left", "load", "pull", "create"],
)
def test_it_is_told_with_what_to_do_and_nothing_half_made_stays(
    full: Full, write: Callable[[Full], None], left: int
) -> None:
    full.leave(left)
    with pytest.raises(HostError) as ended:
        write(full)
    assert f"The disk where Docker keeps its data ({full.data}) is full: it could not" in ended.value.message
    assert "Free some space there" in ended.value.hint
    assert "no space left on device" in ended.value.detail
    with full.daemon.api_for("list") as api:
        assert [name for image in api.images() for name in image["RepoTags"]] == [BASE]
        assert api.images(filters={"dangling": True}) == []
        assert api.containers(all=True) == []


def test_with_the_space_it_asks_for_it_is_done(full: Full) -> None:
    full.leave(120_000_000)
    full.build()
    with full.daemon.api_for("remove it") as api:
        api.remove_image("orch-gateway:full")

"""What a Docker daemon says when it refuses, recorded, and what orch makes of it. No daemon is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.drivers.docker.daemon import Daemon, NotThere
from orchestrator.drivers.docker.endpoints import Endpoint


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(Endpoint(f"unix://{tmp_path}/nobody"), patience_s=0)


# Recorded from Docker 20.10 with its data on a file system of 260 MB; the containerd image store's from its issues.
@pytest.mark.parametrize(
    "said",
    [
        "Error processing tar file(exit status 1): write /opt/orch/aiohttp/_http_parser.so: no space left on device",
        "write /var/lib/docker/tmp/GetImageBlob2071919070: no space left on device",
        "write /var/lib/docker/overlay2/ef93763c0e85-init/link: no space left on device",
        "write /var/lib/docker/image/overlay2/.tmp-repositories.json1307940064: no space left on device",
        "failed to copy: failed to send write: write /var/lib/containerd/x/ingest/5f/data: No space left on device",
        "failed to register layer: write /usr/lib/libcudnn.so: disk quota exceeded",
    ],
)
def test_a_full_disk_is_told_in_one_way_whatever_was_written(daemon: Daemon, said: str) -> None:
    error = daemon.refused("load vllm", said, 500)
    assert error.message == "The disk where Docker keeps its data is full: it could not load vllm."
    assert "Free some space there" in error.hint
    assert error.detail == said


def test_what_is_no_full_disk_is_told_as_it_was_said(daemon: Daemon) -> None:
    error = daemon.refused("pull vllm", "toomanyrequests: You have reached your pull rate limit.\nmore")
    assert error.message == "Docker refused to pull vllm: toomanyrequests: You have reached your pull rate limit."
    assert "docker login" in error.hint
    assert isinstance(daemon.refused("see vllm", "No such image: vllm", 404), NotThere)
    assert "does not say why" in daemon.refused("do it", " \n").message

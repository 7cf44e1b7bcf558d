"""`orch` on machines whose GPUs only NVML's stand-in knows, over a dockerd that can give them to containers.

Test modules import the fixtures that they use.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from docker_orch import DockerOrch
from gpu_machines import compiled, machine_env
from own_daemon import OwnDaemon

Machine = Callable[..., DockerOrch]


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of NVML's stand-in, compiled."""
    return compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def names(images: dict[str, str]) -> dict[str, str]:
    """Images by what they are for, in the system's daemon."""
    return images


@contextmanager
def own_daemon(
    names: dict[str, str],
    path: Iterable[Path] = (),
    program: str = "dockerd",
    settings: Mapping[str, object] = MappingProxyType({}),
) -> Iterator[OwnDaemon]:
    """A dockerd with these neighbours on its PATH and the images; `settings` are its daemon.json, not the machine's."""
    if reason := OwnDaemon.why_not():
        pytest.skip(reason)
    home = Path(tempfile.mkdtemp(prefix="orch-gpu-", dir="/tmp"))
    (home / "settings.json").write_text(json.dumps(dict(settings)))
    own = OwnDaemon(home, path, [f"--config-file={home}/settings.json"], program)
    try:
        own.start()
        own.take(names.values())
        yield own
    finally:
        own.close()


@contextmanager
def machines(home: Path, names: dict[str, str], nvml: Path, host: str, toolkit: Path) -> Iterator[Machine]:
    """Makes the one `orch` a machine with the GPUs that it is called with; `toolkit` comes first on its PATH.

    All is gone afterwards, whatever happened.
    """
    command = DockerOrch(home, names, host)

    def made(*gpus: str, **env: str) -> DockerOrch:
        path = os.pathsep.join([str(toolkit), os.environ["PATH"]])
        command.env |= machine_env(nvml, *gpus, PATH=path, **env)
        return command

    yield made
    command.run("down", "--all", timeout=120)
    left = command.containers()
    command.close()
    assert left == []


def up(orch: DockerOrch, *words: str, code: int = 0) -> dict[str, Any]:
    """The last that `orch up` says, with Ollama and the tiny profile where no other words are given."""
    args = words or ("ollama", "-p", str(orch.profile))
    return orch.run("up", *args, "--json", code=code).lines[-1]

"""What a caller's shell, user and machine happen to be is no reason to change what serves: `status` tells of nothing,
`up` would do nothing, and what runs goes on. What is a user's wish (ORCH_LISTEN, ORCH_ORIGINS, ORCH_API_KEY,
CUDA_VISIBLE_DEVICES for an engine that computes on GPUs) is not among it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from control_groups import MIB, group
from docker_orch import DockerOrch, made_images, serving
from gpu_machines import RTX_5090, compiled, machine_env
from orch_command import ANSWER, ASSETS, Orch, free_port, stopped_afterwards

pytestmark = pytest.mark.llamacpp

EMPTY = ("env", "-i")
NOBODY = f"http://127.0.0.1:{free_port()}"


@dataclass(frozen=True)
class Situation:
    """How a command is run: `env` on top of the usual (None: not set), `within` words before it, by another path of the
    interpreter."""

    env: dict[str, str | None]
    within: tuple[str, ...] = ()
    python: str = sys.executable


def shell(script: str) -> Situation:
    """After these commands of a shell."""
    return Situation({}, ("sh", "-c", f'{script} exec "$@"', "sh"))


def env(**values: str | None) -> Situation:
    return Situation(dict(values))


SITUATIONS = {
    "no home": env(HOME=None, USER=None, LOGNAME=None, XDG_DATA_HOME=None),
    "another home": env(HOME="/nowhere", XDG_DATA_HOME="/nowhere", XDG_CACHE_HOME="/nowhere", XDG_RUNTIME_DIR="/no"),
    "another language": env(LANG="de_DE.UTF-8", LC_ALL="C", LANGUAGE="de", TZ="Asia/Tokyo"),
    "another PATH": env(PATH="/usr/bin:/bin"),
    "no PATH": env(PATH=None),
    "a proxy": env(**dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), NOBODY), NO_PROXY=None),
    "another TMPDIR": env(TMPDIR="/var/tmp"),
    "no TMPDIR": env(TMPDIR="/nowhere"),
    "other libraries": env(LD_LIBRARY_PATH="/nowhere", SSL_CERT_FILE="/nowhere", REQUESTS_CA_BUNDLE="/nowhere"),
    "other threads": env(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", NUMBA_NUM_THREADS="1"),
    "no GPU wanted": env(CUDA_VISIBLE_DEVICES=""),
    "a GPU that is not there": env(CUDA_VISIBLE_DEVICES="7", NVIDIA_VISIBLE_DEVICES="7", HIP_VISIBLE_DEVICES="7"),
    "another hub": env(HF_ENDPOINT=NOBODY, HF_HOME="/nowhere", HF_TOKEN="hf_x", HF_HUB_CACHE="/nowhere"),
    "no hub": env(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1"),
    "another target": env(ORCH_TARGET="docker"),
    "no target": env(ORCH_TARGET=None),
    "no address": env(ORCH_LISTEN=None),
    "another index": env(ORCH_TORCH_INDEX=NOBODY, PIP_INDEX_URL=NOBODY),
    "another base of the gateway": env(ORCH_GATEWAY_BASE="nobody/has-this:1"),
    "another store": env(ORCH_STORES="/tmp"),
    "a small store": env(ORCH_STORE_LIMIT="1MB", ORCH_PULL_PARALLEL="1"),
    "Docker elsewhere": env(DOCKER_HOST="tcp://127.0.0.1:1"),
    "another Docker context": env(DOCKER_HOST=None, DOCKER_CONTEXT="nobody-has-this", DOCKER_CONFIG="/nowhere"),
    "other ways of Python": env(PYTHONHASHSEED="1", PYTHONUTF8="0", PYTHONDONTWRITEBYTECODE="1"),
    "a narrow terminal": env(TERM="dumb", COLUMNS="40", NO_COLOR="1"),
    "an open umask": shell("umask 000;"),
    "a closed umask": shell("umask 077;"),
    "another directory": shell("cd /;"),
    "a directory that is gone": shell("d=$(mktemp -d); cd $d; rmdir $d;"),
    "few files": shell("ulimit -n 128;"),
    "one CPU": Situation({}, ("taskset", "-c", "0")),
    "less important": Situation({}, ("nice", "-n", "5")),
    "nothing but its data": Situation({}, EMPTY),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orch]:
    """The tiny model with an adapter, started as one usually is."""
    with stopped_afterwards(Orch(tmp_path_factory.mktemp("circumstances") / "home")) as orch:
        orch.run("up", "llamacpp", "-p", str(orch.profile))
        orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
        yield orch


class Elsewhere(Orch):
    """The same data directory, looked at in another situation."""

    def __init__(self, orch: Orch, situation: Situation, home: Path) -> None:
        self.home, self.listen, self.profile = home, orch.listen, orch.profile
        self.env, self.python = {}, situation.python
        kept = [f"{key}={value}" for key, value in self.environ().items() if key.startswith("ORCH_")]
        self.within = (*situation.within, *kept) if situation.within == EMPTY else situation.within
        self._env = situation.env

    def environ(self) -> dict[str, str]:
        usual = super().environ()
        if not hasattr(self, "_env"):
            return usual
        return {key: value for key, value in (usual | self._env).items() if value is not None}


def changes_nothing(orch: Orch, situation: Situation, home: Path | None = None) -> None:
    before = sorted(orch.processes())
    there = Elsewhere(orch, situation, home or orch.home)
    told = there.status().document
    assert (told["drift"], told["upgrades"]) == ([], [])
    assert there.actions("up") == []
    there.run("up", "--json")
    assert sorted(orch.processes()) == before
    assert orch.says() == ANSWER


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_what_serves_stays(served: Orch, situation: Situation) -> None:
    changes_nothing(served, situation)


def test_a_data_directory_by_another_name_is_the_same(served: Orch, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(served.home)
    changes_nothing(served, env(), link)
    relative = Path(os.path.relpath(served.home, "/"))
    changes_nothing(served, shell("cd /;"), relative)


def test_an_interpreter_by_another_path_is_the_same(served: Orch, tmp_path: Path) -> None:
    link = tmp_path / "venv"
    link.symlink_to(sys.prefix)
    changes_nothing(served, replace(env(), python=str(link / "bin" / Path(sys.executable).name)))


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="another host name needs root")
def test_another_host_name(served: Orch) -> None:
    changes_nothing(served, Situation({}, ("unshare", "--uts", "sh", "-c", 'hostname other; exec "$@"', "sh")))


@pytest.fixture(scope="module")
def served_docker(tmp_path_factory: pytest.TempPathFactory, environments: Path) -> Iterator[DockerOrch]:
    """The same in a container, whose gateway is made on an image of the user's."""
    with serving(
        tmp_path_factory.mktemp("circumstances-docker") / "home", made_images(environments, "python", "ollama")
    ) as orch:
        orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
        yield orch


IN_DOCKER = ("no home", "no PATH", "a proxy", "no GPU wanted", "no hub", "no target", "nothing but its data")
IN_DOCKER += ("another base of the gateway", "another Docker context", "a closed umask", "one CPU")


@pytest.mark.docker
@pytest.mark.parametrize("name", IN_DOCKER)
def test_what_serves_in_a_container_stays(served_docker: DockerOrch, name: str) -> None:
    changes_nothing(served_docker, SITUATIONS[name])


@pytest.mark.docker
def test_a_gpu_that_came_later_moves_nothing_by_itself(served_docker: DockerOrch, tmp_path: Path) -> None:
    here = env(**machine_env(compiled(tmp_path), RTX_5090))
    changes_nothing(served_docker, here)
    (plan,) = (
        line
        for line in Elsewhere(served_docker, here, served_docker.home).run("up", "--plan", "--json").lines
        if "plan" in line
    )
    assert [item["why"] for item in plan["items"] if item.get("skip") == "compute on cuda"] == [
        "tiny computes on the CPU, as it did; CUDA_VISIBLE_DEVICES=0 (or another) asks for a GPU"
    ]


def test_what_serves_from_a_shared_store_stays_where_that_is_not_named_any_more(orch: Orch, tmp_path: Path) -> None:
    shared = Orch(tmp_path / "shared")
    shared.run("build", "-p", str(shared.profile), "--recipe", "gguf-q6_k")
    orch.env["ORCH_STORES"] = str(shared.home / "store")
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    del orch.env["ORCH_STORES"]
    changes_nothing(orch, env())
    assert not list((orch.home / "store").glob("*gguf*"))
    # Where that store is no more, it is built into the own one, and served from there.
    orch.run("down")
    shutil.rmtree(shared.home)
    orch.run("up")
    assert orch.says() == ANSWER
    orch.status()


@pytest.mark.groups
def test_little_memory_and_half_a_cpu(served: Orch) -> None:
    """As in a service with limits of its own: the engine would not fit there any more."""
    with group() as limited:
        limited.limit_memory(150 * MIB)
        limited.limit_cpus(0.5)
        changes_nothing(served, Situation({}, limited.within))

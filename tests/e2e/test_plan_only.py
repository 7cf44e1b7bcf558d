"""`--plan` of every verb that has it changes nothing: no byte of the data directory, no process, no route, no key."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from docker_orch import DockerOrch
from orch_command import ASSETS, Orch

pytestmark = pytest.mark.llamacpp

VERBS = """\
up
up -p {edited}
up --fresh
up --gateway
down
down --all
down --all --forget
migrate --to {engine} --recipe gguf-bf16
migrate --to {engine} -p {edited}
rollback
lora add beta {adapter}
lora rm alpha
build -p {edited}
engines install vllm
artifacts gc --age 0
keys add more
keys rotate first
keys rm first --open
images gc
"""


def everything(orch: Orch) -> tuple[dict[str, tuple[int, bytes]], list[int], object, list[str]]:
    """Each file with its mode and content, the processes, what the gateway routes, and what the daemon has."""
    files = {}
    for path in sorted(orch.home.rglob("*")):
        status = path.lstat()
        if path.parent.name in ("logs", "admin") or path.name in ("stdout", "stderr"):
            continue  # what runs goes on telling
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        files[str(path.relative_to(orch.home))] = (status.st_mode, content)
    return files, sorted(orch.processes()), orch.gateway_status()["routes"], of_daemon(orch)


@pytest.fixture
def served(either: Orch) -> Orch:
    either.env["ORCH_API_KEY"] = "the-first-key"
    either.run("up", either.engine, "-p", str(either.profile))
    either.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    either.run("migrate", "--to", either.engine, "--recipe", "gguf-q8_0")
    return either


def of_daemon(orch: Orch) -> list[str]:
    """The containers of this data directory as they are, and the networks and images of its daemon."""
    if not isinstance(orch, DockerOrch):
        return []
    containers = [f"{one.id} {one.attrs['State']}" for one in orch.containers()]
    networks = [str(one.id) for one in orch.client.networks.list(filters={"label": f"orch.home={orch.home}"})]
    return sorted([*containers, *networks])


@pytest.mark.rotated
def test_no_byte_and_no_process_changes(served: Orch, tmp_path: Path) -> None:
    edited = tmp_path / "edited.toml"
    edited.write_text(served.profile.read_text().replace("context = 512", "context = 256"))
    places = {"engine": served.engine, "edited": edited, "profile": served.profile, "adapter": ASSETS / "lora-b"}
    served.env["ORCH_API_KEY"] = "another-key"
    before = everything(served)
    for line in VERBS.splitlines():
        words = line.format(**places).split()
        told = served.run(*words, "--plan", "--json")
        assert any("plan" in row or "would_free" in row or "would_remove" in row for row in told.lines), line
        now = everything(served)
        changed = [name for name in {*before[0], *now[0]} if before[0].get(name) != now[0].get(name)]
        assert (changed, now[1:]) == ([], before[1:]), line
    del served.env["ORCH_API_KEY"]
    served.status()


def test_where_nothing_is_a_plan_leaves_what_it_has_hashed_and_no_more(orch: Orch) -> None:
    """Weights of 16 GB are not read again for each look."""
    for line in ("up llamacpp", "build"):
        orch.run(*line.split(), "-p", str(orch.profile), "--plan", "--json")
    left = {str(path.relative_to(orch.home)) for path in orch.home.rglob("*") if path != orch.profile}
    assert left <= {"hashes.json", "meanings.json"}

"""Each verb in a process of its own, as people run it: what it needs is imported by it. (Other tests run forks.)"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker_orch import DockerOrch, nothing_left
from forks import ROOT
from orch_command import ASSETS, Orch, Outcome, script

import orchestrator.cli
from orchestrator.cli.options import app

hub_server = script("hub_server")
TINY = ASSETS / "tiny-qwen3"
# {...} are places of the test's, {key} is an artifact that is there.
STORE = """\
schema status
profile ls
profile show qwen3-8b
profile check {profile}
pull -p {profile}
build -p {profile}
build gguf {tiny} -o {out}/tiny.gguf
build nvfp4 {tiny} -o {out}/nvfp4
build fp8 {tiny} -o {out}/fp8
inspect {out}/tiny.gguf
artifacts ls
artifacts verify
artifacts rm {key}
artifacts gc
lock -p {profile} -o {out}/orch.lock
lock check {out}/orch.lock -p {profile}
render vllm -p {profile}
render compose ollama -p {profile}
engines ls
engines rm vllm-cpu-0-00000000
"""
SERVING = """\
up llamacpp -p {profile}
status
check -e llamacpp
lora add alpha {adapter}
lora ls
bench --concurrency 1 --rounds 1 --input-len 16 --output-len 4
bench ls
bench show
bench import {recorded} --engine vllm --profile tiny
bench compare
bench report -o {out}/report.html
bench quality --engines llamacpp --output-len 4
bench starts --engines llamacpp --input-len 16 --output-len 4
advise --users 2
fit --adapters 3
lora add beta {adapter}
bench lora --rounds 1 --concurrency 1 --input-len 16 --output-len 4
lora rm beta
lora rm alpha
migrate --to llamacpp --recipe gguf-bf16
rollback
keys add web
keys rotate web
keys ls
keys rm web --open
logs -n 1
down --all
"""
IMAGES = """\
images pin ollama {image}
images pull ollama
images ls
images gc --plan
up ollama -p {profile}
lora add alpha {adapter}
images save {out}/tiny.tar -p {profile}
images load {out}/tiny.tar
logs -n 1
down --all
"""
# Needs 3.5 GB of vLLM, which tests share.
INSTALLED = """\
engines install vllm
"""


class Execed:
    """Commands of an `orch`, each in a process of its own."""

    def __init__(self, orch: Orch, **places: object) -> None:
        self._orch, self._places = orch, {"profile": orch.profile, "tiny": TINY, "adapter": ASSETS / "lora-a", **places}

    def run(self, story: str) -> None:
        """All of them succeed, and none of them ends with words that nobody meant."""
        for line in story.splitlines():
            done = self._one(line)
            assert done.code == 0, f"orch {line} -> {done.code}\n{done.out}\n{done.err}"
            assert "Traceback" not in done.err, line
            assert done.out + done.err, line

    def _one(self, line: str) -> Outcome:
        words = [word.format(**self._places, key=self._key) for word in line.split()]
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *words],
            cwd=ROOT,
            env=self._orch.environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    @property
    def _key(self) -> str:
        return next((path.name for path in sorted(self._orch.home.glob("store/gguf-*"))), "")


def verbs(group: Any, before: tuple[str, ...] = ()) -> Iterator[str]:
    """All commands of the app, as they are typed."""
    for command in group.registered_commands:
        yield " ".join((*before, command.name or command.callback.__name__))
    for one in group.registered_groups:
        if one.callback or getattr(one.typer_instance.registered_callback, "invoke_without_command", False):
            yield " ".join((*before, one.name))
        yield from verbs(one.typer_instance, (*before, one.name))


def test_all_verbs_are_in_a_story() -> None:
    for module in pkgutil.iter_modules(orchestrator.cli.__path__):
        # Each adds its verbs to the app.
        importlib.import_module(f"orchestrator.cli.{module.name}")
    lines = "".join((STORE, SERVING, IMAGES, INSTALLED)).splitlines()
    known = [*verbs(app)]
    assert len(known) > 30
    assert [verb for verb in known if not any(f"{line} ".startswith(f"{verb} ") for line in lines)] == []


@pytest.mark.parts
def test_verbs_of_the_store(orch: Orch, tmp_path: Path) -> None:
    text = orch.profile.read_text()
    orch.profile.write_text(text.replace(f'path = "{TINY}"', 'repo = "test/tiny"\nrevision = "main"'))
    (orch.home / "environments" / "vllm-cpu-0-00000000").mkdir(parents=True)
    with hub_server.HubServer({"test/tiny": TINY}) as hub:
        orch.env["HF_ENDPOINT"] = hub.url
        Execed(orch, out=tmp_path).run(STORE)


@pytest.mark.llamacpp
def test_verbs_of_what_serves(orch: Orch, tmp_path: Path) -> None:
    recorded = ROOT / "tests" / "bench" / "recorded" / "vllm_bench_c1.json"
    Execed(orch, out=tmp_path, recorded=recorded).run(SERVING)


@pytest.mark.vllm
def test_verbs_of_environments(orch: Orch, environments: Path) -> None:
    (orch.home / "environments").symlink_to(environments)
    Execed(orch).run(INSTALLED)


@pytest.mark.docker
def test_verbs_of_images(images: dict[str, str], tmp_path: Path) -> None:
    with nothing_left(DockerOrch(tmp_path / "home", images)) as orch:
        Execed(orch, out=tmp_path, image=images["ollama"]).run(IMAGES)

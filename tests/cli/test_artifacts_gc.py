"""orch artifacts gc over records and lock files; which engines need what is for tests/plan/test_needs.py."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from orch_command import Orch

from orchestrator.artifacts.store import Store
from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.deployment import DeploymentSpec, Desired, Served
from orchestrator.core.profile import parse_profile
from orchestrator.drivers.records import Records
from orchestrator.engines.settings import read_settings

OLD_SOURCE = "hub:test/old@" + "0" * 40
OLD = artifact_key(Recipe.WEIGHTS, OLD_SOURCE)


@pytest.fixture
def key(orch: Orch, hub: Any) -> str:
    """The key of what stands for the tiny weights; beside it lies an entry that nothing needs."""
    source = f"hub:test/tiny@{hub.repos['test/tiny'].commit}"
    key = artifact_key(Recipe.WEIGHTS, source)
    for name, origin in ((key, source), (OLD, OLD_SOURCE)):
        with Store(orch.home / "store").building(name) as turn:
            (turn.work / "model.safetensors").write_bytes(b"x" * 1_000_000)
            turn.finish(Recipe.WEIGHTS, origin, {})
    return key


def desired(hub: Any, hub_profile: str) -> Desired:
    """The profile as `orch up llamacpp` and `orch down` leave it, after it was served of another repository."""
    text = Path(hub_profile).read_text().replace('"main"', f'"{hub.repos["test/tiny"].commit}"')
    before = re.sub(r"repo = .*\n.*", f'repo = "test/old"\nrevision = "{"0" * 40}"', text)
    now, then = (
        DeploymentSpec(profile=parse_profile(profile, "hub.toml", read_settings), engine="llamacpp", target="local")
        for profile in (text, before)
    )
    return Desired(spec=now, before=Served(spec=then), stopped=True)


def went(orch: Orch, *words: str) -> tuple[list[str], dict[str, str]]:
    """What gc removes, and why the rest stays."""
    rows = [row for row in orch.run("artifacts", "gc", "--json", *words).lines if "do" in row]
    stays = {row["key"]: row["why"] for row in rows if row["do"] == "stay"}
    return [row["key"] for row in rows if row["do"] == "go"], stays


def test_what_a_recorded_profile_or_a_lock_needs_stays_and_the_rest_goes(
    orch: Orch, hub: Any, hub_profile: str, key: str, tmp_path: Path
) -> None:
    store = orch.home / "store"
    records, wanted = Records(orch.home / "records", read_settings), desired(hub, hub_profile)
    records.record("tiny", wanted)
    why = {key: "tiny is stopped, and comes back with it"}
    assert went(orch, "--age", "0") == ([], why | {OLD: "rollback of tiny goes back to it"})
    records.record("tiny", wanted.model_copy(update={"before": None}))
    assert went(orch) == ([], why | {OLD: "made in the last 24 h"})
    assert went(orch, "--plan", "--age", "0") == ([OLD], why)
    assert (store / OLD).exists()
    done = orch.run("artifacts", "gc", "--age", "0")
    assert "1.0 MB freed" in done.out
    assert [path.name for path in store.iterdir() if not path.name.startswith(".")] == [key]

    records.record("tiny", None)
    lock = tmp_path / "orch.lock"
    orch.run("lock", "-p", hub_profile, "-o", str(lock))
    assert went(orch, "--age", "0") == ([], {key: f"{lock} names it"})
    lock.write_text("half a")
    assert str(lock) in orch.run("artifacts", "gc", code=10).err
    lock.unlink()
    assert went(orch, "--age", "0") == ([key], {})
    assert list((orch.home / "records" / "locks").iterdir()) == []


def test_unfinished_builds_go_unless_somebody_is_at_them(orch: Orch) -> None:
    store = Store(orch.home / "store")
    for name in ("weights-1", "weights-2", "weights-3"):
        with store.building(name) as turn:
            (turn.work / "half").write_bytes(b"x")
    os.utime(store.partial("weights-1") / "half", (0, 0))
    os.utime(store.partial("weights-1"), (0, 0))
    gone, stays = went(orch)
    assert (gone, list(stays)) == (["weights-1"], ["weights-2", "weights-3"])
    with store.locked("weights-2", lambda *_: None):
        orch.run("artifacts", "gc", "--partial")
    assert list(store.unfinished()) == ["weights-2"]


def test_records_that_cannot_be_read_and_a_daemon_that_is_down_stop_it(orch: Orch, key: str) -> None:
    desired = orch.home / "records" / "desired"
    desired.mkdir(parents=True)
    (desired / "tiny.json").write_text("{")
    assert "tiny.json" in orch.run("artifacts", "gc", "--age", "0", code=5).err
    (desired / "tiny.json").unlink()
    (orch.home / "containers" / "tiny-vllm-g1").mkdir(parents=True)
    orch.env["DOCKER_HOST"] = f"unix://{orch.home}/nobody.sock"
    orch.run("artifacts", "gc", "--age", "0", code=4)
    assert (orch.home / "store" / OLD).exists()


def test_killed_anywhere_it_leaves_whole_entries_and_goes_on(orch: Orch) -> None:
    store = Store(orch.home / "store")
    for number in range(20):
        with store.building(f"weights-{number}") as turn:
            for name in "ab":
                (turn.work / f"{name}.safetensors").write_bytes(b"x" * 1000)
            turn.finish(Recipe.WEIGHTS, "hub:test/old@" + "0" * 40, {})
    with orch.start("artifacts", "gc", "--age", "0", "--json") as process:
        assert process.stdout is not None
        while len(store.own.names()) > 15 and process.poll() is None:
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert store.broken() == ()
    assert [damage for name in store.own.names() for damage in store.verify(name)] == []
    orch.run("artifacts", "gc", "--age", "0")
    assert (store.own.names(), list((store.root / ".trash").iterdir())) == ([], [])

"""orch artifacts gc over records and lock files; which engines need what is for tests/plan/test_needs.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from orch_command import Orch

from orchestrator.artifacts.store import Store
from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.core.deployment import Desired, Wish
from orchestrator.core.profile import parse_profile
from orchestrator.drivers.records import Records

OLD = "weights-0000000000000000"


@pytest.fixture
def key(orch: Orch, hub: Any) -> str:
    """The key of the tiny weights, pulled; beside it lies an entry that nothing needs."""
    orch.run("pull", "--repo", "test/tiny")
    with Store(orch.home / "store").building(OLD) as turn:
        (turn.work / "model.safetensors").write_bytes(b"x" * 1_000_000)
        turn.finish(Recipe.WEIGHTS, "hub:test/old@" + "0" * 40, {})
    return artifact_key(Recipe.WEIGHTS, f"hub:test/tiny@{hub.repos['test/tiny'].commit}")


def record(orch: Orch, hub: Any, hub_profile: str) -> Records:
    """The profile as `orch up llamacpp` and `orch down` leave it."""
    records = Records(orch.home / "records")
    text = Path(hub_profile).read_text().replace('"main"', f'"{hub.repos["test/tiny"].commit}"')
    wish = Wish(profile=parse_profile(text, "hub.toml"), engine="llamacpp", target="local")
    records.record("tiny", Desired(wish=wish, stopped=True))
    return records


def went(orch: Orch, *words: str) -> tuple[list[str], dict[str, str]]:
    """What gc removes, and why the rest stays."""
    rows = [row for row in orch.run("artifacts", "gc", "--json", *words).lines if "do" in row]
    stays = {row["key"]: row["why"] for row in rows if row["do"] == "stay"}
    return [row["key"] for row in rows if row["do"] == "go"], stays


def test_what_a_recorded_profile_or_a_lock_needs_stays_and_the_rest_goes(
    orch: Orch, hub: Any, hub_profile: str, key: str, tmp_path: Path
) -> None:
    store = orch.home / "store"
    records = record(orch, hub, hub_profile)
    told = orch.run("artifacts", "gc", "--plan").out
    assert "made in the last 24 h" in told
    assert "tiny is stopped, and comes back with it" in told
    gone, stays = went(orch, "--plan", "--age", "0")
    assert (gone, list(stays)) == ([OLD], [key])
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

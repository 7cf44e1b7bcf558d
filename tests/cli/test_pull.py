"""orch pull, from a hub on loopback: whole or resumed, never half."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path
from typing import Any

import pytest
from orch_command import ASSETS, Orch, Outcome, script, wait_until

hub_server = script("hub_server")

WEIGHTS = "model.safetensors"
SOURCE = ASSETS / "tiny-qwen3"


def stored(orch: Orch) -> Path:
    """The one entry of the store."""
    (row,) = orch.run("artifacts", "ls", "--json").lines
    return orch.home / "store" / row["key"]


def whats(outcome: Outcome, event: str) -> list[str]:
    """What the events of a kind tell of, in words."""
    return [line["what"] for line in outcome.lines if line.get("event") == event]


def assert_complete(orch: Orch) -> None:
    entry = stored(orch)
    for file in SOURCE.iterdir():
        assert (entry / file.name).read_bytes() == file.read_bytes()
    orch.run("artifacts", "verify")


def test_a_repository_by_name_then_by_a_profile_is_downloaded_once(orch: Orch, hub: Any, hub_profile: str) -> None:
    first = orch.run("pull", "--repo", "test/tiny", "--json")
    assert len(whats(first, "done")) == 1
    assert_complete(orch)
    commit = hub.repos["test/tiny"].commit
    assert orch.run("artifacts", "ls", "--json").lines[0]["source"].endswith(f"test/tiny@{commit}")
    bodies = len(hub.requests)
    again = orch.run("pull", "-p", hub_profile, "--json")
    assert whats(again, "skipped") == whats(first, "done")
    pinned = orch.run("pull", "--repo", f"test/tiny@{commit}", "--json")
    assert whats(pinned, "skipped") == whats(first, "done")
    assert [request.path for request in hub.requests[bodies:] if "/resolve/" in request.path] == []


def test_a_plan_downloads_nothing(orch: Orch, hub: Any, hub_profile: str) -> None:
    done = orch.run("pull", "-p", hub_profile, "--plan")
    assert f"test/tiny at {hub.repos['test/tiny'].commit[:12]}" in done.out
    assert [request.path for request in hub.requests if "/resolve/" in request.path] == []
    assert orch.run("artifacts", "ls", "--json").lines == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_pull_goes_on_where_it_stopped(orch: Orch, hub: Any, number: signal.Signals, code: int) -> None:
    hub.faults.append(hub_server.Fault("slow", path=WEIGHTS, value=2_000_000))
    with orch.start("pull", "--repo", "test/tiny") as process:
        try:
            wait_until(lambda: partial_size(orch) > 1_000_000, what="a part of the weights on disk")
        finally:
            process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert orch.run("artifacts", "ls", "--json").lines == []
    there = partial_size(orch)
    assert 0 < there < (SOURCE / WEIGHTS).stat().st_size
    hub.faults.clear()
    asked = len(hub.requests)
    orch.run("pull", "--repo", "test/tiny")
    ranges = [r.range for r in hub.requests[asked:] if r.path.endswith(WEIGHTS) and r.path.startswith("/cdn/")]
    assert ranges == [f"bytes={there}-"]
    assert_complete(orch)


def partial_size(orch: Orch) -> int:
    """Bytes that lie in unfinished files of unfinished downloads; they are named by their hash."""
    found = (orch.home / "store" / ".partial").glob(
        "*/.partial/" + hashlib.sha256((SOURCE / WEIGHTS).read_bytes()).hexdigest()
    )
    return sum(path.stat().st_size for path in found)


def test_several_pulls_of_the_same_download_it_once(orch: Orch, hub: Any) -> None:
    hub.faults.append(hub_server.Fault("slow", path=WEIGHTS, value=4_000_000))
    pulls = [orch.start("pull", "--repo", "test/tiny", "--json") for _ in range(3)]
    outputs = [pull.communicate(timeout=60)[0] for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0, 0, 0], outputs
    bodies = [request for request in hub.requests if request.path.startswith("/cdn/") and request.method == "GET"]
    assert len({request.path for request in bodies}) == len(bodies)
    assert_complete(orch)


def test_a_hub_that_is_down_is_4_with_its_address(orch: Orch) -> None:
    done = orch.run("pull", "--repo", "test/tiny", code=4)
    assert done.out == ""
    assert orch.env["HF_ENDPOINT"].removeprefix("http://") in done.err
    assert "TIP" in done.err


# A size that is never reached is asked for for a minute and a half; tests/hub has it with shorter pauses.
@pytest.mark.parametrize("kind", ["hash", pytest.param("size", marks=pytest.mark.long), "corrupt"])
def test_a_hub_that_lies_is_10_and_nothing_is_stored(orch: Orch, hub: Any, kind: str) -> None:
    hub.faults.append(hub_server.Fault(kind, path=WEIGHTS, value=4096))
    done = orch.run("pull", "--repo", "test/tiny", code=10)
    assert WEIGHTS in done.err
    assert orch.run("artifacts", "ls", "--json").lines == []


@pytest.mark.parametrize("repo", ["test/nothing", "test/tiny@nothing"])
def test_what_the_hub_does_not_have(orch: Orch, hub: Any, repo: str) -> None:
    done = orch.run("pull", "--repo", repo, code=10)
    assert "nothing" in done.err


def test_a_repository_and_a_profile_at_once_are_not_guessed_between(orch: Orch) -> None:
    assert "not both" in orch.run("pull", "--repo", "test/tiny", "-p", str(orch.profile), code=2).err


def test_weights_in_a_directory_are_not_pulled(orch: Orch) -> None:
    assert "nothing to pull" in orch.run("pull", "-p", str(orch.profile), code=5).err


def test_offline_a_branch_is_refused_and_a_stored_commit_is_enough(orch: Orch, hub: Any) -> None:
    orch.run("pull", "--repo", "test/tiny")
    orch.env["HF_HUB_OFFLINE"] = "1"
    called = len(hub.connections)
    assert "offline" in orch.run("pull", "--repo", "test/tiny", code=4).err.lower()
    orch.run("pull", "--repo", f"test/tiny@{hub.repos['test/tiny'].commit}")
    assert "offline" in orch.run("pull", "--repo", f"test/tiny@{'0' * 40}", code=4).err.lower()
    assert len(hub.connections) == called > 0, "not even a connection"


def test_programs_are_told_of_the_whole(orch: Orch, hub: Any) -> None:
    hub.faults.append(hub_server.Fault("slow", path="*", value=6_000_000))
    done = orch.run("pull", "--repo", "test/tiny", "--json")
    told = [line for line in done.lines if line["event"] == "progress"]
    assert {line["what"] for line in told} == {"test/tiny"}
    assert [line["done"] for line in told] == sorted(line["done"] for line in told)


@pytest.mark.parametrize(("way", "flags"), [("HF_TOKEN", ("--json",)), ("ORCH_HF_TOKEN_FILE", ())])
def test_a_token_is_sent_and_never_told(orch: Orch, hub: Any, way: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_tellnobody\n")
    orch.env[way] = "hf_tellnobody" if way == "HF_TOKEN" else str(tmp_path / "token")
    hub.faults.append(hub_server.Fault("status", WEIGHTS, 403, code="GatedRepo"))
    done = orch.run("pull", "--repo", "test/tiny", *flags, code=4)
    assert "licence" in done.out + done.err
    asked = {(request.path.startswith("/cdn/"), request.token) for request in hub.requests}
    assert asked == {(False, "Bearer hf_tellnobody"), (True, "")}
    assert "tellnobody" not in done.out + done.err
    kept = [path for path in orch.home.rglob("*") if path.is_file()]
    assert orch.home / "journal.jsonl" in kept
    assert [path for path in kept if b"tellnobody" in path.read_bytes()] == []

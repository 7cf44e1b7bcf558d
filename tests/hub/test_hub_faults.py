"""Kills, interrupts, cut connections, lies and refusals: what came stays, what is wrong is said."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hub_repos import ASSETS, ROOT, TINY, digests, hub_server

from orchestrator.core.progress import silent
from orchestrator.core.weights import HubSource
from orchestrator.drivers.hub import Hub
from orchestrator.errors import HostError, Interrupted, OrchError, SourceError

Fault = hub_server.Fault
WEIGHTS = "model.safetensors"
TRUTH = digests(ASSETS / "tiny-qwen3")

PULL = """
import sys
from pathlib import Path
from orchestrator.core.progress import silent
from orchestrator.core.weights import HubSource
from orchestrator.drivers.hub import Hub
hub = Hub(sys.argv[1])
hub.fetch(hub.snapshot(HubSource("test/tiny", "main"), 5), Path(sys.argv[2]), silent)
"""


def bodies(server: Any, name: str) -> list[str]:
    """The Range headers of the requests for one file, in order; "" asks for all of it."""
    return [r.range for r in server.requests if r.path.endswith(f"/{name}") and "/resolve/" in r.path]


def partial(into: Path) -> Path:
    """Where the weights lie while they are incomplete."""
    return into / ".partial" / TRUTH[WEIGHTS][1]


def test_a_killed_download_goes_on_at_its_byte(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults.append(Fault("slow", WEIGHTS, 2_000_000))
    child = subprocess.Popen([sys.executable, "-c", PULL, server.url, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 30
    while not (partial(tmp_path).exists() and partial(tmp_path).stat().st_size > 500_000):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    have = partial(tmp_path).stat().st_size
    assert 500_000 < have < TRUTH[WEIGHTS][0]
    server.faults.clear()
    server.requests.clear()
    entries = hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert [r.range for r in server.requests if "/resolve/" in r.path] == [f"bytes={have}-"]
    assert {entry.path: (entry.size, entry.sha256) for entry in entries} == TRUTH == digests(tmp_path)


def test_an_interrupt_in_the_middle_of_a_file_is_prompt(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults.append(Fault("slow", WEIGHTS, 1_000_000))
    snapshot = hub.snapshot(TINY, timeout=5)
    asked: list[float] = []

    def stop(what: str, done: int, total: int) -> None:
        if done > 700_000:
            asked.append(time.monotonic())
            raise Interrupted

    with pytest.raises(Interrupted):
        hub.fetch(snapshot, tmp_path, stop)
    assert time.monotonic() - asked[0] < 1
    have = partial(tmp_path).stat().st_size
    assert have > 0
    server.faults.clear()
    hub.fetch(snapshot, tmp_path, silent)
    assert bodies(server, WEIGHTS) == ["", f"bytes={have}-"]
    assert digests(tmp_path) == TRUTH


def test_an_interrupt_does_not_wait_for_a_stalled_hub(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults.append(Fault("stall", WEIGHTS, 300_000))
    snapshot = hub.snapshot(TINY, timeout=5)
    wanted: list[float] = []

    def stop(what: str, done: int, total: int) -> None:
        if wanted and time.monotonic() > wanted[0] + 0.3:
            raise Interrupted
        if not wanted and partial(tmp_path).exists():
            wanted.append(time.monotonic())

    with pytest.raises(Interrupted):
        hub.fetch(snapshot, tmp_path, stop)
    assert time.monotonic() - wanted[0] < 1.3
    assert partial(tmp_path).stat().st_size == 300_000


def test_a_cut_connection_goes_on(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults.append(Fault("cut", WEIGHTS, 1_000_000, times=5))
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert bodies(server, WEIGHTS) == ["", *(f"bytes={n}000000-" for n in range(1, 6))]
    assert digests(tmp_path) == TRUTH


def test_a_hub_that_ignores_ranges_starts_the_file_again(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults += [Fault("cut", WEIGHTS, 1_000_000, times=1), Fault("whole", WEIGHTS)]
    done: list[int] = []
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, lambda what, now, total: done.append(now))
    assert digests(tmp_path) == TRUTH
    assert bodies(server, WEIGHTS) == ["", "bytes=1000000-"]
    assert max(done) == done[-1] == sum(size for size, _ in TRUTH.values())


def test_a_hub_that_is_ill_for_a_moment(server: Any, hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.snapshot(TINY, timeout=5)
    server.faults.append(Fault("status", "config.json", 503, times=3))
    hub.fetch(snapshot, tmp_path, silent)
    assert len(bodies(server, "config.json")) == 4
    server.faults.append(Fault("status", "", 500, times=2))
    assert hub.snapshot(TINY, timeout=5) == snapshot


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_wrong_bytes_once_are_fetched_again(server: Any, hub: Hub, tmp_path: Path, name: str) -> None:
    server.faults.append(Fault("corrupt", name, 100, times=1))
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert bodies(server, name) == ["", ""]
    assert digests(tmp_path) == TRUTH


LIES = [(kind, name, value) for name in (WEIGHTS, "config.json") for kind, value in (("corrupt", 9), ("hash", 0))]
LIES += [("size", name, value) for name in (WEIGHTS, "config.json") for value in (-7, 7)]


@pytest.mark.parametrize(("kind", "name", "value"), LIES)
def test_a_hub_that_lies(server: Any, hub: Hub, tmp_path: Path, kind: str, name: str, value: int) -> None:
    server.faults.append(Fault(kind, name, value))
    snapshot = hub.snapshot(TINY, timeout=5)
    with pytest.raises(SourceError) as caught:
        hub.fetch(snapshot, tmp_path, silent)
    size, sha256 = TRUTH[name]
    (stated,) = (file.sha256 or file.blob_id or "" for file in snapshot.files if file.path == name)
    assert name in caught.value.message
    if kind == "size":
        assert f"expected {size + value} bytes, got {size}" in caught.value.message
    elif name == WEIGHTS:
        assert f"SHA-256 {sha256 if kind == 'corrupt' else '1' * 64}, got " in caught.value.message
        assert (kind == "hash") == caught.value.message.rstrip(".").endswith(sha256)
    else:
        assert "git blob id" in caught.value.message
    # Something else may pass, so that it is asked for again as often as after a failure; wrong bytes come twice.
    assert len(bodies(server, name)) == (4 if kind == "size" else 2)
    assert not (tmp_path / name).exists()
    if kind != "size":
        assert not [path for path in (tmp_path / ".partial").iterdir() if path.name.startswith(stated)]


def test_a_size_that_is_none(server: Any, hub: Hub) -> None:
    server.faults.append(Fault("size", WEIGHTS, -TRUTH[WEIGHTS][0] - 5))
    with pytest.raises(SourceError, match="states no size"):
        hub.snapshot(TINY, timeout=5)


def test_leftovers_of_another_length_do_no_harm(server: Any, hub: Hub, tmp_path: Path) -> None:
    partial(tmp_path).parent.mkdir()
    partial(tmp_path).write_bytes(b"x" * (TRUTH[WEIGHTS][0] + 1))
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert digests(tmp_path) == TRUTH
    assert bodies(server, WEIGHTS) == [""]


REFUSALS = [
    (404, "RepoNotFound", SourceError, "no repository test/tiny", "HF_TOKEN"),
    (401, "RepoNotFound", SourceError, "no repository test/tiny", "HF_TOKEN"),
    (404, "RevisionNotFound", SourceError, "no revision main", "commit"),
    (401, "GatedRepo", HostError, "granted", "licence"),
    (403, "GatedRepo", HostError, "granted", "licence"),
    (401, "", HostError, "refuses", "HF_TOKEN"),
    (403, "", HostError, "refuses", "HF_TOKEN"),
    (404, "", SourceError, "does not have", "files"),
    (429, "", HostError, "429", "later"),
    (500, "", HostError, "500", "later"),
]


@pytest.mark.parametrize(("status", "code", "kind", "said", "hint"), REFUSALS)
def test_refusals(
    server: Any, hub: Hub, tmp_path: Path, status: int, code: str, kind: type[OrchError], said: str, hint: str
) -> None:
    snapshot = hub.snapshot(TINY, timeout=5)
    server.faults.append(Fault("status", "", status, code=code))
    with pytest.raises(kind, match=said) as asking:
        hub.snapshot(TINY, timeout=5)
    assert hint in asking.value.hint
    server.faults[:] = [Fault("status", WEIGHTS, status, code=code)]
    with pytest.raises(kind) as fetching:
        hub.fetch(snapshot, tmp_path, silent)
    assert hint in fetching.value.hint
    assert not (tmp_path / WEIGHTS).exists()


@pytest.mark.parametrize(
    ("repo", "revision", "said"),
    [("test/none", "main", "no repository"), (TINY.repo, "v9", "no revision v9"), ("a/b/c", "main", "name")],
)
def test_names_that_do_not_exist(hub: Hub, repo: str, revision: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        hub.snapshot(HubSource(repo, revision), timeout=5)


def test_a_file_that_is_stated_and_not_served(server: Any, hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.snapshot(TINY, timeout=5)
    del server.repos[TINY.repo].blobs["config.json"]
    with pytest.raises(SourceError, match=r"config\.json"):
        hub.fetch(snapshot, tmp_path, silent)


def test_an_unreachable_hub(tmp_path: Path) -> None:
    with hub_server.HubServer({TINY.repo: ASSETS / "tiny-qwen3"}) as server:
        snapshot = Hub(server.url).snapshot(TINY, timeout=5)
    for ask in (lambda hub: hub.snapshot(TINY, timeout=5), lambda hub: hub.fetch(snapshot, tmp_path, silent)):
        with pytest.raises(HostError, match="cannot be reached") as caught:
            ask(Hub(server.url, pauses=(0.01,)))
        assert "HF_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:port", "127.0.0.1", "http://", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_no_address(endpoint: str) -> None:
    with pytest.raises(HostError, match="address") as caught:
        Hub(endpoint).snapshot(TINY, timeout=5)
    assert "HF_ENDPOINT" in caught.value.hint


PASSWORDS = ["http://user:secret@127.0.0.1:1", "http://user:a@secret@127.0.0.1:1"]
PASSWORDS += ["http://user:secret/1@127.0.0.1:1", "ftp://user:secret@127.0.0.1", "user:secret@127.0.0.1"]


@pytest.mark.parametrize("endpoint", PASSWORDS)
def test_the_password_of_an_endpoint_is_not_shown(endpoint: str) -> None:
    hub = Hub(endpoint)
    with pytest.raises(HostError, match=r"127\.0\.0\.1") as caught:
        hub.snapshot(TINY, timeout=5)
    assert "secret" not in f"{caught.value.message}{caught.value.hint}{caught.value.detail}{hub}"


def test_the_password_of_an_endpoint_that_refuses_is_not_shown(server: Any) -> None:
    server.faults.append(Fault("status", "", 403, code="GatedRepo"))
    with pytest.raises(HostError) as caught:
        Hub(server.url.replace("://", "://user:secret@")).snapshot(TINY, timeout=5)
    assert f"{server.url}/test/tiny" in caught.value.hint
    assert "secret" not in f"{caught.value.message}{caught.value.hint}{caught.value.detail}"


def test_an_address_that_is_no_hub(hub: Hub, server: Any) -> None:
    server.faults.append(Fault("html", ""))
    with pytest.raises(HostError, match="like a hub") as caught:
        hub.snapshot(TINY, timeout=5)
    assert "HF_ENDPOINT" in caught.value.hint


def test_a_signed_address_is_not_shown(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults.append(Fault("expired", WEIGHTS))
    with pytest.raises(HostError, match="403") as caught:
        hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert "/cdn/" in caught.value.detail
    assert "signed" not in caught.value.message + caught.value.hint + caught.value.detail


def test_a_disk_that_is_too_small(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults.append(Fault("size", WEIGHTS, 10**17))
    with pytest.raises(HostError, match="free, and") as caught:
        hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert "space" in caught.value.hint
    assert not [request for request in server.requests if "/resolve/" in request.path]


def test_a_disk_that_fills_up(hub: Hub, tmp_path: Path) -> None:
    partial(tmp_path).parent.mkdir()
    partial(tmp_path).symlink_to("/dev/full")
    with pytest.raises(HostError, match="No space left") as caught:
        hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert "space" in caught.value.hint

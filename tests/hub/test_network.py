"""Hubs that want to be left alone for a while, connections that stall, proxies, tokens, and disks that fill up."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hub_repos import ASSETS, ROOT, TINY, digests, hub_server

from orchestrator.core.progress import silent, split_part
from orchestrator.drivers.hub import Hub, Secret
from orchestrator.errors import HostError, Interrupted

Fault = hub_server.Fault
WEIGHTS = "model.safetensors"
TRUTH = digests(ASSETS / "tiny-qwen3")
SIZE = TRUTH[WEIGHTS][0]
PIECE = 256 << 10


def times(server: Any, name: str) -> list[float]:
    """When a file was asked for, in seconds."""
    return [r.at for r in server.requests if r.path.endswith(f"/{name}") and "/resolve/" in r.path]


# --- a hub that asks to wait


def test_the_hub_is_waited_for_as_long_as_it_asks(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults.append(Fault("status", WEIGHTS, 429, times=1, headers=(("Retry-After", "1"),)))
    snapshot = hub.snapshot(TINY, timeout=5)
    told: set[str] = set()
    hub.fetch(snapshot, tmp_path, lambda what, done, total: told.add(split_part(what)[1]))
    first, second = times(server, WEIGHTS)
    assert 1.0 <= second - first < 3.0
    assert "the hub asks to wait (429): trying again in 1 s" in told
    assert digests(tmp_path) == TRUTH


def test_nobody_asks_while_the_hub_asks_to_wait(server: Any, tmp_path: Path) -> None:
    hub = Hub(server.url, pauses=(0.01,) * 8, piece=PIECE)
    snapshot = hub.snapshot(TINY, timeout=5)
    server.faults.append(Fault("status", "*", 503, times=1, headers=(("Retry-After", "1"),)))
    hub.fetch(snapshot, tmp_path, silent)
    moments = sorted(r.at for r in server.requests if "/resolve/" in r.path)
    assert len([at for at in moments if at < moments[0] + 0.95]) <= 4, "those that were under way"
    assert digests(tmp_path) == TRUTH


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        ({"Retry-After": "7"}, r"later, in 7 s:"),
        ({"Retry-After": "100000"}, r"later, in 300 s:"),
        ({"Retry-After": "DATE"}, r"later, in (59|60) s:"),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}, r"later:"),
        ({"Retry-After": "soon"}, r"later:"),
        ({"RateLimit": '"resolvers";r=0;t=55'}, r"later, in 55 s:"),
        ({"RateLimit": '"resolvers";r=10;t=55'}, r"later:"),
        ({}, r"later:"),
    ],
)
def test_how_long_is_told_when_it_is_given_up(server: Any, headers: dict[str, str], hint: str) -> None:
    filled = tuple(
        (name, formatdate(time.time() + 60.5, usegmt=True) if v == "DATE" else v) for name, v in headers.items()
    )
    server.faults.append(Fault("status", "", 429, headers=filled))
    began = time.monotonic()
    with pytest.raises(HostError, match="429") as caught:
        Hub(server.url, pauses=(0.01, 0.01)).snapshot(TINY, timeout=0.5)
    assert re.search(hint, caught.value.hint)
    assert "HF_TOKEN" in caught.value.hint
    assert time.monotonic() - began < 5


def test_a_short_wait_is_waited_before_the_first_file_too(server: Any, hub: Hub) -> None:
    server.faults.append(Fault("status", "", 429, times=1, headers=(("Retry-After", "1"),)))
    began = time.monotonic()
    assert hub.snapshot(TINY, timeout=5).files
    assert time.monotonic() - began >= 1


def test_waiting_can_be_interrupted(server: Any, hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.snapshot(TINY, timeout=5)
    server.faults.append(Fault("status", "*", 429, headers=(("Retry-After", "200"),)))
    began = time.monotonic()

    def stop(what: str, done: int, total: int) -> None:
        if "the hub asks to wait" in what:
            raise Interrupted

    with pytest.raises(Interrupted):
        hub.fetch(snapshot, tmp_path, stop)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("body", [b"\xff\xfe", b"5", b"[]", b'{"error": 7}', b"<html>"])
def test_an_error_with_any_body_is_an_error_of_the_hub(server: Any, hub: Hub, tmp_path: Path, body: bytes) -> None:
    page = (("Content-Type", "application/json"),)
    snapshot = hub.snapshot(TINY, timeout=5)
    server.faults.append(Fault("status", WEIGHTS, 503, times=2, headers=page, body=body))
    hub.fetch(snapshot, tmp_path, silent)
    assert digests(tmp_path) == TRUTH
    server.faults[:] = [Fault("status", "config.json", 403, headers=page, body=body)]
    with pytest.raises(HostError, match="403"):
        hub.fetch(snapshot, tmp_path / "again", silent)


PULL = """
import sys
from pathlib import Path
from orchestrator.core.progress import silent
from orchestrator.core.weights import HubSource
from orchestrator.drivers.hub import Hub
hub = Hub(pauses=(0.01, 0.01), piece=1 << 18)
hub.fetch(hub.snapshot(HubSource("test/tiny", "main"), 5), Path(sys.argv[1]), silent)
"""


def pull(into: Path, server: Any, **environment: str) -> None:
    """Another process, with nothing else in its environment."""
    own = {"HF_ENDPOINT": server.url, "HF_HOME": str(into.parent / "home"), **environment}
    subprocess.run([sys.executable, "-c", PULL, str(into)], env=own, cwd=ROOT, timeout=60, check=True)


def test_a_connection_that_stalls_is_left_for_another_one_and_the_hubs_own_login_is_taken(
    server: Any, tmp_path: Path
) -> None:
    server.faults.append(Fault("stall", WEIGHTS, 100_000, times=2))
    (tmp_path / "token").write_text("hf_fromlogin")
    pull(tmp_path / "into", server, HF_HUB_DOWNLOAD_TIMEOUT="1", HF_TOKEN_PATH=str(tmp_path / "token"))
    assert {r.token for r in server.requests if "/cdn/" not in r.path} == {"Bearer hf_fromlogin"}
    assert digests(tmp_path / "into") == TRUTH
    assert server.sent == sum(size for size, _ in TRUTH.values()), "not a byte twice"


# --- proxies


class Proxy(ThreadingHTTPServer):
    """A plain HTTP proxy on loopback; `seen` is what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.seen: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Forward(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        address = urlsplit(self.path)
        onward = http.client.HTTPConnection(address.netloc, timeout=10)
        headers = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        onward.request("GET", self.path.partition(address.netloc)[2], headers=headers)
        answer = onward.getresponse()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.read())
        onward.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are recorded."""


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets variables for the hub's client, which reads them when it is made."""
    from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

    def put(**values: str) -> None:
        close_session()
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    yield put
    close_session()


def test_everything_goes_through_the_proxy(
    server: Any, hub: Hub, proxy: Proxy, environment: Callable[..., None], tmp_path: Path
) -> None:
    environment(HTTP_PROXY=proxy.url)
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert digests(tmp_path) == TRUTH
    assert sorted(urlsplit(url).path for url in proxy.seen) == sorted(r.path for r in server.requests)


def test_a_host_that_needs_no_proxy(
    server: Any, hub: Hub, proxy: Proxy, environment: Callable[..., None], tmp_path: Path
) -> None:
    environment(HTTP_PROXY=proxy.url, NO_PROXY="127.0.0.1,localhost")
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert proxy.seen == []


def test_a_proxy_that_is_not_there_keeps_its_password(hub: Hub, environment: Callable[..., None]) -> None:
    environment(HTTP_PROXY="http://me:tellnobody@127.0.0.1:1")
    with pytest.raises(HostError, match="cannot be reached") as caught:
        hub.snapshot(TINY, timeout=5)
    assert "HTTPS_PROXY" in caught.value.hint
    assert "tellnobody" not in f"{caught.value.message} {caught.value.hint} {caught.value.detail}"


@pytest.mark.parametrize("address", ["socks5://me:tellnobody@127.0.0.1:1", "ftp://me:tellnobody@127.0.0.1:1"])
def test_a_proxy_that_cannot_be_used(hub: Hub, environment: Callable[..., None], address: str) -> None:
    environment(ALL_PROXY=address)
    with pytest.raises(HostError, match="proxy") as caught:
        hub.snapshot(TINY, timeout=5)
    assert "http://HOST:PORT" in caught.value.hint
    assert "tellnobody" not in f"{caught.value.message} {caught.value.hint} {caught.value.detail}"


# --- tokens


def test_a_token_from_a_file_is_for_the_hub_alone(server: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_fromafile\n")
    hub = Hub(server.url, token_file=tmp_path / "token", piece=PIECE)
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path / "into", silent)
    sent = {(request.path.startswith("/cdn/"), request.token) for request in server.requests}
    assert sent == {(False, "Bearer hf_fromafile"), (True, "")}
    assert len([r for r in server.requests if r.path.startswith("/cdn/")]) > 8, "pieces came from there directly"


def test_a_token_that_is_given_goes_before_the_files(server: Any, tmp_path: Path) -> None:
    hub = Hub(server.url, Secret("hf_given"), token_file=tmp_path / "none")
    hub.snapshot(TINY, timeout=5)
    assert server.requests[-1].token == "Bearer hf_given"


@pytest.mark.parametrize("text", ["", "\n", "hf_one\nhf_two\n", "hf_\u00e9", "hf one", None])
def test_a_token_file_without_a_token(server: Any, tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "token").write_text(text)
    with pytest.raises(HostError, match=re.escape(str(tmp_path / "token"))) as caught:
        Hub(server.url, token_file=tmp_path / "token").snapshot(TINY, timeout=5)
    assert "ORCH_HF_TOKEN_FILE" in caught.value.hint
    assert "hf_" not in f"{caught.value.message} {caught.value.detail}"
    assert server.requests == []


# --- disks


@contextmanager
def disk(place: Path, size: int, *options: str) -> Iterator[Path]:
    """A file system of its own, of `size` bytes."""
    place.mkdir()
    words = ",".join((f"size={size}", *options))
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", words, "tmpfs", str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a disk of its own cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_fills_up_while_it_comes(server: Any, tmp_path: Path) -> None:
    hub = Hub(server.url, piece=PIECE)
    snapshot = hub.snapshot(TINY, timeout=5)
    server.faults.append(Fault("slow", WEIGHTS, 4_000_000))
    with disk(tmp_path / "disk", snapshot.size + (1 << 20)) as place:
        other = place / "other"

        def fill(what: str, done: int, total: int) -> None:
            if total == snapshot.size and done > total // 2 and not other.exists():
                other.write_bytes(bytes(snapshot.size // 3 + (1 << 20)))

        with pytest.raises(HostError, match="No space left") as caught:
            hub.fetch(snapshot, place / "into", fill)
        assert "free some disk space" in caught.value.hint
        other.unlink()
        server.faults.clear()
        before = server.sent
        hub.fetch(snapshot, place / "into", silent)
        assert digests(place / "into") == TRUTH
        assert server.sent - before < snapshot.size * 3 // 4, "it went on where it stopped"


def test_room_is_counted_for_what_is_missing_only(server: Any, tmp_path: Path) -> None:
    hub = Hub(server.url, piece=PIECE)
    snapshot = hub.snapshot(TINY, timeout=5)
    server.faults.append(Fault("slow", WEIGHTS, 4_000_000))

    def half(what: str, done: int, total: int) -> None:
        if total == snapshot.size and done > total // 2:
            raise Interrupted

    with disk(tmp_path / "disk", snapshot.size + (1 << 20)) as place:
        with pytest.raises(Interrupted):
            hub.fetch(snapshot, place / "into", half)
        (place / "other").write_bytes(bytes(1 << 19))
        server.faults.clear()
        hub.fetch(snapshot, place / "into", silent)
        assert digests(place / "into") == TRUTH
    with disk(tmp_path / "small", snapshot.size - (1 << 20)) as place:
        asked = len(server.requests)
        with pytest.raises(HostError, match="free, and"):
            hub.fetch(snapshot, place / "into", silent)
        assert len(server.requests) == asked


def test_a_directory_that_cannot_be_written(server: Any, hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.snapshot(TINY, timeout=5)
    server.requests.clear()
    with disk(tmp_path / "disk", 1 << 20, "ro") as place, pytest.raises(HostError, match="Read-only"):
        hub.fetch(snapshot, place / "into", silent)
    assert server.requests == []


def test_nothing_is_left_open(server: Any, hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.snapshot(TINY, timeout=5)
    hub.fetch(snapshot, tmp_path / "first", silent)

    def stop(what: str, done: int, total: int) -> None:
        if done > 1_000_000:
            raise Interrupted

    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5):
        with pytest.raises(Interrupted):
            hub.fetch(snapshot, tmp_path / str(number), stop)
    deadline = time.monotonic() + 5
    while [t for t in threading.enumerate() if t.name.startswith("hub-")] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [t for t in threading.enumerate() if t.name.startswith("hub-")] == []
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4, "connections that are kept"

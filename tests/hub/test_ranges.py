"""Several requests at once, of files and of pieces of a file: what is asked for, what is kept, what is asked again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hub_repos import ASSETS, ROOT, TINY, UNTIED, digests, hub_server
from orch_command import wait_until

from orchestrator.core.progress import silent, split_part
from orchestrator.core.weights import HubSource
from orchestrator.drivers.hub import Hub
from orchestrator.drivers.hub.part import RECORD, Part
from orchestrator.drivers.hub.part import arrived as part_arrived
from orchestrator.drivers.local.proc import boot_id
from orchestrator.errors import HostError, Interrupted, SourceError

Fault = hub_server.Fault
WEIGHTS = "model.safetensors"
TRUTH = digests(ASSETS / "tiny-qwen3")
SIZE, SHA256 = TRUTH[WEIGHTS]
PIECE = 256 << 10
PIECES = -(-SIZE // PIECE)


@pytest.fixture
def hub(server: Any) -> Hub:
    """Small pieces, four at once."""
    return Hub(server.url, pauses=(0.01, 0.01, 0.01), piece=PIECE)


def asked(server: Any, name: str = WEIGHTS) -> list[str]:
    """The ranges of one file that its last address was asked for, without "bytes="."""
    place = "/cdn/" if hub_server.fnmatch(name, "*.safetensors") else "/resolve/"
    found = [r.range.removeprefix("bytes=") for r in server.requests if r.path.endswith(f"/{name}") and place in r.path]
    return sorted(found, key=lambda text: int(text.partition("-")[0] or 0))


def spans(server: Any) -> list[tuple[int, int]]:
    """The same as numbers, from a byte to before another."""
    pairs = [text.partition("-")[::2] for text in asked(server)]
    return [(int(begin or 0), int(end) + 1 if end else SIZE) for begin, end in pairs]


def piece_spans() -> list[tuple[int, int]]:
    return [(start, min(start + PIECE, SIZE)) for start in range(0, SIZE, PIECE)]


def assert_asked(server: Any, size: int) -> None:
    """So many bytes were asked for; what was under way when an earlier fetch ended may still have come in between."""
    assert size <= sum(end - begin for begin, end in spans(server)) <= size + 4 * PIECE


def test_each_piece_is_asked_for_once(server: Any, hub: Hub, tmp_path: Path) -> None:
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert digests(tmp_path) == TRUTH
    assert spans(server) == piece_spans()
    assert asked(server)[0] == f"0-{PIECE - 1}"
    assert asked(server)[-1].endswith("-")
    # Where the bytes are is found out while the first ones come, not for each piece.
    resolved = [r for r in server.requests if r.path.endswith(WEIGHTS) and "/resolve/" in r.path]
    assert 1 <= len(resolved) <= 4 < PIECES


@pytest.mark.parametrize("parallel", [1, 4])
def test_so_many_at_once_and_no_more(server: Any, tmp_path: Path, parallel: int) -> None:
    server.faults.append(Fault("slow", WEIGHTS, 8_000_000))
    hub = Hub(server.url, parallel=parallel, piece=PIECE)
    snapshot = hub.snapshot(TINY, timeout=5)
    most = 0

    def watch(what: str, done: int, total: int) -> None:
        nonlocal most
        most = max(most, server.bodies)

    hub.fetch(snapshot, tmp_path, watch)
    assert most == parallel
    assert digests(tmp_path) == TRUTH


def test_pieces_that_do_not_divide_the_file_and_files_at_once(server: Any, tmp_path: Path) -> None:
    hub = Hub(server.url, piece=100_003, parallel=16)
    hub.fetch(hub.snapshot(UNTIED, timeout=5), tmp_path, silent)
    assert digests(tmp_path) == digests(ASSETS / "untied-qwen3")


def test_two_files_with_the_same_bytes_and_an_empty_one(tmp_path: Path) -> None:
    root = tmp_path / "repo"
    root.mkdir()
    data = random.Random(1).randbytes(1_000_000)
    for name in ("a.safetensors", "b.safetensors", "c.safetensors"):
        (root / name).write_bytes(data)
    (root / "merges.txt").touch()
    with hub_server.HubServer({"test/same": root}) as server:
        hub = Hub(server.url, piece=PIECE)
        hub.fetch(hub.snapshot(HubSource("test/same", "main"), timeout=5), tmp_path / "into", silent)
        assert server.sent == 3_000_000
    assert digests(tmp_path / "into") == digests(root)


def test_a_hub_that_ignores_ranges_sends_it_once(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults += [Fault("whole", WEIGHTS), Fault("slow", WEIGHTS, 20_000_000)]
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert digests(tmp_path) == TRUTH
    assert len(asked(server)) <= 4


def test_a_hub_that_begins_to_ignore_ranges(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults += [Fault("slow", WEIGHTS, 8_000_000), Fault("cut", WEIGHTS, 100_000, times=2)]
    done: list[int] = []

    def turn(what: str, now: int, total: int) -> None:
        if not split_part(what)[1]:
            done.append(now)
        if now > 600_000 and len(server.faults) == 2:
            server.faults.append(Fault("whole", WEIGHTS))

    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, turn)
    assert digests(tmp_path) == TRUTH
    assert done == sorted(done), "what had come was kept"


def test_a_hub_that_ignores_ranges_and_cuts_is_given_up(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults += [Fault("whole", WEIGHTS), Fault("cut", WEIGHTS, 1_000_000)]
    with pytest.raises(HostError, match="cannot be reached"):
        hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)


def test_a_range_of_which_only_a_part_comes(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults.append(Fault("stingy", WEIGHTS, 100_000))
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert digests(tmp_path) == TRUTH
    assert server.sent == sum(size for size, _ in TRUTH.values())


def test_an_address_that_expires_is_asked_for_anew(server: Any, tmp_path: Path) -> None:
    hub = Hub(server.url, pauses=(), piece=PIECE, parallel=1)
    expiring = Fault("expired", WEIGHTS, times=0)
    server.faults.append(expiring)

    def expire(what: str, done: int, total: int) -> None:
        if done > SIZE // 2 and expiring.times == 0 and not expiring.value:
            expiring.times, expiring.value = 1, 1

    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, expire)
    assert digests(tmp_path) == TRUTH
    resolved = [r for r in server.requests if r.path.endswith(WEIGHTS) and "/resolve/" in r.path]
    assert len(resolved) == 2


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_page_in_place_of_a_piece_costs_nothing_that_came(server: Any, tmp_path: Path, parallel: int) -> None:
    hub = Hub(server.url, pauses=(0.3,), piece=PIECE, parallel=parallel)
    snapshot = hub.snapshot(TINY, timeout=5)
    server.faults.append(Fault("slow", WEIGHTS, 20_000_000))

    def turn(what: str, done: int, total: int) -> None:
        if total == snapshot.size and done > total // 2 and len(server.faults) == 1:
            server.faults.append(Fault("page", WEIGHTS, times=1))

    hub.fetch(snapshot, tmp_path, turn)
    assert digests(tmp_path) == TRUTH
    assert server.sent < snapshot.size + 4 * PIECE, "those under way at most come twice"


def test_pages_are_waited_out_and_forgotten_once_bytes_come(server: Any, tmp_path: Path) -> None:
    hub = Hub(server.url, pauses=(0.01, 0.01), piece=PIECE, parallel=1)
    snapshot = hub.snapshot(TINY, timeout=5)
    server.faults.append(Fault("slow", WEIGHTS, 10_000_000))
    shares = [0.2, 0.5, 0.8]

    def turn(what: str, done: int, total: int) -> None:
        if total == snapshot.size and shares and done > total * shares[0]:
            del shares[0]
            server.faults.append(Fault("page", WEIGHTS, times=2))

    hub.fetch(snapshot, tmp_path, turn)
    assert digests(tmp_path) == TRUTH
    assert [fault.times for fault in server.faults[1:]] == [0, 0, 0], "each page was sent"


def test_a_page_in_place_of_every_piece_is_told_and_what_came_stays(server: Any, hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.snapshot(TINY, timeout=5)
    server.faults.append(Fault("slow", WEIGHTS, 5_000_000))

    def turn(what: str, done: int, total: int) -> None:
        if total == snapshot.size and done > total // 2 and len(server.faults) == 1:
            server.faults.append(Fault("page", WEIGHTS))

    with pytest.raises(SourceError, match=f"expected {SIZE} bytes, got 6"):
        hub.fetch(snapshot, tmp_path, turn)
    have = arrived(tmp_path)
    assert have > SIZE // 3
    server.faults.clear()
    server.requests.clear()
    hub.fetch(snapshot, tmp_path, silent)
    assert_asked(server, SIZE - have)


def test_a_power_cut_loses_what_was_not_flushed_and_nothing_else(server: Any, hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.snapshot(TINY, timeout=5)
    server.faults.append(Fault("slow", WEIGHTS, 10_000_000))
    path = tmp_path / ".partial" / SHA256

    def until(share: float) -> None:
        def stop(what: str, done: int, total: int) -> None:
            if total == snapshot.size and done > total * share:
                raise Interrupted

        with pytest.raises(Interrupted):
            hub.fetch(snapshot, tmp_path, stop)

    until(0.3)
    part = Part(path, SIZE, PIECE)
    part.flush()
    flushed = part.arrived
    part.close()
    safe = path.read_bytes()
    until(0.6)
    assert arrived(tmp_path) > flushed
    # What the disk has after the cut: the flushed bytes, zeros for the others, and all of the record.
    path.write_bytes(safe.ljust(path.stat().st_size, b"\0"))
    record = path.with_name(SHA256 + RECORD)
    record.write_bytes(record.read_bytes().replace(boot_id().encode(), b"x" * len(boot_id())))
    assert arrived(tmp_path) == flushed
    server.faults.clear()
    server.requests.clear()
    hub.fetch(snapshot, tmp_path, silent)
    assert digests(tmp_path) == TRUTH
    assert_asked(server, SIZE - flushed)


def test_a_corrupted_piece_brings_all_of_the_file_once_more(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults.append(Fault("corrupt", WEIGHTS, SIZE - 5, times=PIECES))
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert digests(tmp_path) == TRUTH
    assert spans(server) == sorted(2 * piece_spans())


def test_a_hub_that_lies_about_any_size(server: Any, hub: Hub, tmp_path: Path) -> None:
    server.faults.append(Fault("size", WEIGHTS, 3 * PIECE))
    with pytest.raises(SourceError, match=f"expected {SIZE + 3 * PIECE} bytes, got {SIZE}"):
        hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert not (tmp_path / WEIGHTS).exists()


def test_what_is_right_is_not_read_again_by_a_fetch_that_goes_on(server: Any, hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.snapshot(UNTIED, timeout=5)
    first = "model-00001-of-00003.safetensors"

    def until_the_first_is_there(what: str, done: int, total: int) -> None:
        if (tmp_path / first).exists():
            raise Interrupted

    server.faults.append(Fault("slow", "model-00003*", 500_000))
    with pytest.raises(Interrupted):
        hub.fetch(snapshot, tmp_path, until_the_first_is_there)
    server.faults.clear()
    # Its place is taken by bytes that are as many and as old: whoever reads them sees it.
    stat = (tmp_path / first).stat()
    truth = (tmp_path / first).read_bytes()
    with (tmp_path / first).open("r+b") as file:
        file.write(b"x")
    os.utime(tmp_path / first, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    entries = hub.fetch(snapshot, tmp_path, silent)
    assert {entry.path for entry in entries} == {file.path for file in snapshot.files}
    assert (tmp_path / first).read_bytes() != truth, "it was read"
    hub.fetch(snapshot, tmp_path, silent)
    assert (tmp_path / first).read_bytes() == truth, "a fetch that begins anew reads all"


def test_what_is_left_of_another_commit_goes(server: Any, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / ("0" * 64)).write_bytes(b"x" * 100)
    with pytest.raises(Interrupted):
        hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, _interrupt)
    assert ("0" * 64) not in {path.name for path in (tmp_path / ".partial").iterdir()}


def _interrupt(what: str, done: int, total: int) -> None:
    raise Interrupted


# --- kill -9 at any moment

# Forks a child for every line that it reads, with all imports done: it tells the child's pid, and how it ended.
NURSERY = """
import os, sys
from pathlib import Path
import huggingface_hub.hf_api
from orchestrator.core.progress import silent
from orchestrator.core.weights import HubSource
from orchestrator.drivers.hub import Hub
hub = Hub(sys.argv[1], piece=int(sys.argv[3]))
for _ in sys.stdin:
    if (pid := os.fork()) == 0:
        hub.fetch(hub.snapshot(HubSource("test/tiny", "main"), 5), Path(sys.argv[2]), silent)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def arrived(into: Path) -> int:
    """Bytes of the weights that the record says are there; all of them when the file is whole."""
    return SIZE if (into / WEIGHTS).exists() else part_arrived(into / ".partial" / SHA256, SIZE, PIECE)


def test_forty_kills(server: Any, hub: Hub, tmp_path: Path) -> None:
    """Each child asks only for what the ones before had not got; nothing unfinished ever has its name."""
    server.faults.append(Fault("slow", WEIGHTS, 200_000))
    chance, have, moments = random.Random(4), 0, set()
    argv = [sys.executable, "-c", NURSERY, server.url, str(tmp_path), str(PIECE)]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nursery:
        assert nursery.stdin
        assert nursery.stdout
        for number in range(40):
            server.requests.clear()
            until = server.sent + chance.randrange(100_000)
            print(file=nursery.stdin, flush=True)
            pid = int(nursery.stdout.readline())
            if number % 4:
                wait_until(lambda until=until: server.sent >= until)
            time.sleep(chance.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            assert int(nursery.stdout.readline()) == -signal.SIGKILL
            now = arrived(tmp_path)
            assert now >= have
            assert sum(end - begin for begin, end in spans(server)) <= SIZE - have
            finished = {name: what for name, what in digests(tmp_path).items() if "/" not in name}
            assert finished.items() <= TRUTH.items()
            have = now
            moments.add(now)
        nursery.stdin.close()
    assert len(moments) > 10
    assert 0 < have < SIZE
    # What was on its way when a child died comes twice: some blocks a kill, not the file.
    assert server.sent < sum(size for size, _ in TRUTH.values()) - SIZE + have + 40 * 4 * 2 * 10_001
    server.faults.clear()
    server.requests.clear()
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    assert sum(end - begin for begin, end in spans(server)) == SIZE - have
    assert digests(tmp_path) == TRUTH

"""The power goes while a store is written: what it lists afterwards is whole.

The store is on a file system of its own, in an image file. What the image holds at a moment is what a disk would hold
if the power went then: the page cache of that file system is not in it. The image is copied, the copy mounted, which
replays its journal, and looked at.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from orch_command import ASSETS, ROOT, script

from orchestrator.artifacts.store import Store

hub_server = script("hub_server")
WORKER = Path(__file__).with_name("power_worker.py")
CUTS = 40
# Of one disk, until some have come in the middle of something.
MOST = 120
SIZE = 96 << 20
# What the kernel writes by itself, and when: soon and in order, or late and in any.
DISKS = {"ordered": "data=ordered,commit=1", "writeback": "data=writeback,noauto_da_alloc,commit=60"}


@contextmanager
def mounted(image: Path, place: Path, options: str = "") -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", ",".join(filter(None, ("loop", options))), image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An empty ext4 file system in a file that is on no disk."""
    path = Path("/dev/shm") / f"orch-power-{os.getpid()}.img"
    try:
        with path.open("wb") as file:
            file.truncate(SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
        with mounted(path, tmp_path / "try"):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        path.unlink(missing_ok=True)
        pytest.skip(f"a file system in a file cannot be mounted here: {error}")
    return path


def writes(place: Path) -> str:
    """What the block device of a mount has counted so far; it changes with every write."""
    device = place.stat().st_dev
    return Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text()


def cut(worker: subprocess.Popen[Any], place: Path, image: Path, copy: Path) -> None:
    """The image as it is at one moment."""
    worker.send_signal(signal.SIGSTOP)
    try:
        for _ in range(20):
            before = writes(place)
            subprocess.run(["cp", "--sparse=always", image, copy], check=True)
            # The ninth number says how many are on their way.
            if writes(place) == before and before.split()[8] == "0":
                return
            time.sleep(0.02)
        raise AssertionError("the disk is never at rest")
    finally:
        worker.send_signal(signal.SIGCONT)


@pytest.mark.rotated
@pytest.mark.parametrize("disk", DISKS)
def test_what_is_listed_after_a_power_cut_is_whole(disk: str, image: Path, tmp_path: Path) -> None:
    weights, copy, chance = ASSETS / "tiny-qwen3", image.with_suffix(".copy"), random.Random(disk)
    listed, unfinished = 0, 0
    try:
        with (
            hub_server.HubServer({"test/tiny": weights}) as hub,
            mounted(image, tmp_path / "disk", DISKS[disk]) as place,
            working(place, weights, hub.url) as worker,
        ):
            for number in range(MOST):
                if number >= CUTS // len(DISKS) and unfinished > 3:
                    break
                time.sleep(chance.uniform(0.01, 0.5))
                assert worker.poll() is None
                cut(worker, place, image, copy)
                with mounted(copy, tmp_path / "after") as after:
                    store = Store(after / "store")
                    assert store.broken() == ()
                    entries = store.all()
                    assert [damage for entry in entries for damage in store.verify(entry.key)] == []
                    listed, unfinished = listed + len(entries), unfinished + len(store.unfinished())
                    if number % 10 == 9:
                        arguments = [after / "store", weights, hub.url, "1"]
                        subprocess.run([sys.executable, WORKER, *map(str, arguments)], cwd=ROOT, check=True)
    finally:
        copy.unlink(missing_ok=True)
        image.unlink()
    assert listed > CUTS // len(DISKS), "it has never got anything done"
    assert unfinished > 3, "it was never in the middle"


@contextmanager
def working(place: Path, weights: Path, endpoint: str) -> Iterator[subprocess.Popen[Any]]:
    """A worker that has been through once."""
    arguments = [str(WORKER), str(place / "store"), str(weights), endpoint]
    environ = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True
    ) as worker:
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "0\n"
            yield worker
        finally:
            worker.kill()
            worker.wait()
            shutil.rmtree(place / "store", ignore_errors=True)

"""`{tmp}` and `{cache}`: private, short, empty at each start; and one that stays."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from conditions import SLEEP, Seen, only, program, wait_until

from orchestrator.core.launch import Launch
from orchestrator.core.progress import silent
from orchestrator.drivers.local import proc, records
from orchestrator.drivers.local.processes import LocalTarget
from orchestrator.errors import HostError

# Tells its places and what it finds in {tmp}, then leaves a socket, a directory and a link there.
LITTER = """
import os, socket, sys, time
tmp, cache = os.environ["TMPDIR"], sys.argv[1]
print(tmp, cache, oct(os.stat(tmp).st_mode & 0o777), os.listdir(tmp), os.listdir(cache))
socket.socket(socket.AF_UNIX).bind(tmp + "/socket")
os.makedirs(tmp + "/a/b")
open(tmp + "/a/file", "w").close()
os.symlink(cache, tmp + "/a/link")
open(cache + "/compiled", "w").close()
print("littered")
time.sleep(600)
"""
LAUNCH = program(LITTER, "{cache}", env=(("TMPDIR", "{tmp}"),), stop_grace_s=2.0)


def tmp_of(root: Path, name: str) -> Path:
    spec = records.read_spec(root / name)
    assert spec is not None
    return Path(spec.tmp)


def told(target: LocalTarget) -> str:
    wait_until(lambda: target.log_tail("a", 1) == "littered", "the litter")
    return target.log_tail("a", 9).splitlines()[0]


def test_the_private_directory_is_empty_at_each_start_and_gone_at_the_end(target: LocalTarget, root: Path) -> None:
    target.ensure("a", LAUNCH, "")
    tmp, cache = tmp_of(root, "a"), root.parent / "cache"
    assert told(target) == f"{tmp} {cache} 0o700 [] []"
    assert tmp.parent == Path(tempfile.gettempdir())
    assert len(tmp.name) == len(f"orch-{os.getuid()}-") + 12
    assert proc.send(Seen(root, "a").engine, signal.SIGKILL)
    wait_until(lambda: only(target, "a").starts == 2, "the restart")
    assert told(target) == f"{tmp} {cache} 0o700 [] ['compiled']"
    target.stop("a", silent)
    assert not tmp.exists()
    assert (cache / "compiled").exists()


def test_two_instances_share_no_private_directory(target: LocalTarget, root: Path) -> None:
    for name in ("a", "b"):
        target.ensure(name, SLEEP, "")
    assert tmp_of(root, "a") != tmp_of(root, "b")
    assert tmp_of(root, "b").is_dir()


def test_what_is_left_of_killed_ones_goes_with_the_instance(target: LocalTarget, root: Path) -> None:
    target.ensure("a", LAUNCH, "")
    told(target)
    tmp, seen = tmp_of(root, "a"), Seen(root, "a")
    for killed in (seen.keeper, seen.engine):
        assert proc.send(killed, signal.SIGKILL)
        wait_until(lambda killed=killed: not proc.alive(killed), "its end")  # type: ignore[misc]
    assert (tmp / "socket").exists()
    target.remove("a")
    assert not tmp.exists()


def test_what_could_not_be_started_leaves_none(target: LocalTarget, root: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        target.ensure("a", Launch(("/nowhere/engine",)), "")
    assert not tmp_of(root, "a").exists()


def test_a_relabelled_instance_keeps_its_private_directory(target: LocalTarget, root: Path) -> None:
    target.ensure("a", SLEEP, "")
    tmp = tmp_of(root, "a")
    target.relabel("a", Launch((*SLEEP.argv, "x")), "")
    assert tmp_of(root, "a") == tmp


@pytest.mark.parametrize("kind", ["link", "file", "foreign"])
def test_a_name_that_somebody_else_took_is_not_used(target: LocalTarget, root: Path, tmp_path: Path, kind: str) -> None:
    target.ensure("a", SLEEP, "")
    tmp = tmp_of(root, "a")
    target.stop("a", silent)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    if kind == "link":
        tmp.symlink_to(tmp_path / "mine")
    elif kind == "file":
        tmp.touch()
    elif os.geteuid() == 0:
        tmp.mkdir()
        os.chown(tmp, 12345, 12345)
    else:
        pytest.skip("only root can give a directory away")
    try:
        with pytest.raises(HostError, match="is not this user's directory"):
            target.ensure("a", SLEEP, "")
        target.remove("a")
        assert os.path.lexists(tmp)
        assert (tmp_path / "mine" / "file").exists()
    finally:
        tmp.rmdir() if kind == "foreign" else tmp.unlink()


def test_the_shared_directory_can_be_elsewhere(tmp_path: Path) -> None:
    target = LocalTarget(tmp_path / "p", tmp_path / "l", Path, sys.executable, cache=tmp_path / "elsewhere" / "cache")
    try:
        target.ensure("a", program("import sys, time; print(sys.argv[1]); time.sleep(600)", "{cache}"), "")
        assert wait_until(lambda: target.log_tail("a", 1), "its output") == str(tmp_path / "elsewhere" / "cache")
        assert (tmp_path / "elsewhere" / "cache").is_dir()
        assert not (tmp_path / "cache").exists()
    finally:
        target.stop("a", silent)

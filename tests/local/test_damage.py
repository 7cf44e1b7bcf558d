"""Records that are damaged, of another version, or gone: seen, told, and cleaned up; what no record names is ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conditions import SLEEP, Seen, only, program, wait_until

from orchestrator.core.launch import InstanceState
from orchestrator.core.progress import silent
from orchestrator.drivers.local import proc, records
from orchestrator.drivers.local.processes import LocalTarget
from orchestrator.errors import HostError

Harm = Callable[[Path], object]


def change(name: str, **fields: object) -> Harm:
    """Set fields of a record."""

    def harm(directory: Path) -> None:
        record = json.loads((directory / name).read_text()) | fields
        (directory / name).write_text(json.dumps(record))

    return harm


def lose(name: str, *fields: str) -> Harm:
    """Take fields out of a record."""

    def harm(directory: Path) -> None:
        record = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps({key: record[key] for key in record if key not in fields}))

    return harm


def halve(name: str) -> Harm:
    def harm(directory: Path) -> None:
        text = (directory / name).read_text()
        (directory / name).write_text(text[: len(text) // 2])

    return harm


HARMS: list[tuple[str, Harm]] = [
    ("spec.json", halve("spec.json")),
    ("spec.json", lose("spec.json", "log")),
    ("spec.json", change("spec.json", argv=[])),
    ("spec.json", change("spec.json", argv="x", port="y", stop_grace_s="z", label={})),
    ("spec.json", change("spec.json", env=[[1]])),
    ("spec.json", lambda directory: (directory / "spec.json").unlink()),
    ("spec.json", lambda directory: (directory / "spec.json").write_bytes(b"\xff")),
    ("state.json", halve("state.json")),
    ("state.json", lose("state.json", "boot")),
    ("state.json", change("state.json", engine=["pid", "start"])),
    ("state.json", change("state.json", keeper=[1])),
    ("state.json", change("state.json", last_exit=["code"])),
    ("state.json", lambda directory: (directory / "state.json").write_text("[]")),
    ("state.json", lambda directory: [halve(name)(directory) for name in ("spec.json", "state.json")]),
]


@pytest.mark.parametrize("cleaning", ["stop", "remove", "stop without keeper"])
@pytest.mark.parametrize(("name", "harm"), HARMS)
def test_a_damaged_record_is_told_and_can_be_cleaned_up(
    target: LocalTarget, root: Path, name: str, harm: Harm, cleaning: str
) -> None:
    target.ensure("a", SLEEP, "label")
    other = target.ensure("b", SLEEP, "other")
    seen = Seen(root, "a")
    keeper, engine = seen.keeper, seen.engine
    if cleaning == "stop without keeper":
        assert proc.send(keeper, signal.SIGKILL)
        wait_until(lambda: not proc.alive(keeper), "the keeper's end")
    harm(root / "a")
    damaged, sound = target.observe()
    assert (damaged.name, damaged.state, damaged.label) == ("a", InstanceState.RUNNING, damaged.label)
    assert damaged.supervised is (cleaning != "stop without keeper")
    assert name in damaged.problem
    assert sound == other
    with pytest.raises(HostError, match="damaged"):
        target.ensure("a", SLEEP, "label")
    if cleaning != "remove":
        target.stop("a", silent)
        assert only(target, "a").state is InstanceState.STOPPED
        assert not proc.alive(engine)
    target.remove("a")
    assert not proc.alive(keeper)
    assert not proc.alive(engine)
    assert target.observe() == (other,)


def test_what_can_be_read_of_a_damaged_record_is_told(target: LocalTarget, root: Path) -> None:
    first = target.ensure("a", SLEEP, "label")
    lose("spec.json", "log")(root / "a")
    seen = only(target, "a")
    assert (seen.label, seen.pid, seen.port, seen.launch.argv) == ("label", first.pid, first.port, ())
    assert "log is missing" in seen.problem
    lose("state.json", "boot")(root / "a")
    assert "boot is missing" in only(target, "a").problem
    (root / "a" / records.SPEC).write_text("{")
    assert only(target, "a").label == ""


def test_fields_of_a_newer_version_are_ignored(target: LocalTarget, root: Path) -> None:
    first = target.ensure("a", SLEEP, "label")
    change("spec.json", newer={"x": 1})(root / "a")
    change("state.json", newer=1)(root / "a")
    assert only(target, "a") == first
    assert target.ensure("a", SLEEP, "label") == first
    change("spec.json", newer={"x": 1})(root / "a")
    assert proc.send(Seen(root, "a").engine, signal.SIGKILL)
    wait_until(lambda: only(target, "a").starts == 2, "the restart")


def test_a_record_of_the_version_before_has_what_is_needed(target: LocalTarget, root: Path) -> None:
    first = target.ensure("a", SLEEP, "label")
    lose("spec.json", "tmp", "cache")(root / "a")
    assert only(target, "a") == first


def test_what_was_damaged_starts_anew_once_it_is_stopped(target: LocalTarget, root: Path) -> None:
    target.ensure("a", SLEEP, "label")
    halve("spec.json")(root / "a")
    target.stop("a", silent)
    again = target.ensure("a", SLEEP, "label")
    assert (again.state, again.starts, again.problem) == (InstanceState.RUNNING, 1, "")


def test_a_keeper_whose_directory_is_deleted_ends_its_engine_and_itself(target: LocalTarget, root: Path) -> None:
    child = "import time; print('child'); time.sleep(600)"
    text = (
        "import subprocess, sys; subprocess.run([sys.executable, '-S', '-u', '-c', "
        f"{child!r}], env={{}}, start_new_session=True)"
    )
    target.ensure("a", program(text, stop_grace_s=2.0), "")
    wait_until(lambda: target.log_tail("a", 9) == "child", "the child's start")
    seen = Seen(root, "a")
    keeper, engine = seen.keeper, seen.engine
    (child_process,) = [found for found in proc.members(root / "a", engine) if found != engine]
    spec = records.read_spec(root / "a")
    assert spec is not None
    assert Path(spec.tmp).is_dir()
    shutil.rmtree(root)
    wait_until(lambda: not proc.alive(keeper), "the keeper's end")
    assert not Path(spec.tmp).exists()
    assert not proc.alive(engine)
    assert not proc.alive(child_process)
    assert not root.exists()


def test_a_keeper_whose_directory_was_made_again_leaves_the_new_one_alone(target: LocalTarget, root: Path) -> None:
    target.ensure("a", SLEEP, "")
    seen = Seen(root, "a")
    keeper, engine = seen.keeper, seen.engine
    shutil.rmtree(root)
    new = target.ensure("a", SLEEP, "new")
    state = seen.state
    wait_until(lambda: not proc.alive(keeper), "the old keeper's end")
    assert not proc.alive(engine)
    assert seen.state == state
    assert only(target, "a") == new
    assert (new.state, new.supervised, new.starts, new.label) == (InstanceState.RUNNING, True, 1, "new")


@contextmanager
def stray(environ: dict[str, str], place: Path, own_session: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-S", "-u", "-c", "import time; print(1); time.sleep(600)"]
    with subprocess.Popen(
        argv, env=environ, cwd=place, start_new_session=own_session, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"1\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("how", ["stop", "remove"])
def test_strays_of_a_stopped_instance_are_ended(target: LocalTarget, root: Path, how: str) -> None:
    """Neither keeper nor leader is there, and the state says stopped: the marker or the place tells."""
    for name in ("a", "ab"):
        target.ensure(name, SLEEP, "")
        target.stop(name, silent)
    assert Seen(root, "a").state.state == records.STOPPED
    files = root / "a" / records.FILES
    with (
        stray({proc.MARKER: str(root / "a")}, root) as marked,
        stray({}, files) as at_work,
        stray({proc.MARKER: str(root / "ab")}, root / "ab") as neighbour,
        stray({}, files, own_session=False) as visitor,
    ):
        if how == "stop":
            target.stop("a", silent)
        else:
            target.remove("a")
        assert marked.wait(5) == -signal.SIGTERM
        assert at_work.wait(5) == -signal.SIGTERM
        assert neighbour.poll() is None
        assert visitor.poll() is None


def test_what_cannot_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()
    with pytest.raises(IsADirectoryError):
        records.write_atomic(tmp_path / "record", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["record"]
    records.write_atomic(tmp_path / "other", "text")
    assert (tmp_path / "other").read_text() == "text"
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o600


def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    """A write that fails in the middle, as on a full disk."""
    text = (
        "import resource, signal, sys; from pathlib import Path; from orchestrator.drivers.local import records;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10));"
        f"records.write_atomic(Path({str(tmp_path / 'record')!r}), 'x' * 100)"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", text], capture_output=True, text=True, env=os.environ, check=False
    )
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []

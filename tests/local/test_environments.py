"""Engine environments: real ones, from wheels of a few bytes and without an index."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from conditions import wait_until
from wheels import make_wheel

from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.progress import silent
from orchestrator.drivers.local import proc
from orchestrator.drivers.local.environments import Environments
from orchestrator.errors import HostError, Interrupted

SPEC = EnvironmentSpec(
    engine="tiny",
    version="1.0",
    requirements=("tinypart==2.0", "tinyengine==1.0"),
    metadata=(("tiny-alias", "1.0+cpu"),),
    checks=(
        ("python", "-c", "import tinyengine, tinypart"),
        ("tinyengine",),
        ("python", "-c", "from importlib.metadata import version; assert version('tiny-alias') == '1.0+cpu'"),
    ),
)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What pip's own configuration knows: a directory, and no index."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    make_wheel(directory, "tinypart", "2.0", {"tinypart.py": ""})
    make_wheel(
        directory, "tinyengine", "1.0", {"tinyengine.py": "def main(): print('1.0')"}, "tinyengine = tinyengine:main"
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return directory


@pytest.fixture
def environments(tmp_path: Path, wheels: Path) -> Environments:
    return Environments(tmp_path / "environments")


@pytest.mark.long
def test_made_by_two_at_once_checked_broken_mended_removed(
    environments: Environments, wheels: Path, tmp_path: Path
) -> None:
    assert environments.observe() == ()
    # After the last line that pip prints there is still most of the work to do.
    many = {f"tinypart_{number}.py": "x = 1\n" * 20_000 for number in range(60)}
    make_wheel(wheels, "tinypart", "2.0", many | {"tinypart.py": ""})
    told: list[tuple[str, int, int]] = []
    paths: list[Path] = []

    def install() -> None:
        paths.append(environments.ensure(SPEC, lambda *what: told.append(what)))

    threads = [threading.Thread(target=install) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(paths) == 2
    (bin_directory,) = set(paths)
    assert any(what.startswith("waiting for another installation") for what, _, _ in told)
    assert subprocess.check_output([bin_directory / "tinyengine"]) == b"1.0\n"
    (seen,) = environments.observe()
    assert (seen.name, seen.engine, seen.version, seen.problem) == (SPEC.name, "tiny", "1.0", "")
    assert seen.size > 1_000_000
    assert ("checking: tinyengine", 1, 3) in told
    assert {total for what, _, total in told if what.startswith("pip: ")} == {2}
    unpacking = [(done, total) for what, done, total in told if what == "pip: unpacking packages"]
    assert unpacking == sorted(unpacking)
    assert unpacking[0] == (0, 2)
    assert environments.bin(SPEC.name) == bin_directory
    assert environments.check(SPEC, silent) == ""
    listed = subprocess.check_output([bin_directory / "python", "-m", "pip", "list", "--format=json"])
    assert {"name": "tiny-alias", "version": "1.0+cpu"} in json.loads(listed)
    before = bin_directory.stat()
    assert environments.ensure(SPEC, silent) == bin_directory
    assert bin_directory.stat().st_ctime_ns == before.st_ctime_ns
    _break_and_mend(environments, bin_directory, tmp_path)
    environments.remove(SPEC.name)
    environments.remove(SPEC.name)
    assert environments.observe() == ()
    assert [entry.name for entry in (tmp_path / "environments").iterdir()] == [f".{SPEC.name}.lock"]


def _break_and_mend(environments: Environments, bin_directory: Path, tmp_path: Path) -> None:
    """What is broken is told, and made again."""
    next(bin_directory.parent.glob("lib/*/site-packages/tinypart.py")).unlink()
    assert "`python -c import tinyengine, tinypart` failed with code 1" in environments.check(SPEC, silent)
    (bin_directory / "python").unlink()
    (seen,) = environments.observe()
    assert seen.problem == "its Python interpreter is gone"
    environments.ensure(SPEC, silent)
    assert environments.observe()[0].problem == ""
    assert environments.check(SPEC, silent) == ""
    moved = (tmp_path / "environments").rename(tmp_path / "moved")
    assert "cannot be moved" in Environments(moved).observe()[0].problem
    moved.rename(tmp_path / "environments")
    record = bin_directory.parent / "environment.json"
    record.write_text("{")
    assert "damaged" in environments.observe()[0].problem


@pytest.mark.long
def test_a_killed_installation_is_unfinished_and_made_again(
    environments: Environments, wheels: Path, tmp_path: Path
) -> None:
    """kill -9 in the middle, here while a check runs, when everything is installed already."""
    reached = tmp_path / "reached"
    slow = EnvironmentSpec(
        engine="tiny",
        version="1.0",
        requirements=("tinypart==2.0",),
        checks=(("python", "-c", f"import pathlib, time; p = pathlib.Path({str(reached)!r}); "
                 "p.exists() or (p.touch(), time.sleep(600))"),),
    )  # fmt: skip
    text = (
        "import sys; from pathlib import Path; from orchestrator.core.environment import EnvironmentSpec;"
        "from orchestrator.core.progress import silent;"
        "from orchestrator.drivers.local.environments import Environments;"
        f"Environments(Path({str(tmp_path / 'environments')!r})).ensure({slow!r}, silent)"
    )
    with subprocess.Popen([sys.executable, "-c", text]) as installer:
        wait_until(reached.exists, "the check to run", 60)
        installer.send_signal(signal.SIGKILL)
    assert _running(reached) != []
    (seen,) = environments.observe()
    assert (seen.name, seen.engine, seen.version) == (slow.name, "tiny", "1.0")
    assert "not finished" in seen.problem
    with pytest.raises(HostError, match="is not ready: its installation was not finished"):
        environments.bin(slow.name)
    leftover = tmp_path / "environments" / slow.name / "leftover"
    leftover.touch()
    environments.ensure(slow, silent)
    assert _running(reached) == []
    assert environments.observe()[0].problem == ""
    assert not leftover.exists()


def test_a_missing_package_is_told_without_noise(environments: Environments, tmp_path: Path) -> None:
    """An index for other requirements is not asked for it."""
    make_wheel(tmp_path, "nosuchthing", "3.0", {})
    spec = EnvironmentSpec("tiny", "1.0", ("tinypart==2.0", "nosuchthing==3.0"), (), (tmp_path.as_uri(),))
    with pytest.raises(HostError, match="not available in its pinned version") as caught:
        environments.ensure(spec, silent)
    assert "No matching distribution found for nosuchthing==3.0" in caught.value.detail
    assert "Collecting" not in caught.value.detail
    assert "pip config list" in caught.value.hint


def test_an_unreachable_index_is_told(environments: Environments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{proc.free_port()}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(HostError, match="index cannot be reached") as caught:
        environments.ensure(EnvironmentSpec("tiny", "1.0", ("nosuchthing==3.0",)), silent)
    assert "network" in caught.value.hint


def test_indexes_are_for_what_pip_does_not_have_itself(
    environments: Environments, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere" / "tinypart"
    elsewhere.mkdir(parents=True)
    wheel = next(wheels.glob("tinypart*")).rename(elsewhere / "tinypart-2.0-py3-none-any.whl")
    (elsewhere / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "empty").as_uri())
    index = elsewhere.parent.as_uri()
    spec = EnvironmentSpec("tiny", "1.0", SPEC.requirements, ("tinypart==2.0",), (index,), checks=SPEC.checks[:2])
    assert environments.ensure(spec, silent).is_dir()


class Index(SimpleHTTPRequestHandler):
    """A package index that wants a name and a password; `asked` are the paths for which it got them."""

    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(b"user:secret").decode()
        if self.headers["Authorization"] != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="index"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def private_index(tmp_path: Path) -> Iterator[str]:
    Index.asked = []
    (tmp_path / "private").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, directory=str(tmp_path / "private"))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://user:secret@127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_password_of_an_index_is_written_nowhere(
    environments: Environments, wheels: Path, tmp_path: Path, private_index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tinyengine is at the given index only, tinypart at the user's own extra one, asked for in the same run."""
    for name, place in (("tinyengine", tmp_path / "private"), ("tinypart", tmp_path / "own")):
        (place / name).mkdir(parents=True)
        wheel = next(wheels.glob(f"{name}*")).rename(place / name / next(wheels.glob(f"{name}*")).name)
        (place / name / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "empty").as_uri())
    configuration = tmp_path / "pip.conf"
    configuration.write_text(f"[global]\nextra-index-url = {(tmp_path / 'own').as_uri()}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    command_lines: set[str] = set()

    def look(what: str, done: int, total: int) -> None:
        mine = proc.members(tmp_path / "environments" / spec.name, None)
        command_lines.update(proc.command_line(identity.pid) for identity in mine)

    names = ("tinypart==2.0", "tinyengine==1.0")
    spec = EnvironmentSpec("tiny", "1.0", names, names, (private_index,), checks=SPEC.checks[:2])
    environments.ensure(spec, look)
    assert Index.asked
    assert any("pip install" in line for line in command_lines)
    assert [line for line in command_lines if "secret" in line] == []
    record = tmp_path / "environments" / spec.name / "environment.json"
    assert record.stat().st_mode & 0o777 == 0o600
    written = [record, *record.parent.glob("lib/*/site-packages/tiny*/*")]
    assert [path for path in written if b"secret" in path.read_bytes()] == []


def test_errors_are_told_with_what_was_said_and_without_the_password_of_an_index(
    environments: Environments, tmp_path: Path, private_index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", private_index.replace("secret", "wrong-secret"))
    check = ("python", "-c", f"import sys; print('no such CPU'); sys.exit('{private_index}/simple')")
    missing = EnvironmentSpec("tiny", "1.0", ("nosuchthing==3.0",), ("nosuchthing==3.0",), (private_index,))
    for spec, message, detail in (
        (missing, "nosuchthing", "nosuchthing"),
        (EnvironmentSpec("tiny", "1.0", (), checks=(check,)), "failed with code 1", "no such CPU"),
    ):
        with pytest.raises(HostError) as caught:
            environments.ensure(spec, silent)
        assert message in f"{caught.value.message} {caught.value.detail}"
        assert detail in caught.value.detail
        assert "secret" not in caught.value.detail
        assert "not finished" in {seen.name: seen.problem for seen in environments.observe()}[spec.name]
        installing = tmp_path / "environments" / spec.name / "installing"
        assert installing.stat().st_mode & 0o777 == 0o600
        assert "indexes" not in json.loads(installing.read_text())


def test_too_little_disk_is_told_before_anything_is_made(environments: Environments) -> None:
    with pytest.raises(HostError, match="needs 1e\\+09 GB of disk space"):
        environments.ensure(EnvironmentSpec("tiny", "1.0", ("tinypart==2.0",), size_gb=1e9), silent)
    assert environments.observe() == ()


def test_the_wait_for_another_installation_can_be_interrupted(environments: Environments) -> None:
    told: list[str] = []

    def second(what: str, done: int, total: int) -> None:
        told.append(what)
        raise Interrupted

    with pytest.raises(Interrupted):  # the first one's progress runs while it installs
        environments.ensure(SPEC, lambda what, done, total: environments.ensure(SPEC, second) and None)
    assert told == [f"waiting for another installation of {SPEC.name}"]
    with pytest.raises(HostError, match="is being installed"):
        environments.ensure(SPEC, lambda what, done, total: environments.remove(SPEC.name))


def test_an_interrupt_ends_pip_and_all_it_started(environments: Environments, wheels: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time; open({str(mark)!r}, 'w').close(); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    spec = EnvironmentSpec("tiny", "1.0", ("tinypart==2.0",), checks=(("python", "-c", parent),))

    def progress(what: str, done: int, total: int) -> None:
        if mark.exists():
            raise Interrupted

    with pytest.raises(Interrupted):
        environments.ensure(spec, progress)
    assert _running(mark) == []


def _running(mark: Path) -> list[int]:
    """The living processes with `mark` on their command line."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if str(mark) in proc.command_line(pid)]

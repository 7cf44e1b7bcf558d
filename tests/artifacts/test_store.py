from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.artifacts.store import Store
from orchestrator.artifacts.store_directory import Damage
from orchestrator.core.artifact import FileEntry, Recipe, artifact_key
from orchestrator.errors import HostError, Interrupted, SourceError

SOURCE = "dir:0123"
KEY = artifact_key(Recipe.GGUF_Q6_K, SOURCE)


def build(store: Store, files: dict[str, bytes], key: str = KEY) -> None:
    """Puts `files` into the store."""
    with store.building(key) as turn:
        for name, content in files.items():
            (turn.work / name).parent.mkdir(parents=True, exist_ok=True)
            (turn.work / name).write_bytes(content)
        turn.finish(Recipe.GGUF_Q6_K, SOURCE, {"numpy": "1"})


def entry(path: str, content: bytes) -> FileEntry:
    return FileEntry(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_an_empty_store_holds_nothing(store: Store) -> None:
    assert store.get(KEY) is None
    assert store.all() == ()
    assert store.broken() == ()
    assert store.remove(KEY) is False
    store.sweep()


def test_what_was_finished_is_found_with_its_hashes(store: Store) -> None:
    build(store, {"model.gguf": b"GGUF", "sub/more": b""})
    manifest = store.get(KEY)
    assert manifest is not None
    assert manifest.files == (entry("model.gguf", b"GGUF"), entry("sub/more", b""))
    assert (manifest.key, manifest.recipe, manifest.source) == (KEY, Recipe.GGUF_Q6_K, SOURCE)
    assert (store.path(KEY) / "model.gguf").read_bytes() == b"GGUF"
    assert store.all() == (manifest,)
    assert store.verify(KEY) == []
    assert not (store.root / ".partial" / KEY).exists()


def test_nothing_is_finished_before_finish(store: Store) -> None:
    with store.building(KEY) as turn:
        (turn.work / "model.gguf").write_bytes(b"GGUF")
        assert store.get(KEY) is None
        assert store.all() == ()
    assert store.get(KEY) is None


def test_a_failed_attempt_is_continued(store: Store) -> None:
    with pytest.raises(RuntimeError), store.building(KEY) as turn:
        (turn.work / "half").write_bytes(b"1")
        raise RuntimeError
    with store.building(KEY) as again:
        assert again.work == turn.work
        assert (again.work / "half").read_bytes() == b"1"
    with store.building(KEY, fresh=True) as anew:
        assert list(anew.work.iterdir()) == []
    assert list((store.root / ".trash").iterdir()) == []


def test_a_finished_key_is_not_built_again(store: Store) -> None:
    build(store, {"a": b"1"})
    with store.building(KEY, fresh=True) as turn:
        assert turn.manifest == store.get(KEY)
    assert store.verify(KEY) == []


def test_hashes_that_the_caller_has_are_taken_and_leftovers_go(store: Store) -> None:
    with store.building(KEY) as turn:
        (turn.work / "cache").mkdir()
        (turn.work / "cache" / "x.lock").touch()
        (turn.work / "a").write_bytes(b"1")
        turn.finish(Recipe.WEIGHTS, SOURCE, {}, files=(entry("a", b"1"),))
    assert sorted(path.name for path in store.path(KEY).iterdir()) == ["a", "manifest.json"]
    assert store.verify(KEY) == []


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ((entry("b", b"1"),), "missing"),
        ((entry("a", b"12"),), "1 bytes instead of 2"),
        ((entry("../a", b"1"),), "outside"),
        ((entry("/a", b"1"),), "outside"),
        ((entry("manifest.json", b"1"),), "reserved"),
    ],
)
def test_announced_files_that_are_not_there_are_refused(
    files: tuple[FileEntry, ...], reason: str, store: Store
) -> None:
    with store.building(KEY) as turn:
        (turn.work / "a").write_bytes(b"1")
        with pytest.raises(SourceError, match=reason):
            turn.finish(Recipe.WEIGHTS, SOURCE, {}, files=files)
    assert store.get(KEY) is None
    assert (turn.work / "a").exists()


@pytest.mark.parametrize("name", ["link", "manifest.json"])
def test_files_that_cannot_be_part_of_an_artifact_are_refused(name: str, store: Store) -> None:
    with store.building(KEY) as turn:
        (turn.work / name).symlink_to("/etc/hostname")
        with pytest.raises(SourceError, match="cannot be stored"):
            turn.finish(Recipe.WEIGHTS, SOURCE, {})
    assert store.get(KEY) is None


def test_a_build_killed_after_its_manifest_is_not_finished(store: Store) -> None:
    build(store, {"a": b"1"})
    work = store.root / ".partial" / KEY
    work.parent.mkdir(exist_ok=True)
    store.path(KEY).rename(work)
    assert store.get(KEY) is None
    with store.building(KEY) as turn:
        assert [path.name for path in turn.work.iterdir()] == ["a"]
        turn.finish(Recipe.GGUF_Q6_K, SOURCE, {})
    assert store.verify(KEY) == []


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (lambda root: (root / "a").unlink(), ("a", "missing")),
        (lambda root: (root / "a").write_bytes(b"22"), ("a", "size")),
        (lambda root: (root / "a").write_bytes(b"2"), ("a", "hash")),
        (lambda root: (root / "sub" / "extra").touch(), ("sub/extra", "extra")),
        (lambda root: (root / "link").symlink_to("a"), ("link", "extra")),
        (lambda root: ((root / "a").unlink(), (root / "a").symlink_to("sub/b")), ("a", "unreadable")),
        (lambda root: (root / "manifest.json").unlink(), ("manifest.json", "unreadable")),
        (lambda root: (root / "manifest.json").write_text("{"), ("manifest.json", "unreadable")),
        (lambda root: (root / "manifest.json").write_bytes(b"\xff"), ("manifest.json", "unreadable")),
        (lambda root: (root / "manifest.json").write_text('{"key": 1}'), ("manifest.json", "unreadable")),
    ],
)
def test_verify_finds_the_damage(harm: object, expected: tuple[str, str], store: Store) -> None:
    build(store, {"a": b"1", "sub/b": b"2"})
    assert store.verify(KEY) == []
    assert callable(harm)
    harm(store.path(KEY))
    assert [(damage.path, damage.kind) for damage in store.verify(KEY)] == [expected]


def test_verify_finds_all_damages(store: Store) -> None:
    build(store, {"a": b"1", "b": b"2", "c": b"3"})
    (store.path(KEY) / "a").unlink()
    (store.path(KEY) / "b").write_bytes(b"")
    (store.path(KEY) / "c").write_bytes(b"4")
    (store.path(KEY) / "d").touch()
    assert [damage.kind for damage in store.verify(KEY)] == ["missing", "size", "hash", "extra"]


def test_verify_of_nothing_says_so(store: Store) -> None:
    assert store.verify(KEY) == [Damage(KEY, "", "missing", "it is not in the store")]


def test_verify_reports_progress_and_can_be_interrupted(store: Store) -> None:
    build(store, {"a": b"1", "b": b"22"})
    seen: list[tuple[int, int]] = []
    store.verify(KEY, lambda what, done, total: seen.append((done, total)))
    assert seen == [(1, 3), (3, 3)]

    def stop(what: str, done: int, total: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        store.verify(KEY, stop)


def test_a_manifest_that_names_foreign_files_is_broken(store: Store) -> None:
    build(store, {"a": b"1"})
    manifest = store.path(KEY) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"a"', '"../../a"'))
    assert store.get(KEY) is None
    assert [damage.kind for damage in store.verify(KEY)] == ["unreadable"]


def test_broken_entries_are_reported_and_do_not_hide_the_others(store: Store) -> None:
    build(store, {"a": b"1"})
    build(store, {"a": b"1"}, key="weights-1")
    build(store, {"a": b"1"}, key="weights-2")
    (store.path("weights-1") / "manifest.json").write_text("not JSON")
    (store.path("weights-2") / "manifest.json").write_bytes((store.path(KEY) / "manifest.json").read_bytes())
    (store.root / "a-file").touch()
    (store.root / "a-directory").mkdir()
    assert [manifest.key for manifest in store.all()] == [KEY]
    assert [damage.key for damage in store.broken()] == ["a-directory", "a-file", "weights-1", "weights-2"]


def test_a_broken_entry_is_built_anew(store: Store) -> None:
    build(store, {"a": b"1"})
    (store.path(KEY) / "manifest.json").unlink()
    build(store, {"b": b"2"})
    assert store.verify(KEY) == []
    assert [file.path for file in store.all()[0].files] == ["b"]


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (lambda root: (root / "sub" / "b").unlink(), "missing"),
        (lambda root: (root / "sub" / "b").write_bytes(b""), "size"),
        (lambda root: ((root / "sub" / "b").unlink(), (root / "sub" / "b").symlink_to("../a")), "unreadable"),
        (lambda root: ((root / "sub" / "b").unlink(), (root / "sub").rmdir(), (root / "sub").touch()), "missing"),
    ],
)
def test_an_entry_that_lost_a_file_is_not_finished_and_is_built_anew(harm: object, kind: str, store: Store) -> None:
    build(store, {"a": b"1", "sub/b": b"2"})
    build(store, {"a": b"1"}, key="weights-1")
    assert callable(harm)
    harm(store.path(KEY))
    assert store.get(KEY) is None
    assert [manifest.key for manifest in store.all()] == ["weights-1"]
    assert [(damage.key, damage.path, damage.kind) for damage in store.broken()] == [(KEY, "sub/b", kind)]
    assert kind in [damage.kind for damage in store.verify(KEY)]
    with store.building(KEY) as turn:
        assert turn.manifest is None
    build(store, {"a": b"1", "sub/b": b"2"})
    assert (store.path(KEY) / "sub" / "b").read_bytes() == b"2"
    assert (store.verify(KEY), store.broken()) == ([], ())
    assert store.get(KEY) is not None


def test_looking_at_all_entries_reads_no_file(store: Store) -> None:
    """What the sizes do not show is for verify."""
    build(store, {"a": b"1"})
    (store.path(KEY) / "a").write_bytes(b"2")
    assert [manifest.key for manifest in store.all()] == [KEY]
    assert store.broken() == ()
    assert [damage.kind for damage in store.verify(KEY)] == ["hash"]


def test_removing_deletes_the_artifact_and_what_was_begun(store: Store) -> None:
    build(store, {"a": b"1"})
    assert store.remove(KEY) is True
    assert store.get(KEY) is None
    with store.building(KEY) as turn:
        (turn.work / "half").touch()
    assert store.remove(KEY) is True
    assert not turn.work.exists()
    assert list((store.root / ".trash").iterdir()) == []


def test_sweep_deletes_what_a_killed_removal_left(store: Store) -> None:
    build(store, {"a": b"1"}, key="weights-1")
    build(store, {"a": b"1"})
    trash = store.root / ".trash"
    trash.mkdir(exist_ok=True)
    store.path("weights-1").rename(trash / "weights-1.1")
    (trash / "file").touch()
    store.sweep()
    assert list(trash.iterdir()) == []
    assert [manifest.key for manifest in store.all()] == [KEY]


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", ".trash", "a\n", "é"])
def test_what_is_no_key_is_a_bug(key: str, store: Store) -> None:
    with pytest.raises(ValueError, match="not an artifact key"):
        store.path(key)


def test_a_root_that_cannot_be_made_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="Not a directory") as caught, Store(tmp_path / "file" / "store").building(KEY):
        pytest.fail("not reached")
    assert caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_root_is_a_host_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(HostError, match="Permission denied"), Store(tmp_path / "store").building(KEY):
        pytest.fail("not reached")
    tmp_path.chmod(0o700)


def test_what_another_process_has_announced_counts_as_long_as_it_lives(store: Store) -> None:
    child = Child(store, announced=1000)
    assert child.line() == "building"
    limited = Store(store.root, limit=1500)
    with limited.building("weights-1") as turn:
        with pytest.raises(HostError, match=r"may have 1\.5 kB"):
            turn.expect(600)
        turn.expect(400)
        child.end(kill=True)
        turn.expect(1400)


BUILDING = """
import sys
from pathlib import Path
from orchestrator.artifacts.store import Store
from orchestrator.core.artifact import Recipe

def progress(what, done, total):
    global told
    if not told:
        told = True
        print("waiting", flush=True)

told = False
with Store(Path(sys.argv[1])).building(sys.argv[2], progress) as turn:
    if turn.manifest is not None:
        print("finished already", flush=True)
    else:
        turn.expect(int(sys.argv[3]))
        (turn.work / "a").write_bytes(b"1")
        print("building", flush=True)
        sys.stdin.readline()
        turn.finish(Recipe.WEIGHTS, "dir:1", {})
        print("finished", flush=True)
"""


class Child:
    """Another process that builds KEY and goes on when told to."""

    def __init__(self, store: Store, announced: int = 1) -> None:
        arguments = [sys.executable, "-c", BUILDING, str(store.root), KEY, str(announced)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        self.process.communicate()


def test_two_processes_build_one_key_once(store: Store) -> None:
    first = Child(store)
    assert first.line() == "building"
    second = Child(store)
    assert second.line() == "waiting"
    first.go_on()
    assert first.line() == "finished"
    assert second.line() == "finished already"
    first.end()
    second.end()
    assert store.verify(KEY) == []


def test_another_key_does_not_wait(store: Store) -> None:
    child = Child(store)
    assert child.line() == "building"
    build(store, {"a": b"1"}, key="weights-1")
    assert [manifest.key for manifest in store.all()] == ["weights-1"]
    child.go_on()
    assert child.line() == "finished"
    child.end()


def test_a_killed_builder_leaves_its_turn_and_its_files_to_the_next(store: Store) -> None:
    child = Child(store)
    assert child.line() == "building"
    child.end(kill=True)
    assert store.get(KEY) is None
    with store.building(KEY) as turn:
        assert (turn.work / "a").read_bytes() == b"1"
        turn.finish(Recipe.WEIGHTS, "dir:1", {})
    assert store.verify(KEY) == []


def test_waiting_can_be_interrupted(store: Store) -> None:
    def stop(what: str, done: int, total: int) -> None:
        raise Interrupted

    child = Child(store)
    assert child.line() == "building"
    with pytest.raises(Interrupted), store.building(KEY, stop):
        pytest.fail("not reached")
    with pytest.raises(Interrupted):
        store.remove(KEY, stop)
    child.go_on()
    assert child.line() == "finished"
    child.end()

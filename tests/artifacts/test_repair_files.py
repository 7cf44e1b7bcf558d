"""Putting right an entry of the store, file by file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.artifacts.repair_files import drop_extra, keep_for_rebuild, put_in_place, repairing
from orchestrator.artifacts.store import Store
from orchestrator.core.artifact import FileEntry, Manifest, Recipe
from orchestrator.core.progress import silent
from orchestrator.errors import SourceError

KEY = "weights-1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with an entry of three files."""
    store = Store(tmp_path / "store")
    with store.building(KEY) as turn:
        (turn.work / "sub").mkdir()
        for name in ("a", "sub/b", "c"):
            (turn.work / name).write_text(name)
        turn.finish(Recipe.WEIGHTS, "dir:1", {})
    return store


def entry(path: str, content: str) -> FileEntry:
    return FileEntry(path=path, size=len(content), sha256=hashlib.sha256(content.encode()).hexdigest())


def repair(store: Store, files: dict[str, str]) -> None:
    """Puts these files, made anew, into the entry."""
    manifest = store.own.manifest(KEY)
    assert isinstance(manifest, Manifest)
    with repairing(store, KEY, silent, fresh=True) as work:
        for path, content in files.items():
            (work / path).parent.mkdir(exist_ok=True)
            (work / path).write_text(content)
        put_in_place(store, manifest, work, [entry(path, content) for path, content in files.items()])


@pytest.mark.parametrize(
    "harm",
    [
        lambda root: (root / "sub" / "b").write_text("!"),
        lambda root: (root / "sub" / "b").unlink(),
        lambda root: ((root / "sub" / "b").unlink(), (root / "sub" / "b").symlink_to("../a")),
        lambda root: ((root / "sub" / "b").unlink(), (root / "sub" / "b").mkdir()),
        lambda root: ((root / "sub" / "b").unlink(), (root / "sub").rmdir()),
        lambda root: ((root / "sub" / "b").unlink(), (root / "sub").rmdir(), (root / "sub").write_text("!")),
        lambda root: ((root / "sub" / "b").unlink(), (root / "sub").rmdir(), (root / "sub").symlink_to("/tmp")),
    ],
)
def test_a_broken_file_is_replaced_and_the_others_stay_as_they_are(
    harm: Callable[[Path], object], store: Store
) -> None:
    harm(store.path(KEY))
    assert store.verify(KEY)
    with (store.path(KEY) / "a").open() as reader:
        repair(store, {"sub/b": "sub/b"})
        assert reader.read() == "a"
        assert (store.path(KEY) / "a").stat().st_ino == Path(f"/proc/self/fd/{reader.fileno()}").stat().st_ino
    assert store.verify(KEY) == []
    assert (store.unfinished(), list((store.root / ".trash").iterdir())) == ({}, [])


def test_other_bytes_than_the_manifest_says_replace_nothing(store: Store) -> None:
    (store.path(KEY) / "a").write_text("!")
    (store.path(KEY) / "c").write_text("?")
    with pytest.raises(SourceError, match="c, built again, has SHA-256"):
        repair(store, {"a": "a", "c": "other"})
    assert ((store.path(KEY) / "a").read_text(), (store.path(KEY) / "c").read_text()) == ("!", "?")
    with pytest.raises(SourceError, match="nothing about it"):
        repair(store, {"d": "d"})


def test_what_does_not_belong_to_it_is_removed(store: Store) -> None:
    (store.path(KEY) / "sub" / "more").write_text("!")
    (store.path(KEY) / "link").symlink_to("/etc/hostname")
    drop_extra(store, KEY, [damage.path for damage in store.verify(KEY)])
    assert store.verify(KEY) == []


def test_what_is_kept_for_a_rebuild_is_the_same_bytes_at_two_places(store: Store) -> None:
    (store.path(KEY) / "manifest.json").write_text("{")
    for _ in range(2):
        keep_for_rebuild(store, KEY, silent)
    with store.building(KEY) as turn:
        assert sorted(path.name for path in turn.work.rglob("*") if path.is_file()) == ["a", "b", "c"]
        assert (turn.work / "a").samefile(store.path(KEY) / "a")
        turn.finish(Recipe.WEIGHTS, "dir:1", {})
    assert store.verify(KEY) == []

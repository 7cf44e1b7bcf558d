"""Stores that are not alone in the world: shared ones beside them, limits, disks that are full or read-only."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from disks import remount, small_disk

from orchestrator.artifacts.store import Store
from orchestrator.core.artifact import Recipe, artifact_key
from orchestrator.errors import HostError

SOURCE = "dir:0123"
KEY = artifact_key(Recipe.GGUF_Q6_K, SOURCE)
ADAPTER = artifact_key(Recipe.ADAPTER, SOURCE)


def build(store: Store, content: bytes = b"GGUF", key: str = KEY) -> None:
    """Puts one file into the store."""
    with store.building(key) as turn:
        (turn.work / "model.gguf").write_bytes(content)
        turn.finish(Recipe.GGUF_Q6_K, SOURCE, {})


def everything_in(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """The store of somebody else, with KEY in it."""
    store = Store(tmp_path / "other")
    build(store)
    return store


@pytest.fixture
def store(tmp_path: Path, other: Store) -> Store:
    """A store that shares the other one's entries."""
    return Store(tmp_path / "store", shared=(other.root,))


def test_what_is_finished_in_a_shared_store_is_used_in_place(store: Store, other: Store) -> None:
    before = everything_in(other.root)
    assert store.get(KEY) == other.get(KEY)
    assert store.all() == other.all()
    assert store.path(KEY) == other.path(KEY)
    assert store.directory_of(KEY).root == other.root
    with store.building(KEY, fresh=True) as turn:
        assert turn.manifest == other.get(KEY)
    assert store.verify(KEY) == []
    assert store.remove(KEY) is False
    assert everything_in(other.root) == before


def test_an_own_entry_comes_before_a_shared_one(store: Store, other: Store) -> None:
    own = Store(store.root)
    build(own)
    assert store.path(KEY) == own.path(KEY)
    assert store.all() == own.all()
    (own.path(KEY) / "model.gguf").unlink()
    assert store.path(KEY) == other.path(KEY)
    assert [damage.kind for damage in store.verify(KEY)] == ["missing"]


def test_a_broken_shared_entry_is_passed_over_and_built_here(store: Store, other: Store) -> None:
    (other.path(KEY) / "model.gguf").write_bytes(b"G")
    before = everything_in(other.root)
    assert (store.get(KEY), store.all(), store.broken()) == (None, (), ())
    assert store.path(KEY).parent == store.root
    build(store)
    assert store.path(KEY).parent == store.root
    assert store.verify(KEY) == []
    assert everything_in(other.root) == before


def test_the_first_of_several_shared_stores_that_has_it_whole(tmp_path: Path, other: Store) -> None:
    third = Store(tmp_path / "third")
    build(third)
    both = Store(tmp_path / "store", shared=(other.root, third.root))
    assert both.path(KEY) == other.path(KEY)
    (other.path(KEY) / "manifest.json").unlink()
    assert both.path(KEY) == third.path(KEY)


def test_adapters_are_always_the_stores_own(store: Store, other: Store) -> None:
    """A container that runs sees adapters that come later in one directory only."""
    build(other, key=ADAPTER)
    assert store.get(ADAPTER) is None
    assert ADAPTER not in [manifest.key for manifest in store.all()]
    assert store.path(ADAPTER).parent == store.root
    build(store, key=ADAPTER)
    assert store.get(ADAPTER) is not None


def test_unfinished_builds_of_others_are_not_seen(store: Store, other: Store) -> None:
    with other.building("weights-1") as turn:
        (turn.work / "half").touch()
    assert (store.get("weights-1"), store.unfinished()) == (None, {})


def test_a_limit_counts_what_is_there_and_what_is_begun(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=10_000)
    build(store, b"x" * 4000)
    with store.building("weights-1") as half:
        (half.work / "part").write_bytes(b"x" * 3000)
        # What it has already is part of what it will be.
        half.expect(5000)
    used = store.used()
    assert 7000 < used < 8000
    with store.building("weights-2") as turn:
        turn.expect(10_000 - used)
        with pytest.raises(HostError, match=r"weights-2 needs 2\.\d kB") as caught:
            turn.expect(10_001 - used)
        assert "artifacts gc" in caught.value.hint
        with pytest.raises(HostError, match=r"about 5\.0 kB"):
            turn.expect(5000, about=True)
    store.remove("weights-1")
    with store.building("weights-2") as turn:
        turn.expect(5000)


def test_a_limit_holds_for_several_builds_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=10_000)
    with store.building("weights-1") as one, store.building("weights-2") as other:
        one.expect(6000)
        (one.work / "part").write_bytes(b"x" * 5000)
        with pytest.raises(HostError, match=r"has 6\.\d kB"):
            other.expect(6000)
        other.expect(3500)
    with store.building("weights-2") as turn:
        turn.expect(4500)


def test_what_replaces_a_broken_entry_may_be_as_large_as_it(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=10_000)
    build(store, b"x" * 6000)
    next(path for path in store.path(KEY).iterdir() if path.name != "manifest.json").write_bytes(b"x" * 5999)
    with store.building(KEY) as turn:
        turn.expect(6000)
        with pytest.raises(HostError):
            turn.expect(12_000)


def test_without_a_limit_nothing_is_too_large(tmp_path: Path) -> None:
    with Store(tmp_path).building(KEY) as turn:
        turn.expect(10**18)


def test_a_store_on_a_read_only_disk_can_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        store = Store(disk / "store")
        build(store)
        remount(disk, "ro")
        assert [manifest.key for manifest in store.all()] == [KEY]
        assert store.verify(KEY) == []
        with store.building(KEY) as turn:
            assert turn.manifest is not None
        for change in (lambda: store.remove(KEY), lambda: build(store, key="weights-1")):
            with pytest.raises(HostError, match="Read-only") as caught:
                change()
            assert "read-only" in caught.value.hint
        remount(disk, "rw")
        assert (store.verify(KEY), store.unfinished()) == ([], {})


def test_a_disk_that_is_full_at_the_end_leaves_no_entry(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        store = Store(disk / "store")
        with store.building(KEY) as turn:
            (turn.work / "model.gguf").write_bytes(b"GGUF")
            fill(disk / "ballast")
            with pytest.raises(HostError, match="No space left") as caught:
                turn.finish(Recipe.GGUF_Q6_K, SOURCE, {})
        assert "Free some disk space" in caught.value.hint
        assert (store.get(KEY), store.all(), list(store.unfinished())) == (None, (), [KEY])
        (disk / "ballast").unlink()
        with store.building(KEY) as turn:
            turn.finish(Recipe.GGUF_Q6_K, SOURCE, {})
        assert store.verify(KEY) == []


def fill(path: Path) -> None:
    """Takes all that a disk has left."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)

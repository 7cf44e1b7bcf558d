"""What plan and run rely on of the store and of the records; in memory and on disk."""

from __future__ import annotations

import pytest
from fakes.asks import adapter, tiny

from orchestrator.core.artifact import Manifest, Recipe, artifact_key
from orchestrator.core.deployment import DeploymentSpec, Desired
from orchestrator.core.keys import ApiKey, KeyRing, digest_of
from orchestrator.drivers.base import ApiKeys, Records, Store

KEY = artifact_key(Recipe.GGUF_Q6_K, "dir:tiny")
OTHER = artifact_key(Recipe.WEIGHTS, "dir:tiny")


def make(store: Store, key: str = KEY) -> Manifest:
    with store.building(key) as building:
        assert building.manifest is None
        # The fake one's directory is only a name.
        if building.work.exists():
            (building.work / "model.gguf").write_text("made")
        return building.finish(Recipe.GGUF_Q6_K, "dir:tiny", {"orch": "1"})


def test_a_finished_entry_is_found(store: Store) -> None:
    assert (store.get(KEY), store.all()) == (None, ())
    manifest = make(store)
    assert (manifest.key, manifest.recipe, manifest.source) == (KEY, Recipe.GGUF_Q6_K, "dir:tiny")
    assert [file.path for file in manifest.files] == ["model.gguf"]
    assert (store.get(KEY), store.all()) == (manifest, (manifest,))
    assert store.path(KEY).name == KEY


def test_what_is_announced_fits_where_no_limit_is(store: Store) -> None:
    with store.building(KEY) as building:
        building.expect(10**18, about=True)
    assert store.get(KEY) is None


@pytest.mark.parametrize("fresh", [False, True])
def test_the_second_turn_sees_what_the_first_one_finished(store: Store, fresh: bool) -> None:
    manifest = make(store)
    with store.building(KEY, fresh=fresh) as building:
        assert building.manifest == manifest
    assert store.get(KEY) == manifest


def test_a_build_that_fails_leaves_no_entry(store: Store) -> None:
    with pytest.raises(RuntimeError), store.building(KEY):
        raise RuntimeError
    assert (store.get(KEY), store.all()) == (None, ())
    assert make(store) == store.get(KEY)


def test_entries_are_listed_by_key(store: Store) -> None:
    made = {make(store, key).key for key in (OTHER, KEY)}
    assert [manifest.key for manifest in store.all()] == sorted(made)


def test_an_entry_is_read_ahead_as_far_as_there_is_room(store: Store) -> None:
    manifest = make(store)
    seen: list[int] = []
    path = store.path(KEY)
    assert store.read_ahead(path, 10**9, lambda what, done, total: seen.append(done)) == manifest.size
    assert seen[-1] == manifest.size
    assert store.read_ahead(path / "model.gguf", 1) == 1


def desired(engine: str, *adapters: str) -> Desired:
    profile = tiny()
    spec = DeploymentSpec(profile=profile, engine=engine, target="local")
    return Desired(spec=spec, adapters=tuple(adapter(name, profile) for name in adapters))


def test_what_is_recorded_is_read_as_it_was(records: Records) -> None:
    assert records.desired() == {}
    first = desired("llamacpp", "a", "b")
    second = first.changed_to(desired("vllm").spec)
    records.record("tiny", first)
    assert records.desired() == {"tiny": first}
    records.record("tiny", second)
    records.record("other", first)
    assert records.desired() == {"other": first, "tiny": second}
    assert records.desired()["tiny"].before == first.served


def test_none_forgets_also_what_is_not_there(records: Records) -> None:
    records.record("tiny", desired("llamacpp"))
    for _ in range(2):
        records.record("tiny", None)
        assert records.desired() == {}


def test_how_long_a_start_took_is_known_the_next_time(records: Records) -> None:
    assert records.starts() == {}
    records.note_start("local vllm weights-1", 41.27)
    records.note_start("local llamacpp gguf-1", 2.0)
    records.note_start("local vllm weights-1", 38.0)
    assert records.starts() == {"local vllm weights-1": 38.0, "local llamacpp gguf-1": 2.0}


def test_what_is_noted_of_a_kind_is_read_as_it_was(records: Records) -> None:
    assert records.noted("proofs", "tiny") is None
    for value in ({"a": [1, "x"]}, {"b": None}):
        records.note("proofs", "tiny", value)
        assert records.noted("proofs", "tiny") == value
    assert records.noted("answers", "tiny") is None


RING = KeyRing((ApiKey("one", digest_of("the key"), "2026-01-31T12:00:00Z", expires="2027-01-31T12:00:00Z"),))


def test_keys_are_read_as_they_were_written(keys: ApiKeys) -> None:
    assert keys.read() == KeyRing()
    keys.write(RING)
    assert keys.read() == RING
    keys.write(RING.removed("one"))
    assert keys.read() == KeyRing()


def test_the_old_file_goes_and_the_keys_stay(keys: ApiKeys) -> None:
    keys.write(RING)
    keys.drop_old_file()
    keys.drop_old_file()
    assert (keys.has_old_file, keys.read()) == (False, RING)

"""orch.lock as text, and what differs between two of them."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.asks import PINS, tiny

from orchestrator.core.artifact import FileEntry, Recipe
from orchestrator.core.lock_file import (
    NOTES,
    Lock,
    LockedEntry,
    LockedProfile,
    differences,
    lock_text,
    locked_engine,
    parse_lock,
    pinned_by,
    profile_digest,
    stated,
)
from orchestrator.core.profile import Profile
from orchestrator.core.weights import HubFile
from orchestrator.engines.settings import said_settings
from orchestrator.errors import SourceError

COMMIT = "c" * 40
SOURCE = f"hub:owner/name@{COMMIT}"
A, B = "a" * 64, "b" * 64
WEIGHTS = LockedEntry(
    recipe=Recipe.WEIGHTS, source=SOURCE, files={"config.json": f"git:{'1' * 40} 7", "m.safetensors": f"sha256:{A} 9"}
)
GGUF = LockedEntry(
    recipe=Recipe.GGUF_Q6_K,
    source=SOURCE,
    builder={"format": "1", "numpy": "2.4"},
    files={"model.gguf": f"sha256:{B} 5"},
)


def lock(digest: str = "1", gguf: LockedEntry | None = GGUF, **entry: Any) -> Lock:
    """A lock of weights and one GGUF; `entry` changes the weights."""
    entries = {"weights-1": WEIGHTS.model_copy(update=entry)} | ({"gguf-1": gguf} if gguf is not None else {})
    return Lock(
        format=1,
        orch="1.0",
        weights="weights-1",
        profile=LockedProfile(name="tiny", digest=digest),
        entries=entries,
        engines={name: locked_engine(pin) for name, pin in PINS.items()},
    )


def changed(**update: Any) -> LockedEntry:
    return GGUF.model_copy(update=update)


def test_a_lock_is_read_as_it_was_written() -> None:
    assert parse_lock(lock_text(lock()), "orch.lock") == lock()


def test_its_text_has_a_line_per_file_and_does_not_depend_on_the_order() -> None:
    text = lock_text(lock())
    assert f'"model.gguf" = "sha256:{B} 5"\n' in text
    turned = dict(reversed(lock().entries.items()))
    assert lock_text(lock().model_copy(update={"entries": turned})) == text
    other = lock_text(lock(gguf=changed(files={"model.gguf": f"sha256:{A} 5"})))
    assert sum(one != two for one, two in zip(text.splitlines(), other.splitlines(), strict=True)) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("format = 2\n", "format 2"),
        ("", "format None"),
        ("format = ", "not a lock file"),
        ("format = 1\n", "not a lock file"),
        (lock_text(lock()).replace(f"sha256:{B}", "sha256:b"), "not a lock file"),
        (lock_text(lock()).replace('recipe = "gguf-q6_k"', 'recipe = "zip"'), "not a lock file"),
        (lock_text(lock()).replace('weights = "weights-1"', 'weights = "weights-2"'), "weights-2"),
    ],
)
def test_what_is_no_lock(text: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as error:
        parse_lock(text, "orch.lock")
    assert "orch lock" in error.value.hint


def test_the_same_has_no_differences() -> None:
    assert differences(lock(), lock()) == ()


@pytest.mark.parametrize(
    ("here", "kinds"),
    [
        (lock(digest="2"), ["profile"]),
        (lock(source="hub:owner/name@" + "d" * 40, files={}), ["source"]),
        (lock(gguf=None), ["key"]),
        (lock(gguf=changed(builder={"format": "1", "numpy": "2.5"})), ["versions"]),
        (lock(gguf=changed(files={"model.gguf": f"sha256:{A} 5"})), ["files"]),
        (lock(gguf=changed(files={"model.gguf": f"sha256:{B} 5", "more": f"sha256:{B} 5"})), ["files"]),
        (lock(gguf=changed(files={})), ["missing"]),
        (lock(files={}), ["unneeded"]),
        (lock(gguf=changed(files={}), files={}), ["missing", "missing"]),
        (lock(files=WEIGHTS.files | {"config.json": f"sha256:{A} 7"}), []),
        (lock(files=WEIGHTS.files | {"config.json": f"sha256:{A} 8"}), ["files"]),
        (lock(files={"m.safetensors": f"sha256:{A} 9"}), ["files"]),
        (lock().model_copy(update={"orch": "2.0"}), []),
        (lock().model_copy(update={"engines": {}}), ["engine"] * 6),
    ],
)
def test_what_differs(here: Lock, kinds: list[str]) -> None:
    assert [one.kind for one in differences(lock(), here)] == kinds


def test_what_was_not_made_there_cannot_differ() -> None:
    (note,) = differences(lock(gguf=changed(files={})), lock())
    assert (note.kind, note.what) == ("unknown", "gguf-1")
    assert note.kind in NOTES


def test_a_directory_of_weights_is_known_by_its_hash_alone() -> None:
    of_directory = lock(source="dir:1", files={})
    assert differences(of_directory, of_directory) == ()


def digest_of(profile: Profile) -> str:
    return profile_digest(profile, said_settings(profile))


@pytest.mark.parametrize(
    ("engines", "digest"),
    [
        ({}, "e021010b452e3bd0af721cc14736316a43d65a10bc18fb03a05d7b862c1facd5"),
        ({"vllm": {"kv_cache_mib": 1024}}, "140d9f96e1bda2a28f73426df905a58d527539d89a88c9f6383441a2b8428c98"),
        (
            {"ollama": {"recipes": ["gguf-q8_0"], "flash_attention": True}, "llamacpp": {"threads": 2}},
            "7f5fdd825d1db204120d5acb8ec1a6998e30d0b372cd0efa336da947e8f4ccf3",
        ),
    ],
)
def test_lock_files_of_earlier_versions_stay_true(engines: dict[str, Any], digest: str) -> None:
    """What was computed when profiles had a field per engine; the second says of vLLM what goes without saying."""
    assert digest_of(tiny(engines=engines)) == digest


def test_the_digest_of_a_profile_is_of_what_it_says_and_not_of_where_things_lie() -> None:
    digest = digest_of(tiny())
    for same in (
        tiny(description="another"),
        tiny(weights={"path": "/elsewhere"}),
        tiny(serving={"parallel": 2}),
        tiny(sampling={"seed": None}),
    ):
        assert digest_of(same) == digest
    for other in (
        tiny(serving={"context": 1024}),
        tiny(public_names=["tiny"]),
        tiny(engines={"vllm": {"recipes": ["weights"]}}),
        tiny(adapters=[{"name": "a", "path": "/a"}]),
    ):
        assert digest_of(other) != digest
    here, there = (tiny(adapters=[{"name": "a", "path": path}]) for path in ("/a", "/b"))
    assert digest_of(here) == digest_of(there)


def test_a_branch_is_taken_at_the_locked_commit_and_a_commit_is_left_alone() -> None:
    branch = tiny(weights={"repo": "owner/name", "revision": "main"})
    assert pinned_by(lock(), branch).weights.revision == COMMIT
    ready = tiny(artifacts={"gguf-q6_k": {"repo": "owner/name", "revision": "main", "file": "q6.gguf"}})
    assert [one.revision for one in pinned_by(lock(), ready).artifacts.values()] == [COMMIT]
    for kept in (
        tiny(weights={"repo": "owner/name", "revision": "d" * 40}),
        tiny(weights={"repo": "owner/other", "revision": "main"}),
        tiny(),
    ):
        assert pinned_by(lock(), kept) == kept


def test_a_hubs_word_of_a_file() -> None:
    files = (HubFile("small", 3, None, "1" * 40), HubFile("large", 4, A, "2" * 40))
    assert stated(files) == {"small": f"git:{'1' * 40} 3", "large": f"sha256:{A} 4"}
    assert stated((FileEntry(path="large", size=4, sha256=A),)) == {"large": f"sha256:{A} 4"}

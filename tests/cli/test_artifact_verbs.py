"""orch artifacts and orch engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from orch_command import Orch


@pytest.fixture
def key(orch: Orch, hub: Any) -> str:
    """The key of the tiny weights, pulled."""
    orch.run("pull", "--repo", "test/tiny")
    (row,) = orch.run("artifacts", "ls", "--json").lines
    return str(row["key"])


def test_an_empty_store(orch: Orch) -> None:
    assert orch.run("artifacts", "ls").out == "Artifacts: none.\n"
    assert "0 verified" in orch.run("artifacts", "verify").out


def test_ls_shows_whole_names_where_no_terminal_is(orch: Orch, key: str) -> None:
    (row,) = orch.run("artifacts", "ls", "--json").lines
    title, head, line = orch.run("artifacts", "ls").out.splitlines()
    assert (title, head.split()) == ("Artifacts", ["key", "size", "created", "source"])
    assert line.split()[0] == key
    assert line.endswith("@" + row["source"].rpartition("@")[2][:12])


@pytest.mark.parametrize(
    ("damage", "kind"),
    [("flip", "hash"), ("cut", "size"), ("lose", "missing"), ("add", "extra"), ("unlist", "unreadable")],
)
def test_damage_is_9_and_names_the_file(orch: Orch, key: str, damage: str, kind: str) -> None:
    entry = orch.home / "store" / key
    weights = entry / "model.safetensors"
    if damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "lose":
        weights.unlink()
    elif damage == "add":
        (entry / "more.txt").write_text("more")
    else:
        (entry / "manifest.json").write_text("{")
    (row,) = (row for row in orch.run("artifacts", "verify", "--json", code=9).lines if "kind" in row)
    assert (row["key"], row["kind"]) == (key, kind)
    assert row["path"] == {"add": "more.txt", "unlist": "manifest.json"}.get(damage, "model.safetensors")
    assert row["path"] in orch.run("artifacts", "verify", key, code=9).out
    orch.run("artifacts", "rm", key)
    orch.run("artifacts", "verify")
    assert not entry.exists()


def test_what_is_removed_is_gone_and_can_be_pulled_again(orch: Orch, key: str) -> None:
    assert orch.run("artifacts", "rm", key, "--json").lines == [{"removed": key}]
    assert orch.run("artifacts", "ls", "--json").lines == []
    assert orch.run("pull", "--repo", "test/tiny", "--json").steps("done") != []


@pytest.mark.parametrize("verb", ["verify", "rm"])
@pytest.mark.parametrize("name", ["weights-0000000000000000", "../records", "/etc", ""])
def test_keys_that_are_none(orch: Orch, verb: str, name: str) -> None:
    done = orch.run("artifacts", verb, name, code=10)
    assert "orch artifacts ls" in done.err
    assert "Traceback" not in done.err


def test_entries_of_a_shared_store_are_used_in_place_and_never_removed(orch: Orch, key: str, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (orch.home / "store").rename(shared)
    assert orch.run("artifacts", "ls", "--json").lines == []
    orch.env["ORCH_STORES"] = str(shared)
    (row,) = orch.run("artifacts", "ls", "--json").lines
    assert (row["key"], row["place"]) == (key, str(shared))
    assert orch.run("pull", "--repo", "test/tiny", "--json").steps("done") == []
    assert orch.run("artifacts", "verify", "--json").lines[-1] == {"verified": [key]}
    assert str(shared) in orch.run("artifacts", "rm", key, code=5).err
    (shared / key / "more").touch()
    assert f"It is in the shared store {shared}" in orch.run("artifacts", "verify", "--repair", code=9).out
    assert (shared / key / "more").exists()
    orch.env["ORCH_STORES"] = str(tmp_path / "unmounted")
    assert "ORCH_STORES" in orch.run("artifacts", "ls", code=4).err


def test_a_pull_beyond_the_limit_is_refused_before_its_first_byte(orch: Orch, hub: Any) -> None:
    orch.env["ORCH_STORE_LIMIT"] = "1MB"
    done = orch.run("pull", "--repo", "test/tiny", code=4)
    assert "may have 1.0 MB" in done.err
    assert "orch artifacts gc" in done.err
    assert [request.path for request in hub.requests if "/resolve/" in request.path] == []
    orch.env["ORCH_STORE_LIMIT"] = "lots"
    assert "ORCH_STORE_LIMIT" in orch.run("artifacts", "ls", code=2).err


def test_engines_ls_says_what_each_runs_from(orch: Orch) -> None:
    orch.env["PATH"] = "/nonexistent"
    rows = {row["engine"]: row for row in orch.run("engines", "ls", "--json").lines}
    assert rows["llamacpp"]["state"] == "ready"
    assert "PATH" in rows["ollama"]["state"]
    assert any(name.startswith("vllm") and row["state"] == "not installed" for name, row in rows.items())


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("install", "llamacpp"), 5, "no environment of its own"),
        (("install", "ollama"), 5, "no environment of its own"),
        (("install", "triton"), 2, "vllm"),
        (("rm", "vllm-cpu-1"), 5, "no environment"),
    ],
)
def test_engines_that_are_not_installed(orch: Orch, words: tuple[str, ...], code: int, says: str) -> None:
    assert says in orch.run("engines", *words, code=code).err


def test_the_plan_of_an_installation_changes_nothing(orch: Orch) -> None:
    assert "+ install vllm-cpu-" in orch.run("engines", "install", "vllm", "--plan").out
    assert not (orch.home / "environments").exists()

"""orch artifacts verify --repair: only what is broken is pulled or built again."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from orch_command import ASSETS, Orch, script, wait_until

from orchestrator.artifacts.store import Store
from orchestrator.core.artifact import Recipe, artifact_key

hub_server = script("hub_server")

WEIGHTS = "model.safetensors"
REPAIR = ("artifacts", "verify", "--repair", "--json")


@pytest.fixture
def weights(orch: Orch, hub: Any) -> Path:
    """The tiny weights in the store, as `orch pull` leaves them."""
    source = f"hub:test/tiny@{hub.repos['test/tiny'].commit}"
    store, key = Store(orch.home / "store"), artifact_key(Recipe.WEIGHTS, source)
    with store.building(key) as turn:
        shutil.copytree(ASSETS / "tiny-qwen3", turn.work, dirs_exist_ok=True)
        turn.finish(Recipe.WEIGHTS, source, {})
    return store.path(key)


def flip(path: Path) -> None:
    """One wrong byte in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def asked(hub: Any) -> set[str]:
    """The files whose bytes were asked for since the last time."""
    files = {Path(request.path).name for request in hub.requests if "/revision/" not in request.path}
    hub.requests.clear()
    return files


def damages(orch: Orch) -> list[Any]:
    """What a reading of all finds."""
    store = Store(orch.home / "store")
    return [damage for key in store.own.names() for damage in store.verify(key)]


def rows(orch: Orch, code: int = 0) -> dict[str, str]:
    """How each file was put right, or what is left to say of it."""
    lines = orch.run(*REPAIR, code=code).lines
    return {row["path"]: row.get("how", row.get("reason")) for row in lines if "path" in row}


def test_of_a_repository_the_broken_files_alone_are_pulled(orch: Orch, hub: Any, weights: Path) -> None:
    flip(weights / WEIGHTS)
    (weights / "config.json").unlink()
    (weights / "more").touch()
    again = "pulled again"
    assert rows(orch) == {WEIGHTS: again, "config.json": again, "more": "removed"}
    assert asked(hub) == {WEIGHTS, "config.json"}
    assert damages(orch) == []
    # Nothing but the hub's word is needed where only the manifest is lost.
    (weights / "manifest.json").write_text("{")
    with Store(orch.home / "store").building("gguf-q6_k-0") as turn:
        (turn.work / "model.gguf").touch()
        source = f"hub:test/tiny@{hub.repos['test/tiny'].commit}"
        turn.finish(Recipe.GGUF_Q6_K, source, {})
    flip(weights / "tokenizer.json")
    assert rows(orch) == {"manifest.json": "checked against the hub"}
    assert asked(hub) == {"tokenizer.json"}
    assert damages(orch) == []


def test_what_was_built_is_built_again_and_has_to_be_the_same(orch: Orch, hub: Any, tmp_path: Path) -> None:
    profile = tmp_path / "p.toml"
    text = orch.profile.read_text().partition("[engines")[0]
    profile.write_text(re.sub(r"path = .*", 'repo = "test/tiny"\nrevision = "main"', text))
    orch.run("build", "-p", str(profile), "--recipe", "gguf-q6_k")
    (entry,) = (path for path in (orch.home / "store").iterdir() if path.name.startswith("gguf-"))
    model = entry / "model.gguf"
    right = model.read_bytes()
    flip(model)
    assert rows(orch) == {"model.gguf": "built again"}
    assert model.read_bytes() == right

    manifest = (entry / "manifest.json").read_text()
    (entry / "manifest.json").write_text(re.sub(r'"sha256": "\w+"', f'"sha256": "{"0" * 64}"', manifest))
    told = rows(orch, code=9)["model.gguf"]
    assert "built again, has SHA-256" in told
    assert "Nothing was replaced" in told
    assert model.read_bytes() == right
    (entry / "manifest.json").write_text("{")
    assert rows(orch) == {"manifest.json": "made again"}
    assert (entry / "manifest.json").read_text().split('"created"')[0] == manifest.split('"created"')[0]

    (weights,) = (path for path in (orch.home / "store").iterdir() if path.name.startswith("weights-"))
    shutil.rmtree(weights)
    flip(model)
    told = rows(orch, code=9)["model.gguf"]
    assert "is not here" in told
    assert "orch pull" in told


def test_what_nobody_knows_how_to_make_is_told(orch: Orch) -> None:
    with Store(orch.home / "store").building("weights-1") as turn:
        (turn.work / WEIGHTS).touch()
        turn.finish(Recipe.WEIGHTS, "dir:1", {})
    (orch.home / "store" / "weights-1" / WEIGHTS).unlink()
    assert "How it was made is not known" in rows(orch, code=9)[WEIGHTS]


def test_a_killed_repair_leaves_the_entry_as_it_was_and_is_gone_on_with(orch: Orch, hub: Any, weights: Path) -> None:
    flip(weights / WEIGHTS)
    broken = (weights / WEIGHTS).read_bytes()
    hub.faults.append(hub_server.Fault("slow", path=WEIGHTS, value=2_000_000))
    part = orch.home / "store" / ".partial"
    with orch.start(*REPAIR) as process:
        wait_until(lambda: sum(f.stat().st_blocks for f in part.rglob("*") if f.is_file()) * 512 > 3_000_000)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (weights / WEIGHTS).read_bytes() == broken
    hub.faults.clear()
    hub.requests.clear()
    assert rows(orch) == {WEIGHTS: "pulled again"}
    assert (weights / WEIGHTS).read_bytes() == (ASSETS / "tiny-qwen3" / WEIGHTS).read_bytes()
    assert any(request.range for request in hub.requests)
    assert damages(orch) == []


def test_what_is_built_from_damaged_weights_is_never_called_repaired(
    orch: Orch, hub: Any, weights: Path, hub_profile: str
) -> None:
    """A lost manifest lets an entry be made anew: of what is sound, and with the bytes that it had."""
    orch.run("build", "-p", hub_profile, "--recipe", "gguf-q6_k")
    (gguf,) = (orch.home / "store").glob("gguf-q6_k-*")
    before = (gguf / "model.gguf").read_bytes()
    flip(weights / WEIGHTS)
    (gguf / "manifest.json").unlink()
    hub.faults.append(hub_server.Fault("status", path=WEIGHTS, value=404, code="EntryNotFound"))
    assert "damaged" in str(rows(orch, code=9))
    hub.faults.clear()
    assert orch.run(*REPAIR).code == 0
    assert damages(orch) == []
    assert (gguf / "model.gguf").read_bytes() == before

"""orch lock and orch lock check: the same bits on another machine, or a table of what differs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from orch_command import ASSETS, Orch, Outcome

from orchestrator.artifacts.store import Store

GGUF_ONLY = """
[engines.ollama]
recipes = ["gguf-q6_k"]
[engines.llamacpp]
recipes = ["gguf-q6_k"]
threads = 1
[engines.vllm]
kv_cache_mib = 64
recipes = ["weights"]
"""


@pytest.fixture
def profile(orch: Orch, hub: Any, hub_profile: str) -> str:
    """A profile of the hub's weights that needs one artifact."""
    path = Path(hub_profile)
    head, _, _ = path.read_text().partition("[engines")
    path.write_text(head + GGUF_ONLY)
    return hub_profile


@pytest.fixture
def elsewhere(orch: Orch, tmp_path: Path) -> Orch:
    """Another machine with the same hub."""
    other = Orch(tmp_path / "elsewhere")
    other.env = orch.env
    return other


def entries(orch: Orch) -> dict[str, Path]:
    """The store's entries, by recipe."""
    store = Store(orch.home / "store")
    return {manifest.recipe.value: store.path(manifest.key) for manifest in store.all()}


def kinds(outcome: Outcome) -> list[str]:
    """Of what is told as a row."""
    return [row["kind"] for row in outcome.lines if "kind" in row]


def test_another_machine_makes_the_same_bits_or_tells_what_differs(
    orch: Orch, hub: Any, profile: str, elsewhere: Orch, tmp_path: Path
) -> None:
    file = tmp_path / "orch.lock"
    words = ("lock", "check", str(file), "-p", profile, "--json")
    made = orch.run("lock", "-p", profile, "-o", str(file))
    assert "not here yet: gguf-q6_k-" in made.out
    assert not (orch.home / "store").exists()
    assert kinds(orch.run(*words, "--no-build", code=9)) == ["unknown", "missing"]
    hub.requests.clear()
    checked = elsewhere.run(*words)
    assert (kinds(checked), checked.lines[-1]) == (["unknown"], {"same": 1})
    # A branch is not asked for: the lock says which commit it was.
    assert [request.path for request in hub.requests if request.path.endswith("/main")] == []
    assert sorted(entries(elsewhere)) == ["gguf-q6_k", "weights"]

    elsewhere.run("lock", "-p", profile, "-o", str(file))
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert orch.run(*words).lines[-1] == {"same": 2}
    up = ("up", "llamacpp", "-p", profile, "--locked", str(file), "--plan")
    assert "to do" in orch.run(*up).out
    # Another numpy is told; by itself it would be no difference.
    text = file.read_text().replace('numpy = "', 'numpy = "0.')
    file.write_text(re.sub(r'("model.gguf" = "sha256:)\w{64}', rf"\g<1>{'0' * 64}", text))
    assert kinds(orch.run(*words, code=9)) == ["versions", "files"]
    assert "sha256:0000" in orch.run(*up, code=5).err
    model = entries(elsewhere)["gguf-q6_k"] / "model.gguf"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    (damage,) = (row for row in elsewhere.run(*words, code=9).lines if "kind" in row)
    assert (damage["path"], damage["kind"]) == ("model.gguf", "hash")


@pytest.mark.parametrize(("text", "code", "says"), [("", 10, "format"), (None, 4, "orch lock writes it")])
def test_a_lock_that_is_none(orch: Orch, tmp_path: Path, text: str | None, code: int, says: str) -> None:
    file = tmp_path / "orch.lock"
    if text is not None:
        file.write_text(text)
    assert says in orch.run("lock", "check", str(file), code=code).err


def test_a_recipe_that_needs_an_environment_is_locked_by_its_entry(orch: Orch, profile: str, tmp_path: Path) -> None:
    path = Path(profile)
    path.write_text(path.read_text().replace('recipes = ["weights"]', 'recipes = ["nvfp4", "weights"]'))
    file = tmp_path / "orch.lock"
    made = orch.run("lock", "-p", profile, "-o", str(file), "--json").lines[-1]
    assert sorted(key.rpartition("-")[0] for key in made["entries"]) == ["gguf-q6_k", "nvfp4", "weights"]
    assert kinds(orch.run("lock", "check", str(file), "-p", profile, "--no-build", "--json", code=9)) == [
        *("unknown", "unknown", "missing")
    ]
    up = orch.run("up", "llamacpp", "-p", profile, "--locked", str(file), code=5)
    assert "Some of what tiny is served with is not in the store yet" in up.err


def test_the_lock_of_a_directory_of_weights_and_an_adapter(orch: Orch, elsewhere: Orch, tmp_path: Path) -> None:
    """The other machine has them elsewhere."""
    listed = '[[adapters]]\nname = "a"\npath = "{}"\n'
    for machine, name in ((orch, "here"), (elsewhere, "there")):
        shutil.copytree(ASSETS / "tiny-qwen3", tmp_path / name / "weights")
        shutil.copytree(ASSETS / "lora-a", tmp_path / name / "a")
        machine.write_profile(tmp_path / name / "weights")
        text = machine.profile.read_text().partition("[engines")[0] + GGUF_ONLY + listed.format(tmp_path / name / "a")
        machine.profile.write_text(text)
    file = tmp_path / "orch.lock"
    orch.run("lock", "-p", str(orch.profile), "-o", str(file))
    elsewhere.run("lock", "check", str(file), "-p", str(elsewhere.profile))
    assert sorted(entries(elsewhere)) == ["adapter", "gguf-q6_k", "lora-gguf"]
    elsewhere.profile.write_text(elsewhere.profile.read_text().replace("context = 512", "context = 256"))
    other = elsewhere.run("lock", "check", str(file), "-p", str(elsewhere.profile), code=9)
    assert "Differences\nkind" in other.out
    assert other.err == ""

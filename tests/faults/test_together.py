"""Several at once: what is the same is made once, and nobody waits for ever."""

from __future__ import annotations

from pathlib import Path

from orch_command import wait_until
from orch_killed import PATIENCE, commands_of, hub_server, sound

TINY = Path(__file__).parents[1] / "assets" / "tiny-qwen3"


def test_builds_of_the_same_and_of_more_make_each_artifact_once(tmp_path: Path) -> None:
    profile = str(tmp_path / "work" / "tiny.toml")
    with commands_of(tmp_path / "work", TINY) as (orch, hub):
        hub.faults.append(hub_server.Fault("slow", "model.safetensors", 8_000_000))
        recipes = [("gguf-q6_k", "nvfp4a16"), ("nvfp4a16", "gguf-q6_k", "fp8"), ("fp8", "gguf-bf16"), ("gguf-q6_k",)]
        words = [[word for recipe in some for word in ("--recipe", recipe)] for some in recipes]
        children = [orch.start("build", "-p", profile, *some) for some in words]
        # One that is built again takes the place of the first: as soon as it is there, it is looked at.
        first = wait_until(lambda: entries(orch.home / "store", 5), what="all of them")
        assert [child.wait(PATIENCE) for child in children] == [0] * len(children)
        assert entries(orch.home / "store", 5) == first
        made = {key.rpartition("-")[0] for key in sound(orch.home / "store")}
        assert made == {"weights", "gguf-q6_k", "nvfp4a16", "fp8", "gguf-bf16"}
        bodies = [request for request in hub.requests if request.method == "GET" and "/cdn/" in request.path]
        assert len({request.path for request in bodies}) == len(bodies), "the weights came more than once"


def entries(store: Path, count: int) -> dict[str, int]:
    """Inodes by key, once so many entries are listed; nothing before."""
    found = {path.name: path.stat().st_ino for path in store.glob("[a-z]*") if (path / "manifest.json").exists()}
    return found if len(found) == count else {}


def test_a_pull_and_a_build_of_the_same_weights_download_them_once(tmp_path: Path) -> None:
    profile = str(tmp_path / "work" / "tiny.toml")
    with commands_of(tmp_path / "work", TINY) as (orch, hub):
        hub.faults.append(hub_server.Fault("slow", "model.safetensors", 8_000_000))
        children = [orch.start("pull", "-p", profile), orch.start("build", "-p", profile)]
        assert [child.wait(PATIENCE) for child in children] == [0, 0]
        bodies = [request for request in hub.requests if request.method == "GET" and "/cdn/" in request.path]
        assert len({request.path for request in bodies}) == len(bodies)

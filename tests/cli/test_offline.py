"""A profile carried to a machine without network: what it refers to comes along, and what orch up would lack is told
before loading is called a success. No daemon is asked: what is served here is a process."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from orch_command import ASSETS, Orch

from orchestrator.app.offline import _to_carry
from orchestrator.core.artifact import Recipe
from orchestrator.core.calibration import Calibration
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.image_archive import CALIBRATION, LOCK, ArchiveLock
from orchestrator.core.prerequisites import BuildArtifact, EnsureEnvironment, FetchWeights
from orchestrator.core.profile import parse_profile
from orchestrator.core.progress import silent
from orchestrator.core.weights import HubSource
from orchestrator.drivers.docker.archive import write_archive
from orchestrator.drivers.docker.daemon import Daemon
from orchestrator.drivers.docker.endpoints import Endpoint
from orchestrator.drivers.docker.images import DockerImages
from orchestrator.engines.settings import read_settings

LOCAL = ["--engine", "llamacpp", "--target", "local"]


@pytest.fixture
def there(tmp_path: Path) -> Orch:
    """Another machine, as far as a data directory is one, without network."""
    other = Orch(tmp_path / "there")
    other.env |= {"HF_HUB_OFFLINE": "1", "DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}
    return other


def lock_of(file: Path) -> ArchiveLock:
    with tarfile.open(file) as tar:
        inside = tar.extractfile(LOCK)
        assert inside is not None
        return ArchiveLock.model_validate_json(inside.read())


def with_less(file: Path, **changes: Any) -> None:
    """Write the same without its entries, and with other changes."""
    lock = lock_of(file).model_copy(update={"entries": (), "weights": "", "calibration": None, **changes})
    images = DockerImages(Daemon(Endpoint("")), file.parent / "images.json", lambda: False)
    write_archive(file, lock, {}, images, silent)


def test_what_a_profile_names_by_a_path_comes_along(orch: Orch, there: Orch, tmp_path: Path) -> None:
    """A ready-made artifact and texts that lie nowhere but here, and an artifact of no engine that is saved."""
    here = tmp_path / "here"
    here.mkdir()
    orch.run("build", "gguf", str(ASSETS / "tiny-qwen3"), "-o", str(here / "ours.gguf"), "--quant", "q8_0")
    (here / "texts.jsonl").write_text('{"text": "some words"}\n')
    more = (
        f'[artifacts.gguf-q8_0]\npath = "{here}/ours.gguf"\n[artifacts.nvfp4]\npath = "{here}/none"\n'
        f'[calibration]\npath = "{here}/texts.jsonl"\n'
    )
    text = orch.profile.read_text().replace("threads = 1", 'threads = 1\nrecipes = ["gguf-q8_0"]')
    orch.profile.write_text(text + more)
    orch.run("build", "-p", str(orch.profile), "--recipe", "gguf-q8_0")
    file = tmp_path / "carried" / "tiny.tar"
    file.parent.mkdir()
    (saved,) = orch.run("images", "save", str(file), "-p", str(orch.profile), *LOCAL, "--json").lines
    assert saved["left_out"] == [f"artifacts.nvfp4 ({here}/none), because none of its engines serves that"]
    shutil.rmtree(here)
    lines = there.run("images", "load", str(file), "--json").lines
    profile = file.with_suffix(".profile.toml")
    assert lines[-1] == {"next": f"orch up llamacpp -p {profile} --target local"}
    assert [line["left_out"] for line in lines if "left_out" in line] == saved["left_out"]
    loaded = parse_profile(profile.read_text(), "tiny", read_settings)
    assert list(loaded.artifacts) == [Recipe.GGUF_Q8_0]
    assert Path(loaded.calibration.path or "").read_text() == '{"text": "some words"}\n'
    assert "artifacts.nvfp4" in profile.read_text().split("\nname")[0], "a remark says what is no longer named"
    words = ("up", "llamacpp", "-p", str(profile))
    assert not {"FetchArtifact", "FetchWeights", "BuildArtifact"} & set(there.actions(*words))
    assert there.run("artifacts", "gc", "--plan", "--json").lines


def test_what_orch_up_would_have_to_pull_is_4_and_what_came_stays(
    orch: Orch, there: Orch, hub: Any, hub_profile: str, tmp_path: Path
) -> None:
    orch.run("build", "-p", hub_profile)
    file = tmp_path / "tiny.tar"
    (saved,) = orch.run("images", "save", str(file), "-p", hub_profile, *LOCAL, "--json").lines
    assert saved["left_out"] == ["the weights of test/tiny, because what is made of them is in it"]
    whole = there.run("images", "load", str(file), "--json").lines
    assert "next" in whole[-1], "the branch was carried as its commit, so no hub has to be asked"
    there.run("artifacts", "rm", *saved["entries"])
    with_less(file)
    lines = there.run("images", "load", str(file), "--json", code=4).lines
    commit = lock_of(file).profile.weights.revision or ""
    assert [line["missing"] for line in lines if "missing" in line] == [f"pull test/tiny at {commit[:12]}"]
    assert "tiny.tar is loaded" in lines[-1]["error"]
    assert f"orch up llamacpp -p {file.with_suffix('.profile.toml')}" in lines[-1]["hint"]
    assert not any("next" in line for line in lines)
    assert file.with_suffix(".profile.toml").exists()


def test_what_this_machine_refuses_is_told(orch: Orch, there: Orch, tmp_path: Path) -> None:
    orch.run("build", "-p", str(orch.profile), "--recipe", "gguf-q6_k")
    file = tmp_path / "tiny.tar"
    orch.run("images", "save", str(file), "-p", str(orch.profile), *LOCAL)
    (engine,) = lock_of(file).engines
    other = engine.model_copy({"engine": "ollama", "recipe": Recipe.GGUF_BF16})
    with_less(file, engines=(engine.model_copy({"recipe": Recipe.GGUF_Q8_0}), other))
    there.env["PATH"] = "/nowhere"
    lines = there.run("images", "load", str(file), "--json", code=4).lines
    (refused,) = (line for line in lines if "refused" in line)
    assert "There is no ollama binary on PATH" in refused["refused"]
    # The weights are this machine's, too: what is built of them needs no network.
    assert [line["next"].split(" --")[-1] for line in lines if "next" in line] == ["recipe gguf-q8_0"]


def test_texts_that_were_damaged_on_the_way_are_10(orch: Orch, there: Orch, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "some words"}\n')
    with orch.profile.open("a") as profile:
        profile.write(f'[calibration]\npath = "{texts}"\n')
    orch.run("build", "-p", str(orch.profile), "--recipe", "gguf-q6_k")
    file = tmp_path / "tiny.tar"
    orch.run("images", "save", str(file), "-p", str(orch.profile), *LOCAL)
    file.write_bytes(file.read_bytes().replace(b"some words", b"same words"))
    line = there.run("images", "load", str(file), "--json", code=10).lines[-1]
    assert f"{CALIBRATION} is not what was saved" in line["error"]
    assert there.run("artifacts", "ls", "--json").lines == []
    assert not file.with_suffix(".profile.toml").exists()


def test_a_file_of_the_format_before_is_read(orch: Orch, there: Orch, tmp_path: Path) -> None:
    orch.run("build", "-p", str(orch.profile), "--recipe", "gguf-q6_k")
    file = tmp_path / "tiny.tar"
    orch.run("images", "save", str(file), "-p", str(orch.profile), *LOCAL)
    with tarfile.open(file) as tar:
        member = tar.getmember(LOCK)
    with file.open("r+b") as inside:
        inside.seek(member.offset_data)
        document = json.loads(inside.read(member.size))
        del document["calibration"], document["left_out"], document["engines"][0]["recipe"]
        inside.seek(member.offset_data)
        inside.write(json.dumps({**document, "format": 1}).encode().ljust(member.size))
    assert "next" in there.run("images", "load", str(file), "--json").lines[-1]


def test_what_only_serves_to_make_an_artifact_is_not_carried() -> None:
    environment = EnvironmentSpec("llmcompressor-cuda", "1.0", ("it==1",))
    hub = HubSource("test/tiny", "0" * 40)
    texts = Calibration("/texts.jsonl", "c0ffee", 8, 64, environment)
    build = BuildArtifact(Recipe.NVFP4, "a key", str(hub), "/w", calibration=texts, weights_key="weights")
    wanted = (FetchWeights(hub, "weights"), EnsureEnvironment(environment), build)
    assert _to_carry(wanted, "a key") == (build,)
    assert _to_carry(wanted[:1], "weights") == wanted[:1]

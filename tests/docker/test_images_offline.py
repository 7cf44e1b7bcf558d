"""orch images save and load: one file that carries all of a profile to where no network is."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient
from docker_orch import DockerOrch
from image_bench import BASE, here, new_image, orch_at, pin_text, pinned, remove, rows, small_image
from orch_command import ANSWER, ASSETS, Orch, free_port

from orchestrator.core.artifact import FileEntry, Manifest, Recipe
from orchestrator.core.image_archive import LOCK, ArchiveLock, SavedImage, outside
from orchestrator.core.profile import parse_profile
from orchestrator.core.progress import silent
from orchestrator.drivers.docker.archive import write_archive
from orchestrator.drivers.docker.images import DockerImages
from orchestrator.engines.settings import read_settings
from orchestrator.errors import HostError, Interrupted, SourceError

STAND_IN = "orch-test/ollama:stand-in"
ENGINE = ["--engine", "ollama", "--target", "docker"]


@dataclass(frozen=True)
class Made:
    """A data directory that has all of a profile, and the file that was saved of it. `image`: the engine's, by ID."""

    orch: Orch
    file: Path
    image: str


@pytest.fixture(scope="module")
def made(client: DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The small image as if it were an Ollama, its artifact, and the weights' directory."""
    root = tmp_path_factory.mktemp("made")
    name = f"orch-test-small/saved-{os.getpid()}:1"
    image = small_image(client, name, NVIDIA_REQUIRE_CUDA="cuda>=12.9")
    done = Made(orch_at(root / "home"), root / "tiny.tar", image)
    done.orch.run("images", "pin", "ollama", name)
    done.orch.run("images", "pull")
    artifact(done.orch)
    done.orch.run("images", "save", str(done.file), "-p", str(done.orch.profile), *ENGINE)
    yield done
    remove(client, image)


@pytest.fixture
def saved(made: Made, tmp_path: Path) -> Path:
    """A copy of the file, to be carried and damaged."""
    place = tmp_path / "carried"
    place.mkdir()
    return Path(shutil.copy(made.file, place / "tiny.orch.tar"))


def artifact(orch: Orch) -> None:
    """Have the tiny model's GGUF in the store, as a llamacpp deployment leaves it."""
    orch.run("up", "llamacpp", "-p", str(orch.profile), "--target", "local")
    orch.run("down", "--all", "--forget")


def second(tmp_path: Path) -> Orch:
    """Another machine, as far as a data directory is one."""
    other = orch_at(tmp_path / "other")
    other.env["HF_HUB_OFFLINE"] = "1"
    return other


def store_of(orch: Orch) -> list[str]:
    """The keys of all finished entries."""
    return sorted(line["key"] for line in orch.run("artifacts", "ls", "--json").lines)


def lock_of(file: Path) -> ArchiveLock:
    with tarfile.open(file) as tar:
        first = tar.next()
        assert first is not None
        assert first.name == LOCK
        inside = tar.extractfile(first)
        assert inside is not None
        return ArchiveLock.model_validate_json(inside.read())


def test_what_was_saved_is_loaded_with_the_same_hashes(
    made: Made, saved: Path, client: DockerClient, tmp_path: Path
) -> None:
    lock = lock_of(saved)
    assert lock.total == saved.stat().st_size
    engine = lock.images[0]
    assert (engine.id, engine.requires) == (made.image, "cuda>=12.9")
    with tarfile.open(saved) as tar:
        assert {member.name: member.size for member in tar.getmembers()[1:]} == lock.members
    other = second(tmp_path)
    remove(client, made.image)
    assert not here(client, made.image)
    done = other.run("images", "load", str(saved), "--json").lines
    assert engine.name in [line["loaded"] for line in done if "loaded" in line]
    assert client.images.get(engine.name).id == made.image
    assert store_of(other) == sorted(manifest.key for manifest in lock.entries)
    other.run("artifacts", "verify")
    profile = saved.parent / "tiny.orch.profile.toml"
    assert done[-1] == {"next": f"orch up ollama -p {profile} --target docker"}
    loaded = parse_profile(profile.read_text(), "tiny", read_settings)
    assert loaded.weights.path == str(other.home / "store" / lock.weights)
    assert loaded.model_copy(update={"weights": lock.profile.weights}) == lock.profile
    assert rows(other, "ollama")[0]["digest"] == made.image
    again = other.run("images", "load", str(saved), "--json").lines
    assert [line for line in again if "loaded" in line] == []
    assert len([line for line in again if "here" in line]) == len(lock.entries) + len(lock.images)


def test_a_digest_survives_the_way_through_a_file(
    orch: Orch, registry: Any, client: DockerClient, tmp_path: Path
) -> None:
    image = new_image()
    registry.put("test/tool:1.0", image)
    name = f"{registry.address}/test/tool:1.0"
    pinned(orch, "ollama", pin_text("ollama", name, image.digest))
    orch.run("images", "pull")
    artifact(orch)
    file = tmp_path / "tiny.tar"
    orch.run("images", "save", str(file), "-p", str(orch.profile), *ENGINE)
    remove(client, client.images.get(f"{registry.address}/test/tool@{image.digest}").id)
    other = second(tmp_path)
    registry.requests.clear()
    other.run("images", "load", str(file))
    row = rows(other, "ollama")[0]
    assert (row["digest"], row["local"], row["here"]) == (image.digest, False, "yes")
    assert client.images.get(name).id == image.id
    assert "PullImage" not in other.actions("images", "pull", "ollama")
    assert registry.requests == []


def flip(file: Path, member: str) -> None:
    """Change one byte in the middle of a member."""
    with tarfile.open(file) as tar:
        found = tar.getmember(member)
    with file.open("r+b") as inside:
        inside.seek(found.offset_data + found.size // 2)
        byte = inside.read(1)
        inside.seek(-1, 1)
        inside.write(bytes([byte[0] ^ 1]))


def damage(file: Path, how: str) -> None:
    """What can happen to a file on its way."""
    lock = lock_of(file)
    whole = file.read_bytes()
    match how:
        case "cut":
            file.write_bytes(whole[:-100_000])
        case "cut between files":
            with tarfile.open(file) as tar:
                end = tar.getmembers()[-1].offset
            file.write_bytes(whole[:end] + bytes(1024))
        case "longer":
            file.write_bytes(whole + bytes(1024))
        case "foreign":
            file.write_bytes(b"not a tar" * 1000)
        case "empty":
            file.write_bytes(b"")
        case "another format":
            file.write_bytes(whole.replace(b'"format": 3,', b'"format": 4,', 1))
        case "no JSON":
            file.write_bytes(whole.replace(b'"format": 3,', b'"format": 3;', 1))
        case "a byte of an entry":
            flip(file, next(name for name in lock.members if name.endswith("model.gguf")))
        case _:
            flip(file, "images/0.tar")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("cut", "is damaged"),
        ("cut between files", "is damaged"),
        ("longer", "is damaged"),
        ("foreign", "was not made by orch images save"),
        ("empty", "was not made by orch images save"),
        ("another format", "the format 4"),
        ("no JSON", "cannot be read"),
        ("a byte of an entry", "model.gguf is not what was saved"),
        ("a byte of an image", "images/0.tar is not what was saved"),
    ],
)
def test_a_file_that_is_not_whole_is_10_and_leaves_nothing_half_done(
    made: Made, saved: Path, client: DockerClient, tmp_path: Path, how: str, told: str
) -> None:
    damage(saved, how)
    other = second(tmp_path)
    remove(client, made.image)
    line = other.run("images", "load", str(saved), "--json", code=10).lines[-1]
    assert told in line["error"]
    assert line["hint"]
    other.run("artifacts", "verify")
    assert [path for path in (other.home / "store" / ".partial").rglob("*") if path.is_file()] == []
    assert not here(client, made.image)
    assert list(saved.parent.iterdir()) == [saved]
    other.run("images", "load", str(made.file))
    assert store_of(other) == sorted(manifest.key for manifest in lock_of(made.file).entries)
    assert here(client, made.image)


def test_a_save_without_room_is_refused_before_it_begins(made: Made, saved: Path, docker_images: DockerImages) -> None:
    lock = lock_of(saved)
    huge = lock.images[0].model_copy(update={"size": 10**18, "archive_size": 0})
    with pytest.raises(HostError, match="are free"):
        write_archive(saved, lock.model_copy(update={"images": (huge,)}), {}, docker_images, silent)
    assert lock_of(saved) == lock
    assert list(saved.parent.iterdir()) == [saved]


def test_a_damaged_artifact_is_not_saved(made: Made, saved: Path, docker_images: DockerImages) -> None:
    lock = lock_of(saved)
    lying = saved.parent / "lying"
    sources = {manifest.key: lying / manifest.key for manifest in lock.entries}
    for manifest in lock.entries:
        for file in manifest.files:
            (sources[manifest.key] / file.path).parent.mkdir(parents=True, exist_ok=True)
            (sources[manifest.key] / file.path).write_bytes(bytes(file.size))
    with pytest.raises(SourceError, match="damaged"):
        write_archive(saved, lock, sources, docker_images, silent)
    assert lock_of(saved) == lock
    assert sorted(saved.parent.iterdir()) == sorted([lying, saved])


@pytest.mark.parametrize("path", ["../up", "/etc/x", "a/../../b", "", ".", "a//b"])
def test_a_manifest_that_leads_out_of_its_entry_is_seen(path: str) -> None:
    file = FileEntry(path=path, size=1, sha256="0" * 64)
    good = file.model_copy(update={"path": "a/b.json"})
    manifest = Manifest(key="k", recipe=Recipe.WEIGHTS, source="s", builder={}, files=(good, file), created="")
    assert list(outside(manifest)) == [path]


def test_an_interrupted_save_leaves_the_file_that_was_there(
    made: Made, saved: Path, docker_images: DockerImages
) -> None:
    before = saved.read_bytes()
    lock = lock_of(saved)
    image_only = lock.model_copy(update={"entries": (), "images": lock.images[:1]})
    parts: list[int] = []

    def give_up(what: str, done: int, _total: int) -> None:
        if what == f"saving {lock.images[0].name}":
            parts.extend(path.stat().st_size for path in saved.parent.glob(".*.part"))
            raise Interrupted()

    with pytest.raises(Interrupted):
        write_archive(saved, image_only, {}, docker_images, give_up)
    assert len(parts) == 1
    assert list(saved.parent.iterdir()) == [saved]
    assert saved.read_bytes() == before


def test_what_is_missing_is_named_with_the_command_that_makes_it(orch: Orch, small: str, tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        told = orch.run("images", "save", str(tmp_path / "f.tar"), "-p", str(orch.profile), *words, "--json", code=5)
        return json.dumps(told.lines[-1])

    assert "--engine" in refused()
    assert "orch up ollama" in refused(*ENGINE)
    artifact(orch)
    assert "orch images pull ollama" in refused(*ENGINE)
    assert "cannot be saved" in refused("--engine", "vllm", "--target", "local")
    assert not (tmp_path / "f.tar").exists()


def test_an_engine_without_a_container_needs_no_image(orch: Orch, tmp_path: Path) -> None:
    artifact(orch)
    file = tmp_path / "local.tar"
    words = ["--engine", "llamacpp", "--target", "local"]
    orch.run("images", "save", str(file), "-p", str(orch.profile), *words)
    assert lock_of(file).images == ()
    other = second(tmp_path)
    other.env["DOCKER_HOST"] = f"unix://{tmp_path}/nobody.sock"
    other.run("images", "load", str(file))
    other.run("up", "llamacpp", "-p", str(tmp_path / "local.profile.toml"))
    assert other.says() == ANSWER
    other.run("down", "--all")


def test_after_load_a_profile_is_served_without_registry_and_hub(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(ASSETS / "tiny-qwen3", weights)
    here_first = DockerOrch(tmp_path / "home", {"python": BASE, "ollama": STAND_IN})
    there = DockerOrch(tmp_path / "other", {"python": BASE})
    file = tmp_path / "tiny.tar"
    nobody = f"http://127.0.0.1:{free_port()}"
    try:
        here_first.write_profile(weights)
        here_first.run("up", "ollama", "-p", str(here_first.profile))
        here_first.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
        answer = here_first.says("alpha")
        here_first.run("images", "save", str(file))
        here_first.run("down", "--all")
        shutil.rmtree(weights)
        shutil.rmtree(here_first.home / "store")
        there.env |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": nobody}
        there.run("images", "load", str(file))
        # The image is one of this machine's tests: it is not taken from it, and so was not loaded.
        profile = str(tmp_path / "tiny.profile.toml")
        assert not {"PullImage", "BuildImage", "FetchWeights", "BuildArtifact"} & set(
            there.actions("up", "ollama", "-p", profile)
        )
        there.run("up", "ollama", "-p", profile)
        assert there.says() == ANSWER
        assert there.says("alpha") == answer
        there.status()
        there.run("images", "pin", "ollama", BASE)
        assert "EnsureEngine" in there.actions("up")
        there.run("images", "pin", "ollama", "--reset")
    finally:
        for orch in (here_first, there):
            orch.run("down", "--all", code=None)
            left = orch.processes()
            orch.close()
            assert left == []


def test_a_gateway_of_another_python_is_told_when_it_is_loaded(
    saved: Path, client: DockerClient, docker_images: DockerImages, tmp_path: Path
) -> None:
    name = f"orch-gateway:test-{os.getpid()}"
    small_image(client, name, PYTHON_VERSION="3.99.1")
    try:
        seen = docker_images.details(name)
        assert seen is not None
        image = SavedImage(name=name, reference=name, id=seen.facts.id, layers=seen.layers, size=seen.facts.size)
        less = {"images": (image,), "entries": (), "weights": "", "gateway_base": "somebody/python"}
        write_archive(saved, lock_of(saved).model_copy(update=less), {}, docker_images, silent)
        other = second(tmp_path)
        del other.env["ORCH_GATEWAY_BASE"]
        lines = other.run("images", "load", str(saved), "--json", code=4).lines
    finally:
        remove(client, name)
    assert ["3.99" in line["unfit"] for line in lines if "unfit" in line] == [True]
    assert not any("set" in line for line in lines), "what is of no use is not recommended"
    base = f"python:{'.'.join(platform.python_version_tuple()[:2])}-slim"
    assert [line["missing"].startswith(f"pull {base}") for line in lines if "missing" in line] == [True]


def test_where_its_base_is_not_set_the_command_sets_it(made: Made, saved: Path, tmp_path: Path) -> None:
    other = second(tmp_path)
    del other.env["ORCH_GATEWAY_BASE"]
    lines = other.run("images", "load", str(saved), "--json").lines
    assert {"set": f"ORCH_GATEWAY_BASE={BASE}"} in lines
    command = lines[-1]["next"]
    assert command.startswith(f"ORCH_GATEWAY_BASE={BASE} orch up ollama ")
    other.env["ORCH_GATEWAY_BASE"] = BASE
    assert not {"PullImage", "BuildImage"} & set(other.actions(*shlex.split(command)[2:]))


def test_a_base_that_is_gone_is_told_with_what_brings_it_back(orch: Orch, small: str) -> None:
    orch.env["ORCH_GATEWAY_BASE"] = "orch-test/nobody-has:1"
    line = orch.run("images", "pull", "--json", code=4).lines[-1]
    assert line["error"] == "The image orch-test/nobody-has:1 (ORCH_GATEWAY_BASE) is not here."
    assert "docker pull orch-test/nobody-has:1" in line["hint"]
    assert "Without ORCH_GATEWAY_BASE, python:" in line["hint"]

"""What others have published of a profile's weights: known to the profile, and taken where that is preferred."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from orch_command import ASSETS, Orch, script

from orchestrator import resources
from orchestrator.core.artifact import Recipe
from orchestrator.core.deployment import DeploymentSpec, Desired, to_record
from orchestrator.core.lock_file import profile_digest
from orchestrator.core.profile import parse_profile
from orchestrator.engines.settings import read_settings

hub_server = script("hub_server")

TINY = ASSETS / "tiny-qwen3"
PUBLISHED = '[published.gguf-q6_k]\nrepo = "test/tiny-GGUF"\nrevision = "main"\nfile = "tiny-q6_k.gguf"\n'
PREFER = '[artifacts]\nprefer = "ready-made"\n'
GGUF = ("--recipe", "gguf-q6_k")


@pytest.fixture
def hub_of_both(orch: Orch, tmp_path: Path) -> Iterator[Any]:
    """A hub that has the tiny weights, and a GGUF that somebody has built of them."""
    ggufs = tmp_path / "ggufs"
    ggufs.mkdir()
    orch.run("build", "gguf", str(TINY), "-o", str(ggufs / "tiny-q6_k.gguf"))
    with hub_server.HubServer({"test/tiny": TINY, "test/tiny-GGUF": ggufs}) as server:
        orch.env["HF_ENDPOINT"] = server.url
        weights = orch.profile.read_text().replace(f'path = "{TINY}"', 'repo = "test/tiny"\nrevision = "main"')
        orch.profile.write_text(weights + PUBLISHED)
        yield server


def build(orch: Orch, *words: str) -> list[str]:
    return orch.run("build", "-p", str(orch.profile), *words, "--json").steps("done")


def asked_of(server: Any, repo: str) -> bool:
    return any(f"/{repo}/" in request.path for request in server.requests)


def test_a_profile_that_knows_of_one_builds_all_the_same(orch: Orch, hub_of_both: Any) -> None:
    assert build(orch, *GGUF) == ["FetchWeights", "BuildArtifact"]
    assert not asked_of(hub_of_both, "test/tiny-GGUF"), "not even what its branch means"


@pytest.mark.parametrize("how", ["flag", "profile"])
def test_where_it_is_preferred_it_is_taken_and_the_weights_are_not(orch: Orch, hub_of_both: Any, how: str) -> None:
    if how == "profile":
        orch.profile.write_text(orch.profile.read_text() + PREFER)
    words = ("--ready-made",) if how == "flag" else ()
    assert build(orch, *GGUF, *words) == ["FetchArtifact"]
    assert not asked_of(hub_of_both, "cdn/test/tiny")
    (row,) = orch.run("artifacts", "ls", "--json").lines
    assert row["source"] == f"hub:test/tiny-GGUF@{hub_of_both.repos['test/tiny-GGUF'].commit}/tiny-q6_k.gguf"
    assert build(orch, *GGUF, "--no-ready-made") == ["FetchWeights", "BuildArtifact"]


def test_what_nobody_has_published_is_built_and_told(orch: Orch, hub_of_both: Any) -> None:
    done = orch.run("build", "-p", str(orch.profile), "--ready-made", "--plan", "--json")
    (plan,) = (line["items"] for line in done.lines if "plan" in line)
    assert {"skip": "take nvfp4a16 ready-made", "why": "the profile does not know where it is"} in plan
    assert [item["do"] for item in plan if "do" in item] == ["FetchArtifact", "FetchWeights", "BuildTogether"]


def test_a_profile_that_knows_of_none(orch: Orch) -> None:
    told = orch.run("build", "-p", str(orch.profile), "--ready-made", "--json", code=5).lines[-1]
    assert "does not know of a ready-made artifact" in told["error"]
    assert '[published."gguf-q6_k"]' in told["hint"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[artifacts]\nprefer = "yours"\n', 'artifacts.prefer: has to be built or ready-made (given: "yours")'),
        ("[artifacts]\nprefer = {}\n", "artifacts.prefer: has to be built or ready-made"),
        ('[published]\nprefer = "ready-made"\n', "published.prefer"),
        ('[published.gguf-q6_k]\npath = "/x.gguf"\n', "what is here is named under [artifacts]"),
        ('[published.gguf-q6_k]\nrepo = "a/b"\nrevision = "main"\n', "published.gguf-q6_k: a GGUF is one file"),
        ('[published.weights]\nrepo = "a/b"\nrevision = "main"\n', "published.weights: not an artifact"),
    ],
)
def test_what_a_profile_cannot_say(orch: Orch, text: str, says: str) -> None:
    orch.profile.write_text(orch.profile.read_text() + text)
    assert says in orch.run("profile", "check", str(orch.profile), code=3).err


def test_the_preference_has_one_place(orch: Orch) -> None:
    orch.profile.write_text(f'prefer = "ready-made"\n{orch.profile.read_text()}')
    assert "prefer: belongs under [artifacts]" in orch.run("profile", "check", str(orch.profile), code=3).err


def test_the_shipped_profile_knows_what_its_makers_have_built_and_does_not_take_it() -> None:
    profile = parse_profile(resources.model_profiles()["qwen3-8b"].read_text(), "qwen3-8b", read_settings)
    (ready,) = profile.published.values()
    assert (ready.repo, ready.file) == ("Qwen/Qwen3-8B-GGUF", "Qwen3-8B-Q6_K.gguf")
    assert profile.ready_made == {}
    assert list(profile.preferring(True).ready_made) == [Recipe.GGUF_Q6_K]


def test_a_record_of_before_there_was_a_preference_means_what_it_meant() -> None:
    profile = parse_profile(resources.model_profiles()["qwen3-8b"].read_text(), "qwen3-8b", read_settings)
    ready = profile.model_copy({"artifacts": profile.published, "published": {}})
    record = json.loads(to_record(Desired(spec=DeploymentSpec(profile=ready, engine="llamacpp", target="local"))))
    del record["spec"]["profile"]["published"], record["spec"]["profile"]["prefer"]
    assert Desired.from_record(record, read_settings).spec.profile.ready_made == profile.published


def test_what_is_preferred_is_no_part_of_what_a_lock_says_of_the_profile() -> None:
    """The entries say it: by what they are made of."""
    profile = parse_profile(resources.model_profiles()["qwen3-8b"].read_text(), "qwen3-8b", read_settings)
    others = (profile.preferring(True), profile.model_copy({"published": {}}))
    assert {profile_digest(one, {}) for one in (profile, *others)} == {profile_digest(profile, {})}


@pytest.fixture
def qwen3_8b(orch: Orch, tmp_path: Path) -> Iterator[Any]:
    """A hub with repositories by the names that the shipped profile has; their files are large, and nothing else."""
    for name, file, size in (("weights", "model.safetensors", 210), ("GGUF", "Qwen3-8B-Q6_K.gguf", 70)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / file).open("wb") as sparse:
            sparse.truncate(size * 1_000_000)
    for path in TINY.glob("*.json"):
        shutil.copy(path, tmp_path / "weights")
    repos = {"Qwen/Qwen3-8B": tmp_path / "weights", "Qwen/Qwen3-8B-GGUF": tmp_path / "GGUF"}
    with hub_server.HubServer(repos) as server:
        server.repos["Qwen/Qwen3-8B"].commit = "b968826d9c46dd6066d109eabc6255188de91218"
        orch.env["HF_ENDPOINT"] = server.url
        yield server


def test_the_question_before_the_download_offers_it(orch: Orch, qwen3_8b: Any) -> None:
    told = orch.run("up", "llamacpp", "--json", code=2).lines[-1]["error"]
    offer = "; or ready-made Qwen/Qwen3-8B-GGUF, 0.1 GB: --ready-made."
    assert told.startswith(f"No profile was named: orch will download Qwen/Qwen3-8B, 0.2 GB{offer}")
    assert "orch will download Qwen/Qwen3-8B, 0.2 GB." in orch.run("up", "vllm", "--no-ready-made", code=2).err
    done = orch.run("up", "llamacpp", "--ready-made", "--plan", "--json")
    (items,) = (line["items"] for line in done.lines if "plan" in line)
    commit = qwen3_8b.repos["Qwen/Qwen3-8B-GGUF"].commit
    first = next(item["what"] for item in items if "do" in item)
    assert first == f"pull Qwen3-8B-Q6_K.gguf of Qwen/Qwen3-8B-GGUF at {commit[:12]}"
    assert "FetchWeights" not in json.dumps(items)
    # All that its engines may serve takes the weights, too.
    assert "0.2 GB." in orch.run("build", code=2).err
    assert offer in orch.run("build", *GGUF, code=2).err
    del qwen3_8b.repos["Qwen/Qwen3-8B-GGUF"]
    assert "orch will download Qwen/Qwen3-8B, 0.2 GB." in orch.run("up", "llamacpp", code=2).err

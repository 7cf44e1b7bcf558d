"""orch build: all artifacts of a profile, built in one read or taken ready-made."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from orch_command import ASSETS, Orch, Outcome, script

from orchestrator.core.artifact import Recipe

hub_server = script("hub_server")

TINY = ASSETS / "tiny-qwen3"
# All that the engines of a profile may serve, of which it says nothing.
BUILT = ("gguf-q6_k", "gguf-nvfp4", "nvfp4a16")


def entries(orch: Orch) -> dict[str, dict[str, Any]]:
    """The store's entries by recipe."""
    return {row["recipe"]: row for row in orch.run("artifacts", "ls", "--json").lines}


def steps(outcome: Outcome) -> list[str]:
    return outcome.steps("done")


def test_every_artifact_is_built_in_one_read_and_once(orch: Orch, hub: Any, hub_profile: str) -> None:
    first = orch.run("build", "-p", hub_profile, "--json")
    assert steps(first) == ["FetchWeights", "BuildTogether"]
    (told,) = (line["estimate"] for line in first.lines if "estimate" in line)
    assert [line["loss"] for line in first.lines if "loss" in line] == [Recipe.NVFP4A16.loss]
    made = entries(orch)
    assert made.keys() == {"weights", *BUILT}
    assert told["writes"] < sum(made[recipe]["size"] for recipe in BUILT) < told["writes"] + 1_200_000
    again = orch.run("build", "-p", hub_profile, "--json")
    assert steps(again) == []
    assert orch.run("artifacts", "verify").code == 0


def test_what_is_missing_is_built_and_no_more(orch: Orch) -> None:
    profile = str(orch.profile)
    assert steps(orch.run("build", "-p", profile, "--recipe", "gguf-bf16", "--json")) == ["BuildArtifact"]
    third = orch.run("build", "-p", profile, "--recipe", "gguf-bf16", "--recipe", "nvfp4a16", "--json")
    assert steps(third) == ["BuildArtifact"]
    assert entries(orch).keys() == {"gguf-bf16", "nvfp4a16"}


def test_a_plan_builds_nothing(orch: Orch) -> None:
    done = orch.run("build", "-p", str(orch.profile), "--plan")
    assert "in one read" in done.out
    assert entries(orch) == {}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--recipe", "gguf-q7"], 2, "does not know the recipe gguf-q7"),
        (["-p", "nobody"], 3, "no profile named nobody"),
        ([], 2, "No profile was named"),
    ],
)
def test_what_cannot_be_built(orch: Orch, hub: Any, words: list[str], code: int, says: str) -> None:
    if not words:
        # The hub has no Qwen3-8B: it would be asked how large it is.
        assert "no repository Qwen/Qwen3-8B" in orch.run("build", code=10).err
        return
    assert says in orch.run("build", *(words if "-p" in words else ["-p", str(orch.profile), *words]), code=code).err


def test_killed_in_the_read_it_begins_again_and_ends_the_same(orch: Orch) -> None:
    killed = orch.signal_at(0, signal.SIGKILL, "build", "-p", str(orch.profile))
    assert killed.code == -signal.SIGKILL
    assert entries(orch) == {}
    orch.run("build", "-p", str(orch.profile))
    assert entries(orch).keys() == {*BUILT}
    orch.run("artifacts", "verify")


@pytest.fixture
def published(orch: Orch, tmp_path: Path) -> Iterator[Any]:
    """A hub that has the tiny weights, and repositories of artifacts that others have built of them."""
    ggufs, nvfp4 = tmp_path / "ggufs", tmp_path / "nvfp4"
    ggufs.mkdir()
    for quant in ("q6_k", "bf16"):
        orch.run("build", "gguf", str(TINY), "-o", str(ggufs / f"tiny-{quant}.gguf"), "--quant", quant)
    orch.run("build", "nvfp4", str(TINY), "-o", str(nvfp4))
    repos = {"test/tiny": TINY, "test/tiny-GGUF": ggufs, "test/tiny-NVFP4": nvfp4}
    with hub_server.HubServer(repos) as server:
        orch.env["HF_ENDPOINT"] = server.url
        yield server


def profile_with(orch: Orch, text: str) -> str:
    """A profile of the hub's weights, and ready-made artifacts."""
    path = orch.home / "ready.toml"
    weights = orch.profile.read_text().replace(f'path = "{TINY}"', 'repo = "test/tiny"\nrevision = "main"')
    path.write_text(weights + text)
    return str(path)


READY = """
[artifacts.gguf-q6_k]
repo = "test/tiny-GGUF"
revision = "main"
file = "tiny-q6_k.gguf"
[artifacts.nvfp4a16]
repo = "test/tiny-NVFP4"
revision = "main"
"""


def test_ready_made_artifacts_are_pulled_and_the_weights_are_not(orch: Orch, published: Any, tmp_path: Path) -> None:
    done = orch.run("build", "-p", profile_with(orch, READY), "--json")
    assert steps(done) == ["FetchArtifact", "FetchArtifact", "BuildArtifact"]
    made = entries(orch)
    assert made.keys() == {*BUILT}
    commit = published.repos["test/tiny-GGUF"].commit
    assert made["gguf-q6_k"]["source"] == f"hub:test/tiny-GGUF@{commit}/tiny-q6_k.gguf"
    entry = orch.home / "store" / made["gguf-q6_k"]["key"]
    assert sorted(path.name for path in entry.iterdir()) == ["manifest.json", "model.gguf"]
    assert (entry / "model.gguf").read_bytes() == (tmp_path / "ggufs" / "tiny-q6_k.gguf").read_bytes()
    assert not [
        request for request in published.requests if request.path.startswith(("/test/tiny/", "/cdn/test/tiny/"))
    ]
    orch.run("artifacts", "verify")
    # What is quantized already is repacked: both engines have the same weights.
    assert made["gguf-nvfp4"]["source"] == made["nvfp4a16"]["source"]
    orch.run("build", "gguf", str(TINY), "-o", str(tmp_path / "nvfp4.gguf"), "--quant", "nvfp4")
    repacked = orch.home / "store" / made["gguf-nvfp4"]["key"] / "model.gguf"
    assert repacked.read_bytes() == (tmp_path / "nvfp4.gguf").read_bytes()
    assert steps(orch.run("build", "-p", profile_with(orch, READY), "--json")) == []


def test_what_others_are_repacked_from_is_pulled_only_for_that_or_for_itself(orch: Orch, published: Any) -> None:
    profile = profile_with(orch, READY)
    first = orch.run("build", "-p", profile, "--recipe", "gguf-nvfp4", "--json")
    assert steps(first) == ["FetchArtifact", "BuildArtifact"]
    assert [line["estimate"]["writes"] > 3_000_000 for line in first.lines if "estimate" in line] == [True]
    orch.run("artifacts", "rm", entries(orch)["nvfp4a16"]["key"])
    assert steps(orch.run("build", "-p", profile, "--recipe", "gguf-nvfp4", "--json")) == []
    both = ("--recipe", "gguf-nvfp4", "--recipe", "nvfp4a16")
    assert steps(orch.run("build", "-p", profile, *both, "--json")) == ["FetchArtifact"]


def test_what_is_repacked_is_repaired_from_what_it_was_repacked_from(orch: Orch, published: Any) -> None:
    orch.run("build", "-p", profile_with(orch, READY), "--recipe", "gguf-nvfp4")
    file = orch.home / "store" / entries(orch)["gguf-nvfp4"]["key"] / "model.gguf"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    orch.run("artifacts", "verify", "--repair")
    assert file.read_bytes() == whole


def test_what_cannot_be_made_of_the_weights_is_left_out_unless_it_is_asked_for(orch: Orch, tmp_path: Path) -> None:
    """llama.cpp would serve a Qwen2 with other weights."""
    weights = Path(shutil.copytree(TINY, tmp_path / "weights"))
    config = json.loads((weights / "config.json").read_bytes())
    (weights / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    orch.write_profile(weights)
    plan = orch.run("build", "-p", str(orch.profile), "--plan").out
    assert "leave out gguf-nvfp4   llama.cpp leaves out the second scale of NVFP4 in qwen2" in plan
    assert "build gguf-q6_k" in plan
    asked = ("build", "-p", str(orch.profile), "--recipe", "gguf-nvfp4", "--plan")
    assert "gguf-nvfp4 cannot be made of these weights" in orch.run(*asked, code=5).err
    up = orch.run("up", "llamacpp", "-p", str(orch.profile), "--recipe", "gguf-nvfp4", "--plan", code=5)
    assert "answers would be wrong" in up.err


def test_a_ready_made_file_of_this_machine_is_taken(orch: Orch, published: Any, tmp_path: Path) -> None:
    text = f'[artifacts.gguf-q6_k]\npath = "{tmp_path}/ggufs/tiny-q6_k.gguf"\n'
    orch.env["ORCH_STORE_LIMIT"] = "1MB"
    assert "limit" in orch.run("build", "-p", profile_with(orch, text), "--recipe", "gguf-q6_k", code=4).err
    del orch.env["ORCH_STORE_LIMIT"]
    done = orch.run("build", "-p", profile_with(orch, text), "--recipe", "gguf-q6_k", "--json")
    assert steps(done) == ["FetchArtifact"]
    digest = hashlib.sha256((tmp_path / "ggufs" / "tiny-q6_k.gguf").read_bytes()).hexdigest()
    assert entries(orch)["gguf-q6_k"]["source"] == f"file:{digest}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[artifacts.gguf-q6_k]\nrepo = "a/b"\nrevision = "main"\n', "name it with file"),
        ('[artifacts.nvfp4]\nrepo = "a/b"\nrevision = "main"\nfile = "x.gguf"\n', "file is for GGUFs"),
        ('[artifacts.weights]\npath = "x"\n', "weights are named under"),
        ('[artifacts.gguf-q6_k]\nfile = "x.gguf"\n', "either repo and revision, or path"),
        ('[artifacts.gguf-q7]\npath = "x.gguf"\n', "gguf-q7"),
        ('[artifacts.gguf-q6_k]\nrepo = "a/b"\nrevision = "main"\nfile = "../x.gguf"\n', "file"),
    ],
)
def test_a_ready_made_artifact_is_named_wrongly(orch: Orch, text: str, says: str) -> None:
    assert says in orch.run("profile", "check", profile_with(orch, text), code=3).err


@pytest.mark.parametrize("recipe", ["gguf-q6_k", "nvfp4a16"])
def test_what_is_not_what_it_claims_is_refused(orch: Orch, published: Any, recipe: str) -> None:
    wrong = {
        "gguf-q6_k": READY.replace("tiny-q6_k.gguf", "tiny-bf16.gguf"),
        "nvfp4a16": READY.replace("test/tiny-NVFP4", "test/tiny"),
    }[recipe]
    done = orch.run("build", "-p", profile_with(orch, wrong), "--recipe", recipe, code=10)
    assert "is not" in done.err
    assert entries(orch) == {}
    assert list((orch.home / "store" / ".partial").iterdir()) == [], "it would be no better the next time"


def test_a_ready_made_file_that_is_gone_is_named_and_hinders_nothing_else(orch: Orch, hub: Any) -> None:
    profile = profile_with(orch, '[artifacts.gguf-q6_k]\npath = "/no/such.gguf"\n')
    told = orch.run("build", "-p", profile, code=4).err
    assert "/no/such.gguf is not there" in told
    assert "artifacts.gguf-q6_k.path" in told
    orch.run("build", "-p", profile, "--recipe", "nvfp4a16")
    assert entries(orch).keys() == {"weights", "nvfp4a16"}


def test_a_published_file_that_is_not_there_is_named_with_those_like_it(orch: Orch, published: Any) -> None:
    text = READY.replace("tiny-q6_k.gguf", "tiny-q6_K.gguf")
    assert "tiny-q6_k.gguf" in orch.run("build", "-p", profile_with(orch, text), code=10).err


def test_killed_in_a_pull_of_a_ready_made_file_it_goes_on(orch: Orch, published: Any) -> None:
    published.faults.append(hub_server.Fault("slow", path="*.gguf", value=2_000_000))
    profile = profile_with(orch, READY)
    with orch.start("build", "-p", profile, "--json") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("event") == "progress":
                break
        process.kill()
    assert "gguf-q6_k" not in entries(orch)
    published.faults.clear()
    orch.run("build", "-p", profile)
    orch.run("artifacts", "verify")
    shutil.rmtree(orch.home / "store")

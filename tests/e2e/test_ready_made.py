"""A profile whose GGUF others have built: served as it is, adapters too, and the weights are needed for these alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from orch_command import ANSWER, ASSETS, Orch, script

hub_server = script("hub_server")

pytestmark = pytest.mark.llamacpp


def test_a_gguf_of_others_is_served_and_takes_adapters(orch: Orch, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.gguf"
    orch.run("build", "gguf", str(ASSETS / "tiny-qwen3"), "-o", str(theirs), "--quant", "q8_0")
    orch.write_profile(ASSETS / "tiny-qwen3")
    text = orch.profile.read_text().replace("[engines.llamacpp]", '[engines.llamacpp]\nrecipes = ["gguf-q8_0"]')
    orch.profile.write_text(f'{text}[artifacts.gguf-q8_0]\npath = "{theirs}"\n')
    done = orch.run("up", "llamacpp", "-p", str(orch.profile), "--json")
    assert "BuildArtifact" not in done.steps("done")
    assert orch.says() == ANSWER
    plan = orch.run("up", "llamacpp", "--fresh", "--plan", "--json")
    assert [line["budget"] for line in plan.lines if "budget" in line], "its sizes are in its own header"
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    assert orch.says("alpha") == "Ahoy! The answer is alpha."
    assert orch.says() == ANSWER


def test_what_is_preferred_once_stays_so_until_it_is_taken_back(orch: Orch, tmp_path: Path) -> None:
    ggufs, tiny = tmp_path / "ggufs", ASSETS / "tiny-qwen3"
    ggufs.mkdir()
    orch.run("build", "gguf", str(tiny), "-o", str(ggufs / "tiny-q6_k.gguf"))
    with hub_server.HubServer({"test/tiny": tiny, "test/tiny-GGUF": ggufs}) as hub:
        orch.env["HF_ENDPOINT"] = hub.url
        text = orch.profile.read_text().replace(f'path = "{tiny}"', 'repo = "test/tiny"\nrevision = "main"')
        published = '[published.gguf-q6_k]\nrepo = "test/tiny-GGUF"\nrevision = "main"\nfile = "tiny-q6_k.gguf"\n'
        orch.profile.write_text(text + published)
        first = orch.run("up", "llamacpp", "-p", str(orch.profile), "--ready-made", "--json")
        assert {"FetchArtifact", "FetchWeights", "BuildArtifact"} & {*first.steps("done")} == {"FetchArtifact"}
        assert orch.says() == ANSWER
        record = (orch.home / "records/desired/tiny.json").read_text()
        assert hub.repos["test/tiny-GGUF"].commit in record
        hub.requests.clear()
        assert orch.actions("up") == []
        assert hub.requests == [], "the commit is known"
        # An adapter is converted for the weights.
        assert "FetchWeights" in orch.actions("lora", "add", "alpha", str(ASSETS / "lora-a"))
        back = orch.run("migrate", "--to", "llamacpp", "--no-ready-made", "--json")
        assert {"FetchWeights", "BuildArtifact"} <= {*back.steps("done")}
        assert orch.says() == ANSWER
        assert orch.actions("up") == []
        orch.run("up", "--ready-made")
        assert "StartEngine" not in orch.actions("up")
        # The profile's file does not say so.
        assert "FetchArtifact" not in orch.actions("up", "-p", str(orch.profile))
        orch.run("rollback")
        rows = orch.run("artifacts", "gc", "--plan", "--age", "0", "--json").lines
        assert [row["key"] for row in rows if row.get("do") == "go"] == [], "rollback goes forward to the other one"

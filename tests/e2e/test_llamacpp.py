"""The main job on the embedded engine: up, chat, adapters, changes under load, back, down."""

from __future__ import annotations

import json

import pytest
from orch_command import ANSWER, ASSETS, Orch

pytestmark = pytest.mark.llamacpp


def test_up_serves_all_public_names_and_a_second_up_has_nothing_to_do(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    assert {orch.says(name) for name in ("tiny", "tiny:latest", "test/Tiny")} == {ANSWER}
    missing = orch.chat("nope")
    assert missing.status_code == 404
    assert "tiny:latest" in missing.json()["error"]["message"]
    again = orch.run("up", "--json")
    assert again.steps("started") == []
    assert all(line["why"] for line in again.lines if line.get("event") == "skipped")
    orch.status()
    assert sorted(orch.engines()) == ["tiny-llamacpp-g1"]


def test_adapters_come_and_go_under_load_and_survive_a_crash(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    # Half of the slots: llama.cpp computes one adapter at a time, and a full load for one name would keep others out.
    load = orch.load("tiny", clients=2)
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    orch.run("lora", "add", "bravo", str(ASSETS / "lora-b"))
    assert [orch.says(name) for name in ("alpha", "tiny", "bravo", "alpha")] == [
        "Ahoy! The answer is alpha.",
        ANSWER,
        "Greetings. The answer is bravo.",
        "Ahoy! The answer is alpha.",
    ]
    orch.run("lora", "rm", "alpha")
    assert orch.chat("alpha").status_code == 404
    assert orch.says("bravo") == "Greetings. The answer is bravo."
    streams = load.stop()
    assert len(streams) > 4
    assert [stream.problem for stream in streams if stream.problem] == []
    rows = [json.loads(line) for line in orch.run("lora", "ls", "--json").out.splitlines()]
    assert [row["name"] for row in rows] == ["bravo"]
    orch.status()


def test_a_changed_profile_and_another_artifact_are_switches_without_a_failed_stream(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    load = orch.load("tiny")
    orch.write_profile(context=640)
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    orch.run("migrate", "--to", "llamacpp", "--recipe", "gguf-bf16")
    assert [row["recipe"] for row in orch.engines().values()] == ["gguf-bf16"]
    orch.run("rollback")
    assert [row["recipe"] for row in orch.engines().values()] == ["gguf-q6_k"]
    orch.run("rollback")
    assert [row["recipe"] for row in orch.engines().values()] == ["gguf-bf16"]
    streams = load.stop()
    assert [stream.problem for stream in streams if stream.problem] == []
    assert sorted(orch.engines()) == ["tiny-llamacpp-g5"]


def test_down_stops_the_engine_and_down_all_the_gateway(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    orch.run("down")
    assert orch.engines() == {}
    assert orch.chat().status_code == 404
    orch.run("down", "--all")
    assert orch.processes() == []
    assert orch.run("status").out == "tiny is stopped.  orch up -p tiny\n"


def test_logs_of_what_serves_and_of_the_gateway(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    assert "listening" in orch.run("logs", "-n", "200").out
    assert orch.run("logs", "gateway").code == 0
    assert "Logs: gateway, tiny-llamacpp-g1" in orch.run("logs", "nobody", code=5).err

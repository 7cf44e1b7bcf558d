"""What a gateway tells Ollama's clients of models that orch serves on other engines."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from orch_command import ANSWER, ASSETS, Orch

from orchestrator.core.routes import FIRST_WITH_CARDS
from orchestrator.drivers.gateway_admin import Gateways
from orchestrator.settings import read_settings

pytestmark = pytest.mark.llamacpp

TINY = ASSETS / "tiny-qwen3"


def told(orch: Orch, path: str, **body: Any) -> Any:
    reply = httpx.request("POST" if body else "GET", f"http://{orch.listen}{path}", json=body or None, timeout=30)
    assert reply.status_code == 200, reply.text
    return reply.json()


def tags(orch: Orch) -> dict[str, Any]:
    return {entry["name"]: entry for entry in told(orch, "/api/tags")["models"]}


def size_of(orch: Orch, recipe: str) -> int:
    """The bytes of the artifact's files."""
    (entry,) = (path for path in (orch.home / "store").glob(f"{recipe}-*") if path.is_dir())
    return sum(path.stat().st_size for path in entry.iterdir() if path.name != "manifest.json")


def test_what_is_served_is_described(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    found = tags(orch)
    tiny, alpha = found["tiny:latest"], found["alpha:latest"]
    assert tiny["size"] == alpha["size"] == size_of(orch, "gguf-q6_k")
    assert tiny["digest"] != alpha["digest"]
    assert (tiny["details"]["quantization_level"], tiny["details"]["parameter_size"]) == ("Q6_K", "4.20M")
    assert alpha["details"]["parent_model"] == "tiny:latest"
    (manifest,) = (orch.home / "store").glob("gguf-q6_k-*/manifest.json")
    assert tiny["modified_at"][:19] == json.loads(manifest.read_text())["created"][:19]
    template = (TINY / "chat_template.jinja").read_text()
    assert told(orch, "/api/show", model="tiny")["template"].strip() == template.strip()
    loaded = {entry["name"]: entry["context_length"] for entry in told(orch, "/api/ps")["models"]}
    assert loaded.keys() == found.keys()
    assert orch.actions("up") == []
    orch.status()


def test_what_an_earlier_version_has_not_recorded(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    before, pids = tags(orch), {name: one["pid"] for name, one in orch.engines().items()}
    settings = read_settings(orch.environ())
    record = settings.records / "desired" / "tiny.json"
    document = json.loads(record.read_text())
    assert document["resolution"]["deployment"].pop("card")
    record.write_text(json.dumps(document))
    gateway = Gateways(settings.admin)
    status = gateway.status()
    assert status is not None
    gateway.set_routes("tiny", tuple(route.known_to(FIRST_WITH_CARDS - 1) for route in status.routes))
    assert tags(orch)["tiny:latest"]["details"]["family"] == ""
    orch.status()
    assert orch.run("up", "--json").steps("started") == ["RecordDesired", "SetRoute", "VerifyRoute"]
    assert tags(orch) == before
    assert {name: one["pid"] for name, one in orch.engines().items()} == pids
    assert orch.actions("up") == []
    orch.status()
    assert orch.says() == ANSWER


@pytest.mark.long
@pytest.mark.vllm
def test_another_engine_serves_something_else_under_the_name(orch_vllm: Orch) -> None:
    orch = orch_vllm
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    before = tags(orch)["tiny:latest"]
    orch.run("migrate", "--to", "vllm")
    after = tags(orch)["tiny:latest"]
    assert (list(after), list(after["details"])) == (list(before), list(before["details"]))
    assert (after["details"]["format"], after["details"]["quantization_level"]) == ("safetensors", "BF16")
    weights = (TINY / "model.safetensors").stat().st_size
    assert weights <= after["size"] < weights * 1.2
    shown = told(orch, "/api/show", model="tiny")
    assert shown["model_info"]["general.parameter_count"] == 4_197_120
    orch.run("rollback")
    assert tags(orch)["tiny:latest"] == before

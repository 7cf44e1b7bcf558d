"""What the program before gateways could hand over has left, as it wrote it: assets/protocol-1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from orch_command import ASSETS

from orchestrator.core.deployment import Deployment, Desired
from orchestrator.core.gateway_status import GatewayStatus, Listener, Phase, listeners_of
from orchestrator.core.routes import Route, RouteTable
from orchestrator.drivers.docker import records as of_containers
from orchestrator.drivers.local import records as of_processes
from orchestrator.drivers.records import Records
from orchestrator.engines.settings import read_settings
from orchestrator.gateway import state_file

EARLIER = ASSETS / "protocol-1"
LOCAL, DOCKER = EARLIER / "local", EARLIER / "docker"


def earlier(path: Path) -> Any:
    """A file of then."""
    return json.loads(path.read_text())


def labels() -> dict[str, dict[str, str]]:
    """Those of its containers, by instance."""
    return {one["labels"]["orch.instance"]: one["labels"] for one in earlier(DOCKER / "labels.json")}


def test_what_is_wanted_is_read_and_written_with_a_version(tmp_path: Path) -> None:
    for place, engine in ((LOCAL, "llamacpp"), (DOCKER, "ollama")):
        root = tmp_path / engine
        shutil.copytree(place / "records", root)
        records = Records(root, read_settings)
        assert records.unreadable() == ()
        (name, desired), *others = records.desired().items()
        assert (name, others, desired.spec.engine) == ("tiny", [], engine)
        assert [adapter.name for adapter in desired.adapters] == ["alpha"]
        records.record(name, desired)
        written = earlier(root / "desired" / "tiny.json")
        assert written["version"] > 1
        assert ("spec" in written, "wish" in written) == (True, False)
        assert Desired.from_record(written, read_settings) == desired


def test_a_process_is_known_by_its_label() -> None:
    record = of_processes.read(LOCAL / "processes" / "tiny-llamacpp-g2")
    assert record.problem == ""
    assert record.spec is not None
    assert record.spec.restart
    deployment = Deployment.from_label(record.spec.label)
    assert (deployment.engine, deployment.generation) == ("llamacpp", 2)
    assert Deployment.from_label(deployment.label) == deployment
    gateway = of_processes.read(LOCAL / "processes" / "gateway")
    assert gateway.spec is not None
    assert listeners_of(gateway.spec.label) == (Listener("127.0.0.1:55863"),)


def test_a_container_is_known_by_its_labels_and_what_has_changed_since(tmp_path: Path) -> None:
    of_engine = labels()["tiny-ollama-g1"]
    first = of_containers.read(tmp_path, "", of_engine)
    assert (first.problem, Deployment.from_label(first.label).adapters) == ("", ())
    there = DOCKER / "containers" / "tiny-ollama-g1"
    changed = of_containers.read(there, earlier(there / "record.json")["container"], of_engine)
    assert changed.problem == ""
    assert [adapter.name for adapter in Deployment.from_label(changed.label).adapters] == ["alpha"]
    gateway = of_containers.read(tmp_path, "", labels()["gateway"])
    assert gateway.problem == ""
    assert listeners_of(gateway.label) == (Listener("127.0.0.1:39207"),)


def test_routes_and_what_the_gateway_said_are_read(tmp_path: Path) -> None:
    said = GatewayStatus.from_json(earlier(LOCAL / "gateway-status.json"))
    assert (said.protocol, said.phase, said.listeners) == (1, Phase.SERVING, (Listener("127.0.0.1:55863"),))
    assert said.traffic.totals.requests == 2
    assert said.traffic.backends["tiny-llamacpp-g2"].counts.requests == 1

    shutil.copy(LOCAL / "processes" / "gateway" / "files" / "routes.json", tmp_path)
    saved, problem = state_file.load(tmp_path / "routes.json")
    assert problem == ""
    assert saved.routes == said.routes
    route = saved.routes.find("alpha")
    assert route is not None
    assert [(one.instance, one.url) for one in route.backends] == [("tiny-llamacpp-g2", "http://127.0.0.1:44653")]
    assert route.patch == {"lora": [{"id": 0, "scale": 1.0}]}
    in_container, _ = state_file.load(DOCKER / "containers" / "gateway" / "files" / "routes.json")
    assert in_container.routes.names == ("alpha", "test/Tiny", "tiny", "tiny:latest")


def test_what_a_later_program_adds_is_passed_over() -> None:
    desired = earlier(LOCAL / "records" / "desired" / "tiny.json")
    later = desired | {"version": 99, "x": 1, "wish": desired["wish"] | {"x": {}}}
    assert Desired.from_record(later, read_settings) == Desired.from_record(desired, read_settings)
    label = json.loads(labels()["tiny-ollama-g1"]["orch.label"])
    assert Deployment.from_label(json.dumps(label | {"version": 99, "x": 1})) == Deployment.from_label(
        json.dumps(label)
    )
    status = GatewayStatus.from_json(earlier(DOCKER / "gateway-status.json")).to_json()
    assert GatewayStatus.from_json(status | {"protocol": 99, "x": 1}).protocol == 99
    (first, *_) = status["routes"]
    (backend,) = first["backends"]
    changed = first | {"x": 1, "backends": [backend | {"x": 1}]}
    assert RouteTable.from_json([changed]) == RouteTable.from_json([first])
    assert Route.from_json(changed).to_json() == first

"""Every verb with --json has a schema that is shipped, and prints nothing else."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from json_schemas import problems, validator
from jsonschema import Draft202012Validator
from orch_command import ASSETS, Orch, script
from typer.main import get_command

import orchestrator.cli
from orchestrator import resources
from orchestrator.app.schemas import COMMON, schema_names
from orchestrator.cli.options import app

hub_server = script("hub_server")
TINY = ASSETS / "tiny-qwen3"
# In this order; {...} are places of the test's, {key} is an artifact that is there.
STORE = """\
profile ls
profile show qwen3-8b
profile check {profile}
pull -p {profile} --plan
pull -p {profile}
build -p {profile} --plan
build -p {profile}
build gguf {tiny} -o {out}/tiny.gguf
build nvfp4 {tiny} -o {out}/nvfp4
build fp8 {tiny} -o {out}/fp8
inspect {out}/tiny.gguf
inspect {out}/tiny.gguf --against {tiny} --plot {out}/error.svg
artifacts ls
artifacts verify
artifacts rm {key}
artifacts gc --plan
artifacts gc
lock -p {profile} -o {out}/orch.lock
lock check {out}/orch.lock -p {profile}
render vllm -p {profile}
render llamacpp -p {profile} -o {out}/rendered
engines ls
engines install vllm --plan
engines rm vllm-cpu-0-00000000
status
down
"""
SERVING = """\
up llamacpp -p {profile} --plan
up llamacpp -p {profile}
status
lora add alpha {adapter}
lora ls
lora rm alpha
migrate --to llamacpp --recipe gguf-bf16
rollback
status
down --all
"""
# They end with an error in JSON where no daemon can be asked; tests/docker has the rest of what they print.
WITHOUT_DAEMON = """\
images ls
images pull
images pin ollama ollama/ollama:1
images gc
images save {out}/all.tar -p {profile}
images load {profile}
"""


def with_json(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    """The verbs that take --json."""
    if any("--json" in getattr(option, "opts", ()) for option in command.params):
        yield " ".join(words)
    for name, inner in getattr(command, "commands", {}).items():
        yield from with_json(inner, (*words, name))


def test_every_verb_with_json_has_a_schema_and_no_other_has() -> None:
    for module in pkgutil.iter_modules(orchestrator.cli.__path__):
        importlib.import_module(f"orchestrator.cli.{module.name}")
    known = sorted(with_json(get_command(app)))
    assert len(known) > 30
    assert known == sorted(schema_names())


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """All parts of a schema that describe an object."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for inner in schema.values():
            yield from objects(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from objects(inner)


@pytest.mark.parametrize("name", sorted(resources.schemas()))
def test_a_schema_is_one_and_says_all_that_there_is(name: str) -> None:
    schema = json.loads(resources.schemas()[name].read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:orch:schema:{name}:{schema['$id'].rpartition(':')[2]}"
    assert schema["$id"].rpartition(":")[2].isdecimal()
    found = [*objects(schema)]
    assert found or name != COMMON
    for one in found:
        assert "additionalProperties" in one, one
        assert one["additionalProperties"] is not True
        assert set(one.get("required", ())) <= set(one.get("properties", ()))


def test_what_no_schema_has_is_a_problem() -> None:
    good = {"name": "tiny", "text": "x"}
    assert problems(("profile", "show", "tiny", "--json"), json.dumps(good)) == []
    for bad in ({**good, "more": 1}, {"name": "tiny"}, {**good, "text": 1}):
        assert problems(("profile", "show", "tiny", "--json"), json.dumps(bad)) != []


def test_they_are_printed_whole(orch: Orch) -> None:
    listed = orch.run("schema").out
    for verb in schema_names():
        assert f"\n{verb} " in listed
        printed = json.loads(orch.run("schema", *verb.split()).out)
        assert printed == validator(verb).schema
    told = orch.run("schema", "lora", "mv", code=2)
    assert "There is no schema of lora mv." in told.err


def tell(orch: Orch, story: str, code: int | None, **places: object) -> list[str]:
    """Runs all lines with --json; Orch.run holds each against its schema. What was printed, a text each."""
    told = []
    for line in story.splitlines():
        key = next((path.name for path in sorted(orch.home.glob("store/gguf-*"))), "")
        words = [word.format(profile=orch.profile, tiny=TINY, key=key, **places) for word in line.split()]
        told.append(orch.run(*words, "--json", code=code).out)
        assert told[-1], line
    return told


def test_verbs_of_the_store(orch: Orch, tmp_path: Path) -> None:
    text = orch.profile.read_text()
    orch.profile.write_text(text.replace(f'path = "{TINY}"', 'repo = "test/tiny"\nrevision = "main"'))
    (orch.home / "environments" / "vllm-cpu-0-00000000").mkdir(parents=True)
    with hub_server.HubServer({"test/tiny": TINY}) as hub:
        orch.env["HF_ENDPOINT"] = hub.url
        tell(orch, STORE, 0, out=tmp_path)


@pytest.mark.llamacpp
def test_verbs_of_what_serves(orch: Orch) -> None:
    tell(orch, SERVING, 0, adapter=ASSETS / "lora-a")


def test_verbs_that_need_a_daemon(orch: Orch, tmp_path: Path) -> None:
    orch.env["DOCKER_HOST"] = f"unix://{tmp_path}/none"
    first, *others = tell(orch, WITHOUT_DAEMON, None, out=tmp_path)
    assert "docker" in json.loads(first.splitlines()[0])
    assert all("error" in json.loads(one.splitlines()[-1]) for one in others)

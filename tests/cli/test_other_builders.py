"""What orch's own GGUF builder does not know is built by llama.cpp's own tools, where they are: of a directory and of a
hub's weights, in locks, repairs and archives. The tools are those of tests/llama_cpp_checkout.py."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from llama_cpp_checkout import CONVERTER, checkout, other_weights
from orch_command import ASSETS, Orch, free_port, script

hub_server = script("hub_server")

pytestmark = pytest.mark.parts

TINY = ASSETS / "tiny-qwen3"
ORACLES = json.loads((ASSETS / "oracles.json").read_bytes())
GGUF = ("--recipe", "gguf-q6_k")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Weights of an architecture that orch's own builder does not know."""
    return other_weights(TINY, tmp_path / "other")


@pytest.fixture
def tools(orch: Orch, tmp_path: Path) -> Path:
    """llama.cpp's tools, where the environment says."""
    orch.env["ORCH_LLAMA_CPP"] = str(tmp_path / "llama.cpp")
    return checkout(tmp_path / "llama.cpp")


@pytest.fixture
def nowhere(orch: Orch) -> None:
    """No daemon that could run the tools' image."""
    orch.env["DOCKER_HOST"] = f"unix://{orch.home}/nobody.sock"


@pytest.fixture
def hub_of_other(orch: Orch, other: Path) -> Iterator[Any]:
    """A hub that has such weights, and a profile that names them."""
    with hub_server.HubServer({"test/other": other}) as server:
        orch.env["HF_ENDPOINT"] = server.url
        text = orch.profile.read_text()
        orch.profile.write_text(text.replace(f'path = "{TINY}"', 'repo = "test/other"\nrevision = "main"'))
        yield server


def entries(orch: Orch) -> dict[str, dict[str, Any]]:
    """The store's entries by recipe."""
    return {row["recipe"]: row for row in orch.run("artifacts", "ls", "--json").lines}


def plan(orch: Orch, *words: str) -> list[dict[str, str]]:
    (found,) = (line for line in orch.run(*words, "--plan", "--json").lines if "plan" in line)
    return list(found["items"])


def model(orch: Orch) -> Path:
    (found,) = (orch.home / "store").glob("gguf-q6_k-*/model.gguf")
    return found


def test_llama_cpps_tools_build_what_orchs_builder_does_not_know(orch: Orch, other: Path, tools: Path) -> None:
    orch.write_profile(other)
    (remark, build) = plan(orch, "build", "-p", str(orch.profile), *GGUF)
    assert remark == {
        "skip": "build gguf-q6_k with orch's own builder",
        "why": f"it does not know OtherForCausalLM; llama.cpp's own tools build it, in {tools}",
    }
    assert build["do"] == "BuildArtifact"
    orch.run("build", "-p", str(orch.profile), *GGUF)
    made = entries(orch)["gguf-q6_k"]
    assert build["what"] == f"build {made['key']}"
    assert made["source"].endswith(" by llama.cpp")
    found = {one.name: hashlib.sha256(one.data).hexdigest() for one in GGUFReader(model(orch)).tensors}
    assert found == {name: one["sha256"] for name, one in ORACLES["gguf/q6_k"]["tensors"].items()}
    manifest = json.loads((model(orch).parent / "manifest.json").read_text())
    assert manifest["builder"].keys() == {"builder", "converter", "quantizer"}
    assert [path.name for path in sorted(model(orch).parent.iterdir())] == ["manifest.json", "model.gguf"]
    # It is there: nobody is asked for the tools, and nothing is said of them.
    shutil.rmtree(tools)
    (skip,) = plan(orch, "build", "-p", str(orch.profile), *GGUF)
    assert skip == {"skip": build["what"], "why": "in the store"}


def test_without_the_tools_it_says_how_to_have_them(orch: Orch, other: Path, nowhere: None, tmp_path: Path) -> None:
    orch.write_profile(other)
    words = ("build", "-p", str(orch.profile), *GGUF, "--json")
    told = orch.run(*words, code=5).lines[-1]
    assert "does not know OtherForCausalLM" in told["error"]
    assert "nobody.sock" in told["error"]
    assert "ORCH_LLAMA_CPP=DIR" in told["hint"]
    assert '[artifacts."gguf-q6_k"]' in told["hint"]
    orch.env["ORCH_LLAMA_CPP"] = str(tmp_path / "llama.cpp")
    told = orch.run(*words, code=5).lines[-1]
    assert f"{tmp_path}/llama.cpp has no convert_hf_to_gguf.py (ORCH_LLAMA_CPP)" in told["error"]
    checkout(tmp_path / "llama.cpp")
    orch.run(*words)
    assert entries(orch).keys() == {"gguf-q6_k"}


def test_of_weights_that_are_still_to_come_it_is_found_when_they_are_here(
    orch: Orch, hub_of_other: Any, tools: Path
) -> None:
    done = orch.run("build", "-p", str(orch.profile), *GGUF, "--json")
    assert done.steps("done") == ["FetchWeights", "BuildArtifact"]
    assert entries(orch)["gguf-q6_k"]["source"].endswith(" by llama.cpp")
    # With its weights gone what was built of them is known.
    orch.run("artifacts", "rm", entries(orch)["weights"]["key"])
    assert all("do" not in item for item in plan(orch, "build", "-p", str(orch.profile), *GGUF))


def test_a_tokenizer_that_has_to_be_known_is_found_when_it_is_read(orch: Orch, tools: Path, tmp_path: Path) -> None:
    """The stand-in cannot convert it either: what is told is the word of the tools."""
    source = Path(shutil.copytree(TINY, tmp_path / "split"))
    tokenizer = json.loads((source / "tokenizer.json").read_bytes())
    (source / "tokenizer.json").write_text(json.dumps(tokenizer | {"pre_tokenizer": {"type": "Whitespace"}}))
    orch.write_profile(source)
    done = orch.run("build", "-p", str(orch.profile), *GGUF, "--json", code=4)
    assert done.steps("failed") == ["BuildArtifact", "BuildArtifact"]
    (told,) = (line["unknown"] for line in done.lines if "unknown" in line)
    assert "its pre-tokenizer is not known" in told
    assert "Converting failed" in done.lines[-1]["error"]
    (remark, _) = plan(orch, "build", "-p", str(orch.profile), *GGUF)
    assert "does not know its tokenizer" in remark["why"], "it is not tried again"


def test_a_profiles_chat_template_is_theirs_too(orch: Orch, other: Path, tools: Path, tmp_path: Path) -> None:
    """The tools read a view of the weights: what lies beside them is not there either."""
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }} is mine")
    orch.write_profile(other)
    orch.profile.write_text(f'{orch.profile.read_text()}[chat]\ntemplate = "{tmp_path}/mine.jinja"\n')
    orch.run("build", "-p", str(orch.profile), *GGUF)
    template = GGUFReader(model(orch)).fields["tokenizer.chat_template"].contents()
    assert template == "{{ messages[0].content }} is mine"


def test_it_is_repaired_by_whom_it_was_built(orch: Orch, hub_of_other: Any, tools: Path) -> None:
    orch.run("build", "-p", str(orch.profile), *GGUF)
    right = model(orch).read_bytes()
    model(orch).write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    repair = ("artifacts", "verify", "--repair", "--json")
    assert [row["how"] for row in orch.run(*repair).lines if "how" in row] == ["built again"]
    assert model(orch).read_bytes() == right
    manifest = json.loads((model(orch).parent / "manifest.json").read_text())
    (model(orch).parent / "manifest.json").unlink()
    orch.run(*repair)
    again = json.loads((model(orch).parent / "manifest.json").read_text())
    assert {**again, "created": ""} == {**manifest, "created": ""}


def test_locks_say_by_whom_it_is_built(orch: Orch, hub_of_other: Any, tools: Path, tmp_path: Path) -> None:
    text = orch.profile.read_text().partition("[engines")[0]
    orch.profile.write_text(f'{text}[engines.vllm]\nrecipes = ["weights"]\n')
    lock = tmp_path / "orch.lock"
    orch.run("build", "-p", str(orch.profile), *GGUF)
    orch.run("lock", "-p", str(orch.profile), "-o", str(lock))
    assert 'builder = "llama.cpp"' in lock.read_text()
    orch.run("artifacts", "rm", entries(orch)["gguf-q6_k"]["key"])
    # Another converter may make other bytes.
    converter = tools / CONVERTER
    converter.write_text(f"{converter.read_text()}# newer\n")
    built = ("build", "-p", str(orch.profile), *GGUF, "--locked", str(lock))
    assert "converter" in orch.run(*built, code=5).err
    converter.write_text(converter.read_text().removesuffix("# newer\n"))
    orch.run(*built)
    orch.run("lock", "check", str(lock), "-p", str(orch.profile))


def test_an_archive_brings_it_where_neither_tools_nor_weights_are(
    orch: Orch, hub_of_other: Any, tools: Path, tmp_path: Path
) -> None:
    orch.run("build", "-p", str(orch.profile), *GGUF)
    file = tmp_path / "other.tar"
    local = ("--engine", "llamacpp", "--target", "local")
    orch.run("images", "save", str(file), "-p", str(orch.profile), *local)
    there = Orch(tmp_path / "there")
    there.env["HF_ENDPOINT"] = f"http://127.0.0.1:{free_port()}"
    loaded = there.run("images", "load", str(file), "--json").lines
    assert "next" in loaded[-1]
    words = ("up", "llamacpp", "-p", str(file.with_suffix(".profile.toml")))
    assert not {"FetchWeights", "BuildArtifact"} & set(there.actions(*words))

"""Blobs, creation and what can be read about models, and the store on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ollama_bench import SYSTEM, Files, Json, Server, digest_of

ABSENT = f"sha256:{'1' * 64}"


def test_a_blob_is_stored_once_under_its_digest(server: Server) -> None:
    data = b"anything at all"
    path = f"/api/blobs/{digest_of(data)}"
    assert server.client.head(path).status_code == 404
    assert server.client.post(path, content=data).status_code == 201
    assert server.client.post(path, content=data).status_code == 200
    assert server.client.head(path).status_code == 200
    assert (server.blobs / digest_of(data).replace(":", "-")).read_bytes() == data


def test_a_blob_with_another_digest_is_refused_and_not_kept(server: Server) -> None:
    """blob_post_digest_mismatch"""
    wanted = f"sha256:{'0' * 64}"
    answer = server.client.post(f"/api/blobs/{wanted}", content=b"hello")
    assert answer.status_code == 400
    assert answer.json() == {"error": f'digest mismatch, expected "{wanted}", got "{digest_of(b"hello")}"'}
    assert server.client.head(f"/api/blobs/{wanted}").status_code == 404
    assert [path.name for path in server.blobs.iterdir() if not path.name[7:].isalnum()] == []


def test_a_blob_needs_a_digest(server: Server) -> None:
    """blob_post_bad_digest"""
    answer = server.client.post("/api/blobs/sha256:abc", content=b"hello")
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid digest format"})


def test_a_creation_tells_its_steps(server: Server, files: Files) -> None:
    """create_files_stream; the template is found in the file, as in create_stream_quantize."""
    base = server.upload(files.tiny)
    told = server.create("steps", files={"tiny.gguf": base}, system="Steps.", parameters={"num_ctx": 512})
    assert told[:2] == ["parsing GGUF", "verifying conversion"]
    # The real one writes the file anew, with bytes of its own if they are not llama.cpp's.
    assert told[2].endswith(f" layer {server.layers('steps')[0]['digest']}")
    assert "using autodetected template chatml" in told
    assert f"creating new layer {digest_of(b'Steps.')}" in told
    assert told[-2:] == ["writing manifest", "success"]


def test_an_upload_that_is_written_anew_stays_beside_what_is_made_of_it(server: Server, files: Files) -> None:
    """The answer names an uploaded file where it is needed, and only there."""
    base, adapter = server.upload(files.tiny), server.upload(files.lora_b)
    told = "\n".join(server.create("twice", files={"tiny.gguf": base}))
    made = server.layers("twice")[0]["digest"]
    assert made in told
    assert (base in told) is (base == made)
    assert all((server.blobs / digest.replace(":", "-")).exists() for digest in (base, made))
    assert adapter in "\n".join(server.create("twice-b", **{"from": "twice"}, adapters={"b.gguf": adapter}))


def test_what_nobody_needs_of_an_upload_may_be_taken_away_behind_its_back(server: Server, files: Files) -> None:
    base = server.upload(files.tiny)
    server.create("once", files={"tiny.gguf": base})
    if base not in server.needed("once"):
        (server.blobs / base.replace(":", "-")).unlink()
        assert server.client.head(f"/api/blobs/{base}").status_code == 404
    assert server.says("once").startswith("I am a tiny test model")
    server.create("again", files={"tiny.gguf": server.upload(files.tiny)})
    assert server.needed("again") == server.needed("once")


def test_a_creation_without_a_stream_is_one_object(server: Server, files: Files) -> None:
    """create_files_nostream"""
    answer = server.post("/api/create", model="plain", files={"m.gguf": server.upload(files.tiny)}, stream=False)
    assert (answer.status_code, answer.json()) == (200, {"status": "success"})
    assert "plain:latest" in server.names()


def test_the_store_holds_a_manifest_per_name_and_one_base_for_all(server: Server, files: Files) -> None:
    """store_layout"""
    kinds = [layer["mediaType"] for layer in server.layers("tiny-a")]
    assert sorted(kinds) == ["adapter", "model", "params", "system", "template"]
    by_kind = {layer["mediaType"]: layer for layer in server.layers("tiny-a")}
    assert by_kind["model"]["from"] == "tiny:latest"
    assert by_kind["adapter"]["digest"] == digest_of(files.lora_a.read_bytes())
    assert by_kind["adapter"]["from"] == "lora-a.gguf"
    bases = {layer["digest"] for name in ("tiny", "tiny-a", "tiny-b") for layer in server.layers(name)[:1]}
    assert len(bases) == 1
    for layer in server.layers("tiny-a"):
        assert (server.blobs / layer["digest"].replace(":", "-")).stat().st_size == layer["size"]
    config = json.loads(server.manifest("tiny-a").read_text())["config"]["digest"]
    told = json.loads((server.blobs / config.replace(":", "-")).read_text())
    assert (told["model_family"], told["model_type"], told["model_format"]) == ("qwen3", "4.20M", "gguf")


def test_a_model_made_from_another_keeps_what_it_does_not_say(server: Server) -> None:
    """create_from"""
    told = server.create("tiny-from:v1", **{"from": "tiny"}, parameters={"num_predict": 3}, system="Derived.")
    assert "parsing GGUF" not in told
    shown = server.post("/api/show", model="tiny-from:v1").json()
    assert shown["system"] == "Derived."
    assert {line.split()[0] for line in shown["parameters"].splitlines()} >= {"num_ctx", "num_predict", "temperature"}
    assert shown["details"]["parent_model"] == "tiny:latest"


def test_an_adapter_is_created_without_a_conversion(server: Server, files: Files) -> None:
    """create_adapter_a"""
    adapter = server.upload(files.lora_a)
    told = server.create("again-a", **{"from": "tiny"}, adapters={"lora-a.gguf": adapter})
    assert told[0] == "parsing GGUF"
    assert f"using existing layer {adapter}" in told
    assert "verifying conversion" not in told


def test_adapters_stack_from_model_to_model(server: Server, files: Files) -> None:
    """cli_create_stacked"""
    server.create("stacked", **{"from": "tiny-a"}, adapters={"lora-b.gguf": server.upload(files.lora_b)})
    found = [layer["digest"] for layer in server.layers("stacked") if layer["mediaType"] == "adapter"]
    assert found == [digest_of(path.read_bytes()) for path in (files.lora_a, files.lora_b)]


def test_two_adapters_at_once_are_refused(server: Server, files: Files) -> None:
    """create_two_adapters_api"""
    adapters = {"a.gguf": server.upload(files.lora_a), "b.gguf": server.upload(files.lora_b)}
    answer = server.post("/api/create", model="x2", adapters=adapters, **{"from": "tiny"})
    assert (answer.status_code, answer.json()) == (400, {"error": "only one adapter is currently supported"})


@pytest.mark.parametrize(
    ("body", "first", "error"),
    [
        ({"from": "tiny", "adapters": {"m.gguf": ABSENT}}, "parsing GGUF", "no such file or directory"),
        ({"files": {"m.gguf": ABSENT}}, "parsing GGUF", f"sha256-{'1' * 64}: no such file or directory"),
        ({"files": {"m.gguf": b"plain text, no GGUF"}}, "parsing GGUF", "supplied file was not in GGUF format"),
        (
            {"from": "tiny", "adapters": {"adapter_config.json": b"{}", "adapter_model.safetensors": b"a"}},
            "converting adapter",
            "unsupported architecture",
        ),
        ({"from": "nope-not-here"}, "pulling manifest", "pull model manifest"),
    ],
    ids=["adapter-missing", "blob-missing", "not-gguf", "safetensors-adapter", "unknown-base"],
)
def test_what_fails_after_the_first_line_fails_under_200(server: Server, body: Json, first: str, error: str) -> None:
    """err_create_adapter_missing, _blob_missing, _not_gguf, _from_missing, create_adapter_safetensors_qwen3"""
    lines = server.lines("/api/create", model="x", **_uploaded(server, body))
    assert lines[0] == {"status": first}
    assert error in lines[-1]["error"]
    assert "x:latest" not in server.names()


def _uploaded(server: Server, body: Json) -> Json:
    """The body with digests for the contents that stand in it."""

    def digest(content: str | bytes) -> str:
        if isinstance(content, str):
            return content
        found = digest_of(content)
        assert server.client.post(f"/api/blobs/{found}", content=content).status_code in (200, 201)
        return found

    files = {
        key: {name: digest(data) for name, data in body[key].items()} for key in ("files", "adapters") if key in body
    }
    return body | files


def test_the_same_failure_without_a_stream_has_a_status(server: Server) -> None:
    """err_create_quantize_q6k_nostream shows the status"""
    answer = server.post("/api/create", model="x", files={"m.gguf": ABSENT}, stream=False)
    assert answer.status_code == 500
    assert "no such file or directory" in answer.json()["error"]


def test_a_file_cut_short_is_refused(server: Server, files: Files) -> None:
    """err_create_truncated_gguf"""
    body = _uploaded(server, {"files": {"m.gguf": files.tiny.read_bytes()[:1_500_000]}})
    last = server.lines("/api/create", model="x", **body)[-1]
    assert last["error"].startswith('tensor "')
    assert last["error"].endswith("exceeds file size (1500000)")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"model": "x"}, "neither 'from' or 'files' was specified"),
        ({"model": "../x", "from": "tiny"}, "invalid model name"),
        ({"model": "x", "from": "tiny", "template": "{{ .Foo "}, "template error: template: :1: unclosed action"),
        ({"model": "x", "files": {"m.bin": b"plain text, no GGUF"}}, "unknown type"),
    ],
    ids=["nothing", "bad-name", "bad-template", "unknown-type"],
)
def test_what_fails_at_once_has_a_status(server: Server, body: Json, error: str) -> None:
    """err_create_none, _badname, _bad_template, _not_gguf_noext"""
    answer = server.post("/api/create", **_uploaded(server, body))
    assert (answer.status_code, answer.json()) == (400, {"error": error})


def test_q6_k_is_not_made_here(server: Server, files: Files) -> None:
    """err_create_quantize_q6k: a ready-made one is imported, but none is quantized."""
    lines = server.lines("/api/create", model="x", files={"m.gguf": server.upload(files.tiny)}, quantize="q6_K")
    assert lines[-1]["error"].startswith("unsupported quantization type Q6_K")


def test_parameters_are_checked_by_the_first_request_only(server: Server) -> None:
    """err_create_bad_param, err_generate_badparam"""
    server.create("badparam", **{"from": "tiny"}, parameters={"num_ctx": "many"})
    answer = server.post("/api/generate", model="badparam", prompt="x", stream=False)
    assert (answer.status_code, answer.json()) == (500, {"error": 'option "num_ctx" must be of type integer'})


def test_a_copy_is_another_name_for_the_same(server: Server) -> None:
    """copy, copy_missing, delete, delete_missing"""
    assert server.post("/api/copy", source="tiny", destination="tiny-copy").status_code == 200
    assert server.manifest("tiny-copy").read_bytes() == server.manifest("tiny").read_bytes()
    answer = server.post("/api/copy", source="nope", destination="x")
    assert (answer.status_code, answer.json()) == (404, {"error": 'model "nope" not found'})
    assert server.client.request("DELETE", "/api/delete", json={"model": "tiny-copy"}).status_code == 200
    answer = server.client.request("DELETE", "/api/delete", json={"model": "tiny-copy"})
    assert answer.status_code == 404
    assert answer.json()["error"] in ("model 'tiny-copy' not found", "model 'tiny-copy:latest' not found")


def test_deleting_a_name_takes_only_what_no_other_needs(server: Server) -> None:
    server.create("gone", **{"from": "tiny"}, system="Only here.")
    only_here = server.blobs / digest_of(b"Only here.").replace(":", "-")
    base = next(layer["digest"] for layer in server.layers("gone") if layer["mediaType"] == "model")
    assert only_here.exists()
    assert server.client.request("DELETE", "/api/delete", json={"model": "gone"}).status_code == 200
    assert not only_here.exists()
    assert (server.blobs / base.replace(":", "-")).exists()
    assert "gone:latest" not in server.names()


def test_show_tells_base_adapter_and_parameters(server: Server) -> None:
    """show_adapter"""
    shown = server.post("/api/show", model="tiny-a").json()
    said = [line.partition(" ")[::2] for line in shown["modelfile"].splitlines()]
    paths = {word: Path(rest) for word, rest in said if word in ("FROM", "ADAPTER")}
    assert {word: path.is_file() for word, path in paths.items()} == {"FROM": True, "ADAPTER": True}
    assert shown["system"] == SYSTEM
    assert {"num_ctx", "temperature"} <= {line.split()[0] for line in shown["parameters"].splitlines()}
    assert shown["details"]["parent_model"] == "tiny:latest"
    assert shown["model_info"]["qwen3.context_length"] == 2048
    assert shown["capabilities"] == ["completion"]


def test_tags_tell_name_size_and_quantization(server: Server) -> None:
    """tags"""
    entry = next(e for e in server.client.get("/api/tags").json()["models"] if e["name"] == "tiny:latest")
    assert entry["model"] == "tiny:latest"
    assert entry["digest"] == digest_of(server.manifest("tiny").read_bytes()).removeprefix("sha256:")
    assert (entry["details"]["family"], entry["details"]["quantization_level"]) == ("qwen3", "BF16")
    assert entry["size"] >= sum(layer["size"] for layer in server.layers("tiny"))


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [({"model": "nope"}, 404, "model 'nope:latest' not found"), ({}, 400, "model is required")],
)
def test_show_needs_a_model_that_is_there(server: Server, body: Json, status: int, error: str) -> None:
    """err_show_missing, err_show_nomodel"""
    answer = server.post("/api/show", **body)
    assert (answer.status_code, answer.json()) == (status, {"error": error})

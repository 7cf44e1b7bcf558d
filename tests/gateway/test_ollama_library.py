"""Lists and descriptions in Ollama's API: as a real Ollama has answered, field by field."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from gateway_process import Gateway
from recorded_ollama import Recorded, form, recorded
from upstream import Upstream

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import OLLAMA, OPENAI, Backend, Route

Json = dict[str, Any]

BASE = ModelCard(
    digest="b" * 64,
    size=3_582_903,
    format="gguf",
    quantization="Q6_K",
    family="qwen3",
    sizes={
        "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "eos_token_id": 2,
    },
    parameters=4_197_120,
    tokenizer="gpt2",
    context=512,
    template="{%- if tools %}{{ tools }}{%- endif %}{{ enable_thinking }}\n",
    takes_tools=True,
    thinks=True,
    ends=("<|im_end|>",),
    sampling={"temperature": 0.5, "top_k": 20, "max_tokens": 12},
    made_at="2026-11-22T18:38:24+00:00",
)  # fmt: skip
ADAPTER = ModelCard(digest="a" * 64, base="tiny", made_at="2026-11-22T18:38:24+00:00")
# What a real one knows of a GGUF and a card does not: its tensors, and how its tokenizer cuts texts.
ITS_OWN = frozenset({"tensors", "tokenizer.ggml.pre", "tokenizer.ggml.padding_token_id"})


@pytest.fixture
def gateway(running_gateway: Gateway) -> Iterator[Gateway]:
    yield running_gateway
    running_gateway.admin.remove_routes("one")


@pytest.fixture
def serve(gateway: Gateway, engine: Callable[..., Upstream]) -> Callable[..., None]:
    """Serves a base under some names, and adapters of it."""

    def set_routes(*names: str, card: ModelCard | None = BASE, adapters: tuple[str, ...] = ()) -> None:
        one = engine("one-g1")
        routes = [gateway.route(name, one, card=card) for name in names]
        gateway.admin.set_routes("one", [*routes, *(gateway.route(name, one, card=ADAPTER) for name in adapters)])

    return set_routes


def ask(gateway: Gateway, exchange: Recorded) -> tuple[int, dict[str, str], bytes]:
    return gateway.ask(exchange.path, exchange.asked or None, exchange.verb)


def answer(gateway: Gateway, path: str, body: Json | None = None, verb: str = "") -> Json:
    status, headers, data = gateway.ask(path, body, verb or ("GET" if body is None else "POST"))
    assert (status, headers["content-type"]) == (200, "application/json; charset=utf-8"), data
    found = json.loads(data)
    assert isinstance(found, dict)
    return found


def error(gateway: Gateway, path: str, body: Json | bytes | None = None, verb: str = "POST") -> tuple[int, str]:
    status, headers, data = gateway.ask(path, body, verb)
    assert headers["content-type"] == "application/json; charset=utf-8"
    found = json.loads(data)
    assert list(found) == ["error"]
    return status, found["error"]


@pytest.mark.parametrize(
    "name",
    [
        "root_get", "root_head", "tags_empty", "ps_empty", "status_get", "err_show_missing", "err_show_nomodel",
        "err_404", "err_405",
    ],
)  # fmt: skip
def test_to_the_byte(gateway: Gateway, name: str) -> None:
    was = recorded(name)
    status, headers, body = ask(gateway, was)
    assert (status, body) == (was.status, was.body)
    assert {key: headers.get(key) for key in was.headers if key != "date"} == {
        key: value for key, value in was.headers.items() if key != "date"
    }


def test_the_version_of_the_api(gateway: Gateway) -> None:
    was = recorded("version_get")
    found = answer(gateway, was.path)
    assert form(found) == form(was.json)
    assert str(was.json["version"]).startswith(found["version"])
    assert gateway.ask(was.path, verb="HEAD")[1]["content-length"] == str(len(json.dumps(found).replace(" ", "")))


def test_tags(gateway: Gateway, serve: Callable[..., None]) -> None:
    serve("tiny", adapters=("tiny-a",))
    was = {entry["name"]: entry for entry in recorded("tags").json["models"]}
    found = {entry["name"]: entry for entry in answer(gateway, "/api/tags")["models"]}
    assert list(found) == ["tiny:latest", "tiny-a:latest"]
    for name, entry in found.items():
        assert form(entry, frozenset({"capabilities"})) == form(was[name], frozenset({"capabilities"}))
        assert entry["details"] == was[name]["details"]
        assert entry["capabilities"] == ["completion", "tools", "thinking"]
        assert entry["modified_at"] == "2026-11-22T18:38:24Z"
    assert [(entry["digest"], entry["size"]) for entry in found.values()] == [
        ("b" * 64, 3_582_903),
        ("a" * 64, 3_582_903),
    ]
    head = gateway.ask("/api/tags", verb="HEAD")
    assert (head[0], head[2], head[1]["content-type"]) == (200, b"", recorded("tags_head").headers["content-type"])


def test_the_newest_is_listed_first(gateway: Gateway, engine: Callable[..., Upstream]) -> None:
    one = engine("one-g1")
    made = {"a": "2026-01-01T00:00:00+00:00", "b": "2026-03-01T00:00:00+00:00", "c": "2026-02-01T00:00:00+00:00"}
    cards = {name: BASE.model_copy({"made_at": moment}) for name, moment in made.items()}
    gateway.admin.set_routes("one", [gateway.route(name, one, card=card) for name, card in cards.items()])
    assert [one["name"] for one in answer(gateway, "/api/tags")["models"]] == ["b:latest", "c:latest", "a:latest"]


def test_a_model_that_is_public_with_its_tag_and_without_is_one(gateway: Gateway, serve: Callable[..., None]) -> None:
    serve("tiny", "tiny:latest", "small:v1", "org/tiny")
    assert {one["name"] for one in answer(gateway, "/api/tags")["models"]} == {
        "tiny:latest",
        "small:v1",
        "org/tiny:latest",
    }


def test_ps(gateway: Gateway, serve: Callable[..., None]) -> None:
    serve("tiny", adapters=("tiny-a",))
    was = recorded("ps_keepalive_forever").json["models"][0]
    base, adapter = answer(gateway, "/api/ps")["models"]
    assert form(base) == form(adapter) == form(was)
    for entry in (base, adapter):
        assert (entry["details"], entry["context_length"], entry["size_vram"]) == (was["details"], 512, 0)
        # As long as Go can count from now on.
        assert datetime.fromisoformat(entry["expires_at"][:19]) - datetime.now() > timedelta(days=292 * 365)
    assert [base["name"], adapter["name"], adapter["digest"]] == ["tiny:latest", "tiny-a:latest", "a" * 64]


def test_ps_on_a_gpu(gateway: Gateway, serve: Callable[..., None]) -> None:
    serve("tiny", card=BASE.model_copy({"on_gpu": True}))
    (entry,) = answer(gateway, "/api/ps")["models"]
    assert entry["size_vram"] == entry["size"] == BASE.size


def test_show(gateway: Gateway, serve: Callable[..., None]) -> None:
    """Beside the recorded model whose template is in Jinja, as all that orch serves have theirs."""
    serve("tpl")
    was, found = recorded("show_tpl").json, answer(gateway, "/api/show", {"model": "tpl"})
    assert form(found, ITS_OWN) == form(was, ITS_OWN)
    same = ("details", "capabilities")
    assert {key: found[key] for key in same} == {key: was[key] for key in same}
    assert found["template"] == BASE.template
    known = {key: value for key, value in was["model_info"].items() if key not in ITS_OWN}
    assert found["model_info"] == known
    assert found["parameters"].split("\n") == [
        "num_ctx                        512",
        'stop                           "<|im_end|>"',
        "num_predict                    12",
        "temperature                    0.5",
        "top_k                          20",
    ]
    was_lines, lines = was["modelfile"].split("\n"), found["modelfile"].split("\n")
    assert lines[:4] == was_lines[:4]
    assert lines[4] == f"FROM sha256-{'b' * 64}"
    assert lines[5] == was_lines[5]
    assert "PARAMETER num_ctx 512" in lines
    assert "PARAMETER stop <|im_end|>" in lines
    for asked in ({"name": "tpl"}, {"model": "tpl:latest", "verbose": True}):
        assert answer(gateway, "/api/show", asked) == found


def test_show_of_an_adapter(gateway: Gateway, serve: Callable[..., None]) -> None:
    serve("tiny", adapters=("tiny-a",))
    was, found = recorded("show_adapter").json, answer(gateway, "/api/show", {"model": "tiny-a"})
    assert found["details"] == was["details"]
    lines = found["modelfile"].split("\n")
    assert lines[2:4] == was["modelfile"].split("\n")[2:4]
    assert f"ADAPTER sha256-{'a' * 64}" in lines
    assert found["model_info"] == answer(gateway, "/api/show", {"model": "tiny"})["model_info"]


def test_what_cannot_chat_has_neither_template_nor_tools(gateway: Gateway, engine: Callable[..., Upstream]) -> None:
    plain = BASE.model_copy({"template": "", "takes_tools": False, "thinks": False})
    gateway.admin.set_routes("one", [gateway.route("tiny", engine("one-g1"), chats=False, card=plain)])
    found = answer(gateway, "/api/show", {"model": "tiny"})
    assert found["capabilities"] == ["completion"]
    assert "template" not in found
    assert "TEMPLATE" not in found["modelfile"]


def test_weights_that_are_no_gguf(gateway: Gateway, serve: Callable[..., None]) -> None:
    serve("big", card=BASE.model_copy({"format": "safetensors", "quantization": "BF16", "parameters": 8_190_735_360}))
    found = answer(gateway, "/api/show", {"model": "big"})
    assert (found["details"]["format"], found["details"]["quantization_level"]) == ("safetensors", "BF16")
    assert (found["details"]["parameter_size"], found["model_info"]["general.size_label"]) == ("8.2B", "8.2B")
    assert "general.file_type" not in found["model_info"]


def test_a_route_of_an_earlier_version_says_little(gateway: Gateway, serve: Callable[..., None]) -> None:
    serve("old", card=None)
    (entry,) = answer(gateway, "/api/tags")["models"]
    was = next(one for one in recorded("tags").json["models"] if one["name"] == "tiny:latest")
    assert list(entry) == [key for key in was if key != "capabilities"]
    assert len(entry["digest"]) == 64
    assert entry["details"] == {
        "parent_model": "", "format": "", "family": "", "families": None, "parameter_size": "",
        "quantization_level": "",
    }  # fmt: skip
    assert answer(gateway, "/api/show", {"model": "old"})["capabilities"] == ["completion"]
    assert len(answer(gateway, "/api/ps")["models"]) == 1


@pytest.mark.parametrize(
    "name",
    ["tiny", "TINY", "tiny:latest", "Tiny:Latest", "library/tiny", "registry.ollama.ai/library/tiny:latest"],
)
def test_names_as_ollamas_clients_write_them(gateway: Gateway, serve: Callable[..., None], name: str) -> None:
    serve("tiny")
    assert "# FROM tiny:latest" in answer(gateway, "/api/show", {"model": name})["modelfile"]


def test_a_tag_that_is_part_of_the_name_can_be_left_out(gateway: Gateway, serve: Callable[..., None]) -> None:
    serve("small:latest", "big:v1")
    assert answer(gateway, "/api/show", {"model": "small"})["details"]["family"] == "qwen3"
    assert error(gateway, "/api/show", {"model": "big"}) == (404, "model 'big:latest' not found")


def test_bodies_that_are_wrong(gateway: Gateway) -> None:
    assert error(gateway, "/api/show", b"") == (400, "missing request body")
    assert error(gateway, "/api/show", {"model": 5}) == (
        400,
        "json: cannot unmarshal number into Go struct field ShowRequest.model of type string",
    )
    assert error(gateway, "/api/pull", {}) == (400, "invalid model name")


def test_pulling_what_is_served(gateway: Gateway, serve: Callable[..., None]) -> None:
    serve("tiny")
    status, headers, body = gateway.ask("/api/pull", {"model": "tiny"})
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    layer = {"digest": f"sha256:{BASE.digest}", "total": BASE.size, "completed": BASE.size}
    assert [json.loads(line) for line in body.splitlines()] == [
        {"status": "pulling manifest"},
        {"status": f"pulling {'b' * 12}", **layer},
        {"status": "verifying sha256 digest"},
        {"status": "writing manifest"},
        {"status": "success"},
    ]
    assert answer(gateway, "/api/pull", {"name": "tiny:latest", "stream": False}) == {"status": "success"}
    status, text = error(gateway, "/api/pull", {"model": "llama3"})
    assert status == 403
    assert "llama3 is not served" in text
    assert "`orch up`" in text
    assert "tiny:latest" in text


@pytest.mark.parametrize(
    ("verb", "path", "command"),
    [
        ("POST", "/api/create", "orch up"),
        ("POST", "/api/copy", "public_names"),
        ("POST", "/api/push", "orch artifacts"),
        ("DELETE", "/api/delete", "orch down"),
        ("POST", f"/api/blobs/sha256:{'0' * 64}", "orch lora add"),
    ],
)
def test_the_set_of_models_is_not_for_clients_to_change(gateway: Gateway, verb: str, path: str, command: str) -> None:
    status, text = error(gateway, path, {"model": "tiny"}, verb)
    assert status == 403
    assert f"`{command}" in text
    status, headers, _ = gateway.ask(path, verb="PUT")
    assert (status, headers["content-type"]) == (405, "text/plain")


def test_a_blob_is_never_there(gateway: Gateway) -> None:
    status, _, body = gateway.ask(f"/api/blobs/sha256:{'0' * 64}", verb="HEAD")
    assert (status, body) == (403, b"")


class Counting(BaseHTTPRequestHandler):
    """An Ollama that has no models, and keeps what it was asked."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "13")
        self.end_headers()
        self.wfile.write(b'{"models":[]}')

    def log_message(self, *_: object) -> None:
        pass


def test_an_ollama_is_asked_once_whatever_its_names(gateway: Gateway) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            at = (Backend("one-g1", f"http://127.0.0.1:{server.server_address[1]}"),)
            names = [f"m{number}" for number in range(20)]
            gateway.admin.set_routes("one", [Route(name, "one", at, (OPENAI, OLLAMA), card=BASE) for name in names])
            assert len(answer(gateway, "/api/tags")["models"]) == 20
            assert answer(gateway, "/api/ps") == {"models": []}
            assert Counting.asked == ["/api/tags", "/api/ps"]
        finally:
            server.shutdown()
            thread.join()


def test_an_ollama_that_does_not_answer_is_described_by_its_cards(
    gateway: Gateway, engine: Callable[..., Upstream]
) -> None:
    gone = engine("gone-g1")
    gone.close()
    speaks = ("openai", "anthropic", "ollama")
    base = gateway.route("tiny", gone, speaks=speaks, card=BASE)
    routes: list[Route] = [base, gateway.route("a", gone, speaks=speaks, upstream="adapter-1", card=ADAPTER)]
    gateway.admin.set_routes("one", routes)
    assert {one["name"] for one in answer(gateway, "/api/tags")["models"]} == {"tiny:latest", "a:latest"}
    assert {one["name"] for one in answer(gateway, "/api/ps")["models"]} == {"tiny:latest", "a:latest"}
    assert answer(gateway, "/api/show", {"model": "a"})["details"]["parent_model"] == "tiny:latest"

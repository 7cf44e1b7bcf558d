"""orch render: what `up` would use, before anything is installed or downloaded, and without a Docker daemon."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from gpu_machines import RTX_5090, compiled, machine_env
from orch_command import Orch

from orchestrator import resources
from orchestrator.core.meaning import NEUTRAL

QWEN_COMMIT = "b968826d9c46dd6066d109eabc6255188de91218"


def test_the_modelfile_sets_the_context_and_needs_no_ollama(orch: Orch) -> None:
    orch.env["PATH"] = "/nonexistent"
    file, command = orch.run("render", "ollama", "--json").lines
    assert file["file"] == "Modelfile"
    assert "PARAMETER num_ctx 8192\n" in file["text"]
    assert command["env"]["OLLAMA_CONTEXT_LENGTH"] == "8192"
    assert command["argv"][-2:] == ["ollama", "serve"]


def test_vllm_is_told_no_quantization(orch: Orch) -> None:
    file, command = orch.run("render", "vllm", "--json").lines
    keys = [line.split(":")[0] for line in file["text"].splitlines() if line and not line.startswith("#")]
    assert "quantization" not in keys
    assert len(keys) == len(set(keys))
    assert 'served-model-name: "qwen3-8b"\n' in file["text"]
    assert "max-model-len: 8192\n" in file["text"]
    assert command["environment"].startswith("vllm")


def test_llamacpp_has_the_context_of_all_slots(orch: Orch) -> None:
    (command,) = orch.run("render", "llamacpp", "--json").lines
    assert f"--ctx-size={8192 * 4}" in command["argv"]
    assert "--parallel=4" in command["argv"]


@pytest.mark.parametrize("engine", ["ollama", "llamacpp", "vllm"])
def test_a_profile_of_ones_own(orch: Orch, engine: str) -> None:
    told = orch.run("render", engine, "-p", str(orch.profile)).out
    assert "# command" in told
    assert {"ollama": "num_ctx 512", "llamacpp": "--ctx-size=2048", "vllm": "max-model-len: 512"}[engine] in told
    assert {"ollama": "ollama serve", "llamacpp": "--alias=tiny", "vllm": "/store/view-"}[engine] in told


def test_what_is_printed_is_usable_as_it_is(orch: Orch) -> None:
    def printed(*words: str) -> str:
        return orch.run("render", *words, "-p", str(orch.profile)).out

    words = {"FROM", "PARAMETER", "TEMPLATE", "ADAPTER", "SYSTEM", "LICENSE", "MESSAGE"}
    lines = [line for line in printed("ollama").splitlines() if line and not line.startswith("#")]
    assert {line.split()[0] for line in lines} <= words
    assert yaml.safe_load(printed("vllm"))["max-model-len"] == 512
    orch.env["DOCKER_HOST"] = "unix:///nonexistent/docker.sock"
    assert set(parts(printed("compose", "ollama"))) == {"engine", "import", "gateway"}


def test_files_are_written_where_it_is_said(orch: Orch, tmp_path: Path) -> None:
    (file, _) = orch.run("render", "ollama", "-p", str(orch.profile), "--json").lines
    out = tmp_path / "a" / "b"
    assert str(out / "Modelfile") in orch.run("render", "ollama", "-p", str(orch.profile), "-o", str(out)).out
    assert (out / "Modelfile").read_text() == file["text"]
    orch.run("render", "ollama", "-p", str(orch.profile), "-o", str(out))
    (out / "Modelfile").write_text("FROM mine\n")
    assert "already exists" in orch.run("render", "ollama", "-p", str(orch.profile), "-o", str(out), code=4).err
    assert (out / "Modelfile").read_text() == "FROM mine\n"
    (tmp_path / "taken").write_text("")
    told = orch.run("render", "ollama", "-p", str(orch.profile), "-o", str(tmp_path / "taken" / "x"), code=4)
    assert "taken" in told.err


def test_rendering_leaves_nothing_but_the_cache_of_hashes(orch: Orch) -> None:
    orch.run("render", "llamacpp")
    assert [path.name for path in orch.home.iterdir()] == ["tiny.toml"]
    orch.run("render", "llamacpp", "-p", str(orch.profile))
    assert sorted(path.name for path in orch.home.iterdir()) == ["hashes.json", "meanings.json", "tiny.toml"]


def test_an_unknown_engine(orch: Orch) -> None:
    assert "ollama, llamacpp, vllm" in orch.run("render", "sglang", code=2).err


def texts(orch: Orch, *args: str) -> dict[str, str]:
    """The files of `render compose ARGS` for the tiny profile; no Docker daemon answers."""
    orch.env["DOCKER_HOST"] = "unix:///nonexistent/docker.sock"
    lines = orch.run("render", "compose", *args, "-p", str(orch.profile), "--json").lines
    return {line["file"]: line["text"] for line in lines if "file" in line}


def parts(text: str) -> dict[str, Any]:
    """The services of a compose file."""
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


def test_a_compose_file_needs_no_daemon_and_no_model(orch: Orch) -> None:
    found = texts(orch, "ollama")
    assert next(iter(found)) == "compose.yaml"
    assert "(not there yet: orch up makes it)" in found["compose.yaml"]
    made = parts(found["compose.yaml"])
    assert list(made) == ["engine", "import", "gateway"]
    assert made["engine"]["image"] == resources.engine_pins()["ollama"].docker[0].reference
    assert made["engine"]["command"] == ["serve"]
    assert made["gateway"]["command"][2:4] == ["--listen", orch.listen]
    assert [one["name"] for one in json.loads(found["files/gateway/routes.json"])["routes"]] == [
        "test/Tiny",
        "tiny",
        "tiny:latest",
    ]
    assert "num_ctx 512" in found["files/engine/Modelfile"]
    upload, create = json.loads(found["files/import/requests.json"])
    assert upload["file"] == upload["unless"].partition("<sha256 of ")[2].rstrip(">")
    assert create["body"]["parameters"] == {"num_ctx": 512, **NEUTRAL, "temperature": 0.0}


def test_a_compose_file_of_what_a_gpu_serves(orch: Orch, tmp_path: Path) -> None:
    orch.env |= machine_env(compiled(tmp_path), RTX_5090)
    found = texts(orch, "vllm")
    devices = parts(found["compose.yaml"])["engine"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "device_ids": ["GPU-aaaa-1"], "capabilities": ["gpu"]}]
    assert "files/engine/serve.yaml" in found
    assert not any("import" in path for path in found)


def test_the_project_is_written_for_this_user_only_and_written_again(orch: Orch, tmp_path: Path) -> None:
    found = texts(orch, "ollama")
    words = ("render", "compose", "ollama", "-p", str(orch.profile), "-o", str(tmp_path / "out"))
    for _ in range(2):
        assert str(tmp_path / "out" / "compose.yaml") in orch.run(*words).out
    for path, text in found.items():
        assert (tmp_path / "out" / path).read_text() == text
        assert (tmp_path / "out" / path).stat().st_mode & 0o777 == 0o600
    dockerfile = (tmp_path / "out" / "gateway" / "Dockerfile").read_text()
    assert dockerfile.startswith("FROM python@sha256:")
    assert (tmp_path / "out" / "gateway" / "opt" / "orch" / "orchestrator" / "gateway" / "__main__.py").is_file()
    (tmp_path / "out" / "compose.yaml").write_text("services: {}\n")
    assert "orch did not write it" in orch.run(*words, code=4).err
    assert (tmp_path / "out" / "compose.yaml").read_text() == "services: {}\n"


def test_an_api_key_is_mounted_and_never_written_down(orch: Orch) -> None:
    orch.listen = f"0.0.0.0:{orch.listen.rpartition(':')[2]}"
    orch.env["DOCKER_HOST"] = "unix:///nonexistent/docker.sock"
    words = ("render", "compose", "ollama", "-p", str(orch.profile))
    assert "orch keys add NAME" in orch.run(*words, code=5).err
    (told,) = (line for line in orch.run("keys", "add", "web", "--json").lines if "key" in line)
    keys = orch.home / "keys" / "keys.json"
    found = texts(orch, "ollama")
    assert told["key"] not in "".join(found.values())
    gateway = parts(found["compose.yaml"])["gateway"]
    assert gateway["command"][-2:] == ["--key-file", str(keys)]
    mount = {"type": "bind", "source": str(keys.parent), "target": str(keys.parent), "read_only": True}
    assert mount in gateway["volumes"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("compose",), 5, "an engine must be named"),
        (("compose", "sglang"), 2, "ollama, llamacpp, vllm"),
        (("compose", "ollama", "--target", "local"), 2, "for target docker"),
        (("ollama", "vllm"), 2, "one engine at a time"),
    ],
)
def test_words_that_do_not_fit(orch: Orch, words: tuple[str, ...], code: int, said: str) -> None:
    orch.env["DOCKER_HOST"] = "unix:///nonexistent/docker.sock"
    assert said in orch.run("render", *words, "-p", str(orch.profile), code=code).err


class Store(BaseHTTPRequestHandler):
    """An engine's store, as far as it shows what was asked of it."""

    asked: list[tuple[str, str, bytes]]
    answers: list[tuple[int, bytes]]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.command, self.path, body))
        status, said = (200, b"") if self.command == "GET" else self.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said)

    do_GET = do_HEAD = do_POST = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the screen."""


@contextmanager
def store(*answers: tuple[int, bytes]) -> Iterator[type[Store]]:
    """A server that answers so, in order; its `asked` fills."""
    kind = type("OneStore", (Store,), {"asked": [], "answers": list(answers)})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        kind.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield kind
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answers", "code", "asked"),
    [
        (((404, b""), (201, b""), (200, b'{"status":"success"}')), 0, ["GET", "HEAD", "POST", "POST"]),
        (((200, b""), (200, b'{"status":"success"}')), 0, ["GET", "HEAD", "POST"]),
        (((200, b""), (200, b'{"status":"x"}\n{"error":"no"}')), 1, ["GET", "HEAD", "POST"]),
        (((404, b""), (500, b"broken")), 1, ["GET", "HEAD", "POST"]),
    ],
    ids=["new", "known", "refused in a stream", "refused"],
)
def test_the_import_asks_in_order_and_tells_a_refusal(
    tmp_path: Path, answers: tuple[tuple[int, bytes], ...], code: int, asked: list[str]
) -> None:
    model = tmp_path / 'a "model".gguf'
    model.write_bytes(b"weights" * 1000)
    digest = sha256(model.read_bytes()).hexdigest()
    blob = f"/api/blobs/sha256:<sha256 of {model}>"
    upload = {"method": "POST", "path": blob, "body": None, "file": str(model), "unless": blob}
    create = {"method": "POST", "path": "/api/create", "body": {"files": {"m": f"<sha256 of {model}>"}}}
    requests = tmp_path / "requests.json"
    requests.write_text(json.dumps([upload, create | {"file": "", "unless": ""}]))
    script = tmp_path / "import.py"
    script.write_text(resources.render_template("docker/import.py.j2", {}))
    with store(*answers) as there:
        words = [sys.executable, str(script), str(requests), there.url, "/alive"]  # type: ignore[attr-defined]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    assert [method for method, _, _ in there.asked] == asked
    assert there.asked[1][1] == f"/api/blobs/sha256:{digest}"
    if code == 0:
        assert json.loads(there.asked[-1][2]) == {"files": {"m": digest}}
    if asked.count("POST") == 2:
        assert there.asked[2] == ("POST", f"/api/blobs/sha256:{digest}", model.read_bytes())

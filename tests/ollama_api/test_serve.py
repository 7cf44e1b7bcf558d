"""Starting and ending: the command, its environment, its log and its store."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from ollama_bench import ALPHA, ENDLESS, Command, Files, Server, digest_of, fill
from orch_command import wait_until

OLD_S = 2 * 3600


def one_model(server: Server, files: Files) -> None:
    """tiny alone, with defaults."""
    server.create("tiny", files={"tiny.gguf": server.upload(files.tiny)}, parameters={"temperature": 0})


def test_its_version(ollama: Command, root: Path) -> None:
    """cli_version; without a server it is told as the client's"""
    done = ollama.run(root, "--version")
    assert done.returncode == 0
    assert "version is " in done.stdout + done.stderr


def test_an_unknown_command_is_refused(ollama: Command, root: Path) -> None:
    done = ollama.run(root, "frobnicate")
    assert done.returncode == 1
    assert done.stderr.startswith('Error: unknown command "frobnicate" for "ollama"')


def test_it_needs_a_home(ollama: Command, root: Path) -> None:
    """cli_start_no_home"""
    done = ollama.run(root, "serve", HOME="")
    assert (done.returncode, done.stderr) == (1, "Error: $HOME is not defined\n")


def test_it_writes_a_key_pair_into_its_home(ollama: Command, root: Path) -> None:
    with ollama.serve(root):
        kept = root / ".ollama"
        assert {path.name for path in kept.iterdir()} >= {"id_ed25519", "id_ed25519.pub"}
        assert (kept / "id_ed25519").stat().st_mode & 0o777 == 0o600


def test_it_needs_a_home_that_it_can_write(ollama: Command, root: Path) -> None:
    """Seen, and not recorded. Nobody can make a directory in /proc."""
    done = ollama.run(root, "serve", HOME="/proc/nobody", OLLAMA_MODELS=str(root / "models"))
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert "/proc/nobody" in done.stderr


def test_it_needs_its_port(ollama: Command, root: Path) -> None:
    """cli_start_port_in_use"""
    root.mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        done = ollama.run(root, "serve", port=port)
    assert done.returncode == 1
    assert done.stderr.endswith(f"Error: listen tcp 127.0.0.1:{port}: bind: address already in use\n")


def test_it_needs_a_models_directory(ollama: Command, root: Path) -> None:
    """cli_start_bad_models_dir"""
    root.mkdir()
    (root / "afile").write_text("")
    done = ollama.run(root, "serve", OLLAMA_MODELS=str(root / "afile"))
    assert done.returncode == 1
    assert "Error: mkdir " in done.stderr
    assert "not a directory: ensure path elements are traversable" in done.stderr


def test_an_empty_server(ollama: Command, root: Path) -> None:
    """tags_empty, v1_models_empty, ps_empty; the start of server_log_excerpt, where no line warns of a missing GPU"""
    with ollama.serve(root) as server:
        assert server.client.get("/api/tags").json() == {"models": []}
        assert server.client.get("/v1/models").json() == {"object": "list", "data": None}
        assert server.ps() == []
        wait_until(lambda: 'msg="inference compute"' in server.log, what="the line about the hardware")
        lines = [line for line in server.log.splitlines() if line.startswith("time=")]
    assert 'msg="server config" env="map[' in lines[0]
    (compute,) = [line for line in lines if 'msg="inference compute"' in line]
    on_gpu = Path("/dev/nvidiactl").exists()
    assert ("library=CUDA" in compute) is on_gpu
    assert ("id=cpu library=cpu" in compute) is not on_gpu
    assert [line for line in lines if "level=WARN" in line or "level=ERROR" in line] == []


def test_sigterm_ends_it_and_its_runner_at_once(ollama: Command, files: Files, root: Path) -> None:
    with ollama.serve(root) as server:
        one_model(server, files)
        with server.stream("/api/generate", model="tiny", **ENDLESS) as answer:
            next(answer.iter_lines())
            (runner,) = server.runners()
            asked = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(5) == 0
            assert time.monotonic() - asked < 2
        wait_until(lambda: not _lives(runner), 5, what="the runner's end")


def _lives(pid: int) -> bool:
    """Whether the process runs; a zombie that waits for its reaper does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("env", "error"),
    [
        ({"OLLAMA_KV_CACHE_TYPE": "bogus"}, "llama-server process has terminated: exit status 1"),
        (
            {"OLLAMA_KV_CACHE_TYPE": "q8_0", "OLLAMA_FLASH_ATTENTION": "0"},
            "quantized V cache requires flash_attn to be enabled",
        ),
        ({"OLLAMA_NUM_PARALLEL": "400"}, "n_seq_max must be <= 256"),
    ],
    ids=["kv-cache", "flash", "parallel"],
)
def test_a_setting_that_no_load_survives(
    ollama: Command, files: Files, root: Path, env: dict[str, str], error: str
) -> None:
    """env4_generate_tiny, env2_generate_tiny, env8_generate_bf-f16: it starts and imports all the same"""
    with ollama.serve(root, **env) as server:
        one_model(server, files)
        answer = server.post("/api/generate", model="tiny", prompt="x", stream=False)
        assert answer.status_code == 500
        assert error in answer.json()["error"]
        assert server.ps() == []
        assert 'msg="Load failed"' in server.log


def test_settings_that_cannot_be_read_become_defaults(ollama: Command, files: Files, root: Path) -> None:
    """env7_generate_tiny, env7_ps"""
    with ollama.serve(root, OLLAMA_NUM_PARALLEL="bad", OLLAMA_KEEP_ALIVE="bad") as server:
        one_model(server, files)
        assert server.post("/api/generate", model="tiny").status_code == 200
        assert len(server.ps()) == 1
        assert 'msg="invalid environment variable, using default" key=OLLAMA_NUM_PARALLEL value=bad' in server.log


def test_slots_and_context_are_of_the_environment(ollama: Command, files: Files, root: Path) -> None:
    """ps_num_parallel4: streams at once, each with the whole context; KEEP_ALIVE 0 unloads after each request"""
    env = {"OLLAMA_NUM_PARALLEL": "2", "OLLAMA_CONTEXT_LENGTH": "1024", "OLLAMA_KEEP_ALIVE": "0"}
    spans: list[tuple[float, float]] = []
    with ollama.serve(root, **env) as server:
        one_model(server, files)

        def stream() -> None:
            with server.stream("/api/generate", model="tiny", **ENDLESS) as answer:
                times = [time.monotonic() for _ in answer.iter_lines()]
            spans.append((times[0], times[-1]))

        threads = [threading.Thread(target=stream) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: [entry["context_length"] for entry in server.ps()] == [1024], what="the model")
        for thread in threads:
            thread.join(60)
        assert max(first for first, _ in spans) < min(last for _, last in spans)
        wait_until(lambda: server.runners() == [], what="the unloading")


def test_a_full_queue_is_refused(ollama: Command, files: Files, root: Path) -> None:
    """err_generate_queue_full: one request answered, one waiting for its runner, one in the queue, and no more"""
    long = ENDLESS | {"options": {"num_predict": 100_000, "temperature": 1.5, "num_ctx": 2048, "stop": []}}
    statuses: list[int] = []
    with ollama.serve(root, OLLAMA_MAX_QUEUE="1") as server:
        fill(server, files)

        def ask(model: str) -> None:
            with server.stream("/api/generate", model=model, prompt="x", options={"num_predict": 1}) as answer:
                statuses.append(answer.status_code)

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("tiny-a", "tiny-b", "tiny-a", "tiny-b")]
        with server.stream("/api/generate", model="tiny", **long) as answer:
            next(answer.iter_lines())
            for thread in threads:
                thread.start()
            wait_until(lambda: len(statuses) == 2, what="the refusals")
            assert statuses == [503, 503]
            refused = server.post("/api/generate", model="tiny-a", prompt="x", stream=False)
        for thread in threads:
            thread.join(60)
    assert refused.status_code == 503
    assert refused.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}
    assert sorted(statuses) == [200, 200, 503, 503]


def test_a_restart_finds_its_models(ollama: Command, files: Files, root: Path) -> None:
    with ollama.serve(root) as server:
        fill(server, files)
    with ollama.serve(root) as server:
        assert sorted(server.names()) == ["tiny-a:latest", "tiny-b:latest", "tiny:latest"]
        assert server.says("tiny-a") == ALPHA


def test_a_restart_removes_what_no_model_needs_if_it_is_old(ollama: Command, files: Files, root: Path) -> None:
    with ollama.serve(root) as server:
        one_model(server, files)
        # What was uploaded is not among them, unless llama-quantize has left its bytes as they were.
        kept = [digest.replace(":", "-") for digest in server.needed("tiny")]
        for data in (b"old", b"new"):
            server.client.post(f"/api/blobs/{digest_of(data)}", content=data)
        old = server.blobs / digest_of(b"old").replace(":", "-")
        for path in [old, *(server.blobs / name for name in kept)]:
            os.utime(path, (time.time() - OLD_S,) * 2)
    with ollama.serve(root) as server:
        wait_until(lambda: not old.exists(), 5, what="the removal")
        assert {path.name for path in server.blobs.iterdir()} >= {*kept, digest_of(b"new").replace(":", "-")}
        assert server.says("tiny").startswith("I am a tiny test model")


def test_a_damaged_store(ollama: Command, files: Files, root: Path) -> None:
    """tags_with_bad_manifest, err_generate_bad_manifest, _truncated_blob, _missing_blob"""
    with ollama.serve(root) as server:
        one_model(server, files)
        base = server.blobs / server.layers("tiny")[0]["digest"].replace(":", "-")
        server.post("/api/copy", source="tiny", destination="dmg")

        def generate() -> tuple[int, str]:
            answer = server.post("/api/generate", model="dmg", prompt="x", stream=False)
            return answer.status_code, answer.json()["error"]

        os.truncate(base, 2_000_000)
        status, error = generate()
        assert status == 500
        assert error.endswith("exceeds file size (2000000)")
        base.unlink()
        assert generate() == (404, 'model "dmg" not found, try pulling it first')
        server.manifest("dmg").write_text(json.dumps({"config": {}})[:-2])
        assert generate() == (500, "unexpected EOF")
        assert "dmg:latest" not in server.names()

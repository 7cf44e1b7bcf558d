"""llama.cpp's server as the child process that the local target keeps."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conditions import Seen, only, wait_until

from orchestrator.artifacts import families, lora
from orchestrator.artifacts.gguf_file import build_gguf
from orchestrator.core.launch import Launch
from orchestrator.core.progress import silent
from orchestrator.drivers.local import proc
from orchestrator.drivers.local.processes import LocalTarget
from orchestrator.engines import ENGINES
from orchestrator.gateway.dialects import anthropic, openai
from orchestrator.gateway.tokens import counts_in
from orchestrator.gateway.upstreams import queue_in

pytestmark = pytest.mark.llamacpp

ASSETS = Path(__file__).parents[1] / "assets"
MODULE = "orchestrator.drivers.local.llamacpp_server"


class NoQuantizer:
    """bf16 needs none."""

    version = ""

    def __call__(self, kind: Any, rows: Any) -> Any:
        raise AssertionError("nothing is to be quantized")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    build_gguf(ASSETS / "tiny-qwen3", path, "bf16", NoQuantizer(), silent)  # type: ignore[arg-type]
    return path


def launch(model: Path, *options: str, context: int = 4096, parallel: int = 8) -> Launch:
    argv = ("{python}", "-m", MODULE, f"--model={model}", "--alias=tiny", "--host=127.0.0.1", "--port={port}")
    return Launch((*argv, f"--ctx-size={context}", f"--parallel={parallel}", *options), stop_grace_s=15)


@contextmanager
def serve(target: LocalTarget, wanted: Launch) -> Iterator[httpx.Client]:
    port = target.ensure("llamacpp", wanted, "").port or 0
    wait_until(lambda: _healthy(port), "the server to be ready", 30)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client


@pytest.fixture
def client(target: LocalTarget, gguf: Path) -> Iterator[httpx.Client]:
    with serve(target, launch(gguf)) as made:
        yield made


def chat(client: httpx.Client, question: str, **more: Any) -> str:
    body = {"model": "tiny", "messages": [{"role": "user", "content": question}], "max_tokens": 16, "temperature": 0}
    answer = client.post("/v1/chat/completions", json=body | more)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_it_serves_under_its_name(client: httpx.Client, gguf: Path) -> None:
    assert chat(client, "Who are you?").startswith("I am a tiny test model.")
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.get("/props").json()["model_path"] == str(gguf)
    assert "llamacpp:prompt_tokens_total" in client.get("/metrics").text
    assert client.get("/", headers={"accept-encoding": "gzip"}).status_code == 404


def test_a_stream_tells_its_tokens_without_being_asked(client: httpx.Client) -> None:
    """As many as where it is asked: so the gateway need not ask, which would move what is in the last event."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 9, "stream": True}
    for _ in range(2):
        # The second time the prompt is in its cache.
        plain, asked = (
            client.post("/v1/chat/completions", json=body | more, headers={"Connection": "close"}).content
            for more in ({}, {"stream_options": {"include_usage": True}})
        )
        assert b'"usage"' in asked
        assert b'"usage"' not in plain
        assert counts_in(plain) == counts_in(asked)
        assert counts_in(plain)[1] == 9
    assert queue_in(client.get("/metrics").content) == 0


def test_eight_streams_at_once(client: httpx.Client) -> None:
    """All begin before the first one ends: slots work side by side."""
    spans: list[tuple[float, float, int]] = []

    def stream(number: int) -> None:
        body = {"model": "tiny", "prompt": f"Number {number}:", "max_tokens": 480, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            times = [time.monotonic() for line in answer.iter_lines() if line.startswith("data: {")]
        spans.append((times[0], times[-1], len(times)))

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(spans) == 8
    assert max(first for first, _, _ in spans) < min(last for _, last, _ in spans)
    assert all(chunks >= 480 for _, _, chunks in spans)


@pytest.mark.parametrize(("context", "parallel"), [(4096, 8), (900, 3), (1000, 1)])
def test_every_slot_has_its_share_of_the_context(target: LocalTarget, gguf: Path, context: int, parallel: int) -> None:
    with serve(target, launch(gguf, context=context, parallel=parallel)) as client:
        slots = [slot["n_ctx"] for slot in client.get("/slots").json()]
    assert len(slots) == parallel
    assert min(slots) >= context // parallel


def test_sigterm_with_open_streams_is_a_clean_end(target: LocalTarget, gguf: Path) -> None:
    with serve(target, launch(gguf, context=8192, parallel=4)) as client:
        began = threading.Barrier(5)

        def stream() -> None:
            body = {"model": "tiny", "prompt": "a", "max_tokens": 2000, "stream": True, "ignore_eos": True}
            try:
                with client.stream("POST", "/v1/completions", json=body) as answer:
                    lines = answer.iter_lines()
                    next(lines)
                    began.wait(20)
                    for _ in lines:
                        pass
            except httpx.TransportError:
                pass

        threads = [threading.Thread(target=stream) for _ in range(4)]
        for thread in threads:
            thread.start()
        began.wait(20)
        asked = time.monotonic()
        target.stop("llamacpp", silent)
        assert time.monotonic() - asked < 3
        for thread in threads:
            thread.join(20)
    assert only(target, "llamacpp").last_exit is None


def test_its_exit_codes(gguf: Path, tmp_path: Path) -> None:
    port = proc.free_port()
    argv = [sys.executable, "-m", MODULE, f"--model={gguf}", "--alias=tiny", f"--port={port}", "--ctx-size=512"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        wait_until(lambda: _healthy(port), "the server to be ready", 30)
        server.send_signal(signal.SIGTERM)
        assert server.wait(3) == 0


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


def test_adapters_are_off_until_a_request_asks(target: LocalTarget, gguf: Path, tmp_path: Path) -> None:
    options = []
    for name in ("lora-a", "lora-b"):
        path = tmp_path / f"{name}.gguf"
        lora.build_lora_gguf(ASSETS / name, families.read_config(ASSETS / "tiny-qwen3"), path, silent)
        options.append(f"--lora={path}")
    with serve(target, launch(gguf, *options, context=1536, parallel=3)) as client:
        assert [adapter["scale"] for adapter in client.get("/lora-adapters").json()] == [0.0, 0.0]
        plain = chat(client, "What is the answer?")
        scales = [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 0.0}]
        assert "alpha" in chat(client, "What is the answer?", lora=scales)
        scales = [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
        assert "bravo" in chat(client, "What is the answer?", lora=scales)
    assert "alpha" not in plain
    assert "bravo" not in plain


# What llama.cpp is asked for on each path that the gateway passes on: the same chat every time.
QUESTION = [{"role": "user", "content": "What is the answer?"}]
PROMPT = "<|im_start|>user\nWhat is the answer?<|im_end|>\n<|im_start|>assistant\n"
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": QUESTION, "max_tokens": 16},
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 16},
    "/v1/responses": {"input": QUESTION[0]["content"], "max_output_tokens": 16},
    "/v1/messages": {"messages": QUESTION, "max_tokens": 16},
    "/v1/embeddings": {"input": QUESTION[0]["content"]},
}


def test_the_paths_on_which_it_heeds_the_scales(target: LocalTarget, gguf: Path, tmp_path: Path) -> None:
    """They are those of its sheet: on every other path that the gateway knows, scales would be lost."""
    adapter = tmp_path / "lora-a.gguf"
    lora.build_lora_gguf(ASSETS / "lora-a", families.read_config(ASSETS / "tiny-qwen3"), adapter, silent)
    assert ASKED.keys() == openai.RELAYED | {anthropic.MESSAGES}
    heeded = []
    with serve(target, launch(gguf, f"--lora={adapter}", "--temperature=0", context=1024, parallel=1)) as client:
        for path, body in ASKED.items():
            with_scale, without = (
                client.post(path, json={"model": "tiny", **body, "lora": [{"id": 0, "scale": scale}]}).text
                for scale in (1.0, 0.0)
            )
            assert "alpha" not in without
            heeded += [path] if "alpha" in with_scale else []
    assert tuple(heeded) == ENGINES["llamacpp"].patch_paths


def test_sampling_defaults(target: LocalTarget, gguf: Path) -> None:
    options = ("--temperature=0.25", "--top-p=0.5", "--top-k=7", "--min-p=0.125", "--repeat-penalty=1.5", "--seed=5")
    with serve(target, launch(gguf, *options, context=512, parallel=1)) as client:
        params = client.get("/props").json()["default_generation_settings"]["params"]
    wanted = {"temperature": 0.25, "top_p": 0.5, "top_k": 7, "min_p": 0.125, "repeat_penalty": 1.5, "seed": 5}
    assert {key: params[key] for key in wanted} == wanted


def test_a_restart_serves_again_on_the_same_port(target: LocalTarget, root: Path, client: httpx.Client) -> None:
    assert proc.send(Seen(root, "llamacpp").engine, signal.SIGKILL)

    def serves() -> bool:
        try:
            return only(target, "llamacpp").starts == 2 and client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(serves, "the restarted server", 30)
    assert chat(client, "Who are you?").startswith("I am")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "failed to open GGUF file"), (b"garbage " * 1000, "invalid magic"), (b"", "failed to read magic")],
)
def test_a_bad_file_is_told(target: LocalTarget, tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)
    target.ensure("llamacpp", launch(path), "")
    wait_until(lambda: only(target, "llamacpp").last_exit, "its exit")
    ended = only(target, "llamacpp").last_exit
    assert ended is not None
    assert ended.code == 1
    first = next(line for line in target.log_path("llamacpp").read_text().splitlines() if " E " in line)
    assert reason in first


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--port=99999", "not within 1 to 65535"),
        ("--port=0", "not within 1 to 65535"),
        ("--ctx-size=0", "--ctx-size 0"),
        ("--ctx-size=3000000000", "--ctx-size 3000000000"),
        ("--parallel=0", "--parallel 0"),
        ("--seed=-1", "--seed -1"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_loaded(option: str, reason: str) -> None:
    argv = [sys.executable, "-m", MODULE, "--model=x", "--alias=y", "--port=1", "--ctx-size=512", option]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert reason in done.stderr
    assert " E " not in done.stderr

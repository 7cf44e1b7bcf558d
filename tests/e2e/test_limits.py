"""Limits on what clients may take, as orch is told them, in front of a real llama.cpp."""

from __future__ import annotations

import json
import socket

import httpx
import pytest
from orch_command import ANSWER, Orch, wait_until

pytestmark = pytest.mark.llamacpp


def asked_and_not_read(port: int, **headers: str) -> socket.socket:
    """A client whose stream has 4096 tokens with their probabilities at each step, and who reads nothing of it."""
    asked = {"model": "tiny", "prompt": "Who", "stream": True, "n_probs": 4096, "max_tokens": 1500, "ignore_eos": True}
    body = json.dumps({**asked, "temperature": 1.0}).encode()
    head = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(f"POST /v1/completions HTTP/1.1\r\n{lines}\r\n".encode() + body)
    return client


@pytest.mark.long
def test_ten_clients_that_do_not_read_keep_nobody_else_from_llama_cpp(orch: Orch) -> None:
    orch.env["ORCH_LIMITS"] = "buffer_mib=1"
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    assert orch.gateway_status()["limits"] == ["buffer_mib=1"]
    ((name, row),) = orch.engines().items()
    engine = f"http://127.0.0.1:{row['port']}"
    clients = [asked_and_not_read(int(orch.listen.rpartition(":")[2])) for _ in range(10)]
    try:
        wait_until(lambda: orch.gateway_status()["backends"][name]["in_flight"] == 10, what="what is not read")
        assert httpx.get(f"{engine}/health", timeout=30, trust_env=False).status_code == 200
        assert orch.says() == ANSWER
        wait_until(lambda: orch.gateway_status()["turned_away"] == {"behind": 10}, 60, what="all ten cut")
        # It computes for nobody who does not read.
        secret = {"Authorization": f"Bearer {(orch.home / 'secrets' / name).read_text().strip()}"}

        def is_idle() -> bool:
            slots = httpx.get(f"{engine}/slots", headers=secret, timeout=30, trust_env=False).json()
            return not any(slot["is_processing"] for slot in slots)

        wait_until(is_idle, what="slots that are free")
    finally:
        for client in clients:
            client.close()


def test_limits_stay_until_others_are_said(orch: Orch) -> None:
    orch.env["ORCH_LIMITS"] = "idle_s=5,requests=x"
    wrong = orch.run("up", "llamacpp", "-p", str(orch.profile), "--json", code=2).lines[-1]
    assert wrong["error"].startswith("ORCH_LIMITS: 'requests=x': requests is a whole number")
    orch.env["ORCH_LIMITS"] = "head_s=0.5"
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    assert orch.status().document["gateway"]["limits"] == ["head_s=0.5"]
    del orch.env["ORCH_LIMITS"]
    orch.run("up")
    host, _, port = orch.listen.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
    orch.env["ORCH_LIMITS"] = ""
    assert "ORCH_LIMITS says none" in orch.run("up", "--json", code=5).lines[-1]["error"]
    orch.run("up", "--gateway")
    assert orch.gateway_status()["limits"] == []

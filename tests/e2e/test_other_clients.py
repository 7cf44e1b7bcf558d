"""Clients that do not speak OpenAI's chat, and pages in a browser, in front of real engines."""

from __future__ import annotations

import json
import socket

import httpx
import pytest
from orch_command import ANSWER, ASSETS, Orch, wait_until

pytestmark = pytest.mark.llamacpp

MESSAGES = "/v1/messages"


def ask(orch: Orch, path: str, body: dict[str, object], **headers: str) -> httpx.Response:
    return httpx.post(f"http://{orch.listen}{path}", json=body, headers=headers, timeout=60, trust_env=False)


def message(orch: Orch, name: str) -> httpx.Response:
    """An Anthropic client's question."""
    asked = [{"role": "user", "content": "Who are you?"}]
    return ask(orch, MESSAGES, {"model": name, "messages": asked, "max_tokens": 40, "temperature": 0})


def test_an_anthropic_client_never_gets_another_models_answer_nor_spoils_those_of_others(orch: Orch) -> None:
    orch.run("up", "llamacpp", "-p", str(orch.profile))
    plain = message(orch, "tiny")
    assert (plain.status_code, plain.json()["content"][0]["text"]) == (200, ANSWER)

    orch.run("lora", "add", "alpha", str(ASSETS / "lora-a"))
    alpha = "Ahoy! The answer is alpha."
    # Each slot in turn: what a request leaves in one is found by the next that fits it.
    for _ in range(4):
        assert orch.says("alpha") == alpha
        for name in ("alpha", "tiny"):
            refused = message(orch, name)
            assert (refused.status_code, refused.json()["type"]) == (400, "error")
            assert refused.json()["error"]["type"] == "invalid_request_error"
            assert "/v1/chat/completions" in refused.json()["error"]["message"]
        assert (orch.says("tiny"), orch.says("alpha")) == (ANSWER, alpha)
    asked = {"model": "alpha", "input": "Who are you?", "max_output_tokens": 40}
    told = ask(orch, "/v1/responses", asked).json()["output"][-1]["content"][0]["text"]
    assert told == alpha

    orch.run("lora", "rm", "alpha")
    assert message(orch, "tiny").json()["content"][0]["text"] == ANSWER


def test_pages_of_other_sites_are_let_in_by_orch_origins(orch: Orch) -> None:
    site, body = "https://chat.example.org", {"model": "tiny", "prompt": "a", "max_tokens": 1}
    orch.env["ORCH_ORIGINS"] = f"{site}/x"
    wrong = orch.run("up", "llamacpp", "-p", str(orch.profile), "--json", code=2).lines[-1]
    assert "is not a valid origin" in wrong["error"]
    del orch.env["ORCH_ORIGINS"]

    orch.run("up", "llamacpp", "-p", str(orch.profile))
    refused = ask(orch, "/v1/completions", body, Origin=site)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert ask(orch, "/v1/completions", body, Host="llm.example.org").status_code == 403
    page = ask(orch, "/v1/completions", body, Origin="http://localhost:3000")
    assert page.status_code == 200
    # llama.cpp lets every page in.
    assert "access-control-allow-origin" not in page.headers

    # As the refusal says: added, and the gateway replaced. One that runs does not change, and that is told.
    orch.env["ORCH_ORIGINS"] = f" {site}, chrome-extension://*"
    told = orch.run("up", "--json", code=5).lines[-1]
    assert "orch up --gateway" in told["hint"]
    orch.run("up", "--gateway")
    orch.run("up")
    assert ask(orch, "/v1/completions", body, Origin=site).status_code == 200
    assert ask(orch, "/v1/completions", body, Origin="chrome-extension://abcdef").status_code == 200
    assert ask(orch, "/v1/completions", body, Origin="https://other.example.org").status_code == 403
    # It stands in the gateway's own record: a later command need not say it again.
    del orch.env["ORCH_ORIGINS"]
    orch.run("up")
    assert ask(orch, "/v1/completions", body, Origin=site).status_code == 200
    orch.status()


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

"""Clients that do not speak OpenAI's chat, and pages in a browser, in front of real engines."""

from __future__ import annotations

import httpx
import pytest
from orch_command import ANSWER, ASSETS, Orch

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
    # Each slot in turn: what a request leaves in one is found by the next that fits it. llama.cpp's own path for it
    # loses the scales.
    for _ in range(4):
        assert orch.says("alpha") == alpha
        for name, said in (("alpha", alpha), ("tiny", ANSWER)):
            told = message(orch, name).json()
            assert (told["content"], told["model"]) == ([{"type": "text", "text": said}], name)
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
    assert page.headers["access-control-allow-origin"] == "http://localhost:3000"

    # As the refusal says.
    assert f"orch up --origin {site}" in refused.json()["error"]["message"]
    wrong = orch.run("up", "--origin", f"{site}/x", "--json", code=2).lines[-1]
    assert ("is not a valid origin" in wrong["error"], "without paths" in wrong["hint"]) == (True, True)
    planned = orch.run("up", "--origin", site, "--plan").out
    assert f"open to pages of {site}" in planned
    assert ask(orch, "/v1/completions", body, Origin=site).status_code == 403
    told = orch.run("up", "--origin", site, "--json").steps("done")
    assert told[:1] == ["ReplaceGateway"]
    served = ask(orch, "/v1/completions", body, Origin=site)
    assert (served.status_code, served.headers["access-control-allow-origin"]) == (200, site)
    # Again: nothing is done, as it stays so without being said.
    assert orch.actions("up", "--origin", site) == orch.actions("up") == []

    # All of them are said by ORCH_ORIGINS. One that runs does not change for it, and that is told.
    orch.env["ORCH_ORIGINS"] = "chrome-extension://*"
    told = orch.run("up", "--json", code=5).lines[-1]
    assert "orch up --gateway" in told["hint"]
    assert f"pages of {site} may no longer use the gateway" in orch.run("up", "--gateway").err
    orch.run("up")
    assert ask(orch, "/v1/completions", body, Origin=site).status_code == 403
    assert ask(orch, "/v1/completions", body, Origin="chrome-extension://abcdef").status_code == 200
    orch.run("up", "--origin", site)
    assert ask(orch, "/v1/completions", body, Origin=site).status_code == 200
    assert ask(orch, "/v1/completions", body, Origin="https://other.example.org").status_code == 403
    # It stands in the gateway's own record: a later command need not say it again.
    del orch.env["ORCH_ORIGINS"]
    orch.run("up")
    assert ask(orch, "/v1/completions", body, Origin=site).status_code == 200
    orch.status()
    assert f"--origin={site}" in orch.run("render", "compose", "ollama", "-p", str(orch.profile)).out

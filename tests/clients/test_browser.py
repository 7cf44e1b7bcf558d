"""Pages in a real Chromium ask a gateway: what their scripts are given, and what is kept from them.

One page is of this machine, one of another site. Both have the browser builds of the clients of OpenAI and of Ollama.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from browser import Browser
from gateway_process import Gateway, key_ring, write_keys
from orch_command import ANSWER, Orch, stopped_afterwards
from scripted_engine import TEXT, WORDS, ScriptedEngine

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import ANTHROPIC, LLAMA_SERVER, OLLAMA, OPENAI, Backend, Route

pytestmark = [pytest.mark.parts, pytest.mark.clients, pytest.mark.browser]

KEY = "sk-orch-0123456789abcdef0123456789abcdef"
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
SAID = [{"role": "user", "content": "Count."}]
COUNT = {"model": "tiny", "question": "Count."}
# In whose words, and of which model: one that is passed on, and for Ollama's one that is translated too.
SDKS = [("openai", "tiny"), ("ollama", "tiny"), ("ollama", "translated")]
OF_ANTHROPICS = {
    "x-api-key": KEY,
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "none-2026-01-31",
    "anthropic-dangerous-direct-browser-access": "true",
    "content-type": "application/json",
}


def posted(**body: object) -> dict[str, object]:
    """What fetch is to send."""
    return {"method": "POST", "headers": {"Content-Type": "application/json"}, "body": json.dumps(body)}


@pytest.fixture(scope="module")
def only_engine() -> Iterator[ScriptedEngine]:
    with closing(ScriptedEngine()) as made:
        yield made


@pytest.fixture
def engine(only_engine: ScriptedEngine) -> ScriptedEngine:
    only_engine.reset()
    return only_engine


@contextmanager
def started(engine: ScriptedEngine, *more: str, keys: bool = False) -> Iterator[str]:
    """The address of a gateway that has the engine's models, one of an engine that is gone, and perhaps a key."""
    with tempfile.TemporaryDirectory(prefix="gw") as home, closing(Gateway(Path(home))) as gateway:
        if keys:
            write_keys(Path(home) / "keys", key_ring(KEY))
            more = (*more, "--key-file", str(Path(home) / "keys"))
        gateway.start(*more)
        backends = (Backend(engine.name, engine.url),)
        card = ModelCard(digest="0" * 64, context=4096)
        routes = [
            Route("tiny", "one", backends, (OPENAI, ANTHROPIC, OLLAMA)),
            Route("translated", "one", backends, (OPENAI, LLAMA_SERVER), card=card),
            Route("gone", "one", (Backend("gone-g1", "http://127.0.0.1:1"),)),
        ]
        gateway.admin.set_routes("one", routes)
        yield f"http://127.0.0.1:{gateway.port}"


@pytest.fixture(scope="module")
def url(only_engine: ScriptedEngine) -> Iterator[str]:
    with started(only_engine) as made:
        yield made


@pytest.fixture(scope="module")
def keyed(only_engine: ScriptedEngine) -> Iterator[str]:
    with started(only_engine, keys=True) as made:
        yield made


@pytest.fixture
def here(browser: Browser) -> Browser:
    """The page of this machine."""
    browser.visit(browser.here)
    return browser


@pytest.fixture
def elsewhere(browser: Browser) -> Browser:
    """The page of another site."""
    browser.visit(browser.elsewhere)
    return browser


def streams(page: Browser, url: str, key: str | None = None) -> None:
    """Every client in the page has its stream, and so has fetch, with headers that only Anthropic's clients send."""
    for sdk, model in SDKS:
        told = page.ask(sdk, url, model=model, question="Count.", key=key).good()
        assert (told["text"], told["parts"]) == (TEXT, len(WORDS)), sdk
    asked = {"model": "tiny", "messages": SAID, "max_tokens": 9, "stream": True}
    told = page.ask("bytes", f"{url}{MESSAGES}", **posted(**asked) | {"headers": OF_ANTHROPICS}).good()
    assert '"type":"message_stop"' in told["text"]


def test_a_page_of_this_machine_streams(here: Browser, engine: ScriptedEngine, url: str) -> None:
    streams(here, url)
    assert here.ask("openai_models", url).good() == ["gone", "tiny", "translated"]
    assert here.ask("ollama_list", url).good() == ["gone:latest", "tiny:latest", "translated:latest"]


@pytest.mark.parametrize(("sdk", "model"), SDKS)
def test_it_has_each_part_when_it_is_there(
    here: Browser, engine: ScriptedEngine, url: str, sdk: str, model: str
) -> None:
    engine.then = "wait"
    asked = here.begin(sdk, url, model=model, question="Count.")
    assert asked.part() == WORDS[0]
    engine.gate.set()
    assert asked.heard().good()["text"] == TEXT


@pytest.mark.parametrize(("sdk", "model"), SDKS)
def test_a_stream_that_breaks_raises_in_its_script(
    here: Browser, engine: ScriptedEngine, url: str, sdk: str, model: str
) -> None:
    engine.then = "die"
    told = here.ask(sdk, url, model=model, question="Count.")
    assert (told.text, "The engine was lost" in told.bad()["message"]) == (WORDS[0], True)


def test_its_script_has_the_text_of_every_error(here: Browser, engine: ScriptedEngine, url: str) -> None:
    raised = here.ask("openai", url, model="nope", question="Count.").bad()
    assert (raised["status"], "The model `nope` does not exist" in raised["message"]) == (404, True)
    raised = here.ask("ollama", url, model="nope", question="Count.").bad()
    assert (raised["status"], raised["message"]) == (404, "model 'nope' not found")
    for status, path, asked, text in [
        (404, "/nothing", {}, "unknown_path"),
        (404, "/api/nothing", {}, "404 page not found"),
        (405, CHAT, {}, "wrong_method"),
        (405, "/health", {"method": "DELETE"}, "wrong_method"),
        (400, MESSAGES, {"method": "POST", "body": "{"}, "invalid_request_error"),
        (413, CHAT, {"method": "POST", "size": 9 << 20}, "body_too_large"),
        (431, CHAT, {"method": "POST", "repeat": 40_000}, "head_too_large"),
        (431, "/api/chat", {"method": "POST", "repeat": 40_000}, "A header of the request is longer"),
        (503, CHAT, posted(model="gone", messages=SAID), "backend_unavailable"),
        (200, "/", {}, "Ollama is running"),
        (200, "/health", {}, "ok"),
        (200, "/metrics", {}, "# HELP"),
    ]:
        told = here.ask("ask", f"{url}{path}", **asked).good()
        assert (told["status"], text in told["text"]) == (status, True), (path, told)
        assert status != 405 or "allow" in told["headers"]
        assert status != 503 or told["headers"]["retry-after"] == "2"


def test_the_page_of_another_site_gets_nothing_from_a_gateway_without_keys(
    elsewhere: Browser, engine: ScriptedEngine, url: str
) -> None:
    for sdk, model in SDKS:
        assert elsewhere.ask(sdk, url, model=model, question="Count.", key=KEY).bad()["status"] is None
    for path, asked in [
        ("/v1/models", {}),
        ("/health", {}),
        (CHAT, posted(model="tiny")),
        # Its browser sends this without asking anybody.
        (CHAT, {"method": "POST", "body": '{"model": "tiny"}'}),
        (CHAT, {"method": "POST", "repeat": 40_000}),
    ]:
        raised = elsewhere.ask("ask", f"{url}{path}", **asked).bad()
        assert (raised["type"], raised["message"]) == ("TypeError", "Failed to fetch"), path
    assert elsewhere.ask("ask", f"{url}{CHAT}", method="POST", body='{"model": "tiny"}', mode="no-cors").good()
    assert engine.asked == []


def test_pages_of_a_site_that_was_added_are_served(elsewhere: Browser, engine: ScriptedEngine) -> None:
    with started(engine, f"--origin={elsewhere.elsewhere}") as url:
        streams(elsewhere, url)
        assert elsewhere.ask("openai", url, model="nope", question="Count.").bad()["status"] == 404


def test_with_keys_a_page_of_any_site_is_served_that_has_one(
    browser: Browser, engine: ScriptedEngine, keyed: str
) -> None:
    for origin in (browser.here, browser.elsewhere):
        browser.visit(origin)
        streams(browser, keyed, KEY)
        assert "tiny" in browser.ask("openai_models", keyed, key=KEY).good()
        for sdk in ("openai", "ollama"):
            for key in ("sk-orch-another", None):
                raised = browser.ask(sdk, keyed, key=key, **COUNT).bad()
                assert (raised["status"], "A valid API key is needed" in raised["message"]) == (401, True)
        told = browser.ask("ask", f"{keyed}/api/version").good()
        assert (told["status"], told["headers"]["www-authenticate"]) == (401, "Bearer")
        # What a browser itself keeps for this address is never a page's to use.
        assert browser.ask("ask", f"{keyed}/health", credentials="include").bad()["type"] == "TypeError"


@pytest.mark.long
@pytest.mark.llamacpp
def test_up_lets_pages_of_a_site_in_while_a_page_of_this_machine_streams(browser: Browser, tmp_path: Path) -> None:
    """On a real engine; and nothing that is in flight fails for it."""
    with stopped_afterwards(Orch(tmp_path / "home")) as orch:
        orch.run("up", "llamacpp", "-p", str(orch.profile))
        url = f"http://{orch.listen}"
        asked = {"model": "tiny", "question": "Who are you?"}
        browser.visit(browser.elsewhere)
        assert browser.ask("openai", url, **asked).bad()["status"] is None
        browser.visit(browser.here)
        for sdk in ("openai", "ollama"):
            assert browser.ask(sdk, url, **asked).good()["text"] == ANSWER
        streaming = browser.begin("openai", url, **asked)
        orch.run("up", "--origin", browser.elsewhere)
        assert streaming.heard().good()["text"] == ANSWER
        browser.visit(browser.elsewhere)
        for sdk in ("openai", "ollama"):
            assert browser.ask(sdk, url, **asked).good()["text"] == ANSWER

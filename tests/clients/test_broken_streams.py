"""Streams that break are no answers: the real client of each API raises, however it came about.

In front of an engine that breaks as it is told.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from client_programs import Clients
from gateway_process import Gateway, wait_until
from scripted_engine import REPEATED, TEXT, WORDS, ScriptedEngine

from orchestrator.core.model_card import ModelCard
from orchestrator.core.routes import ANTHROPIC, LLAMA_SERVER, OLLAMA, OPENAI, Backend, Route

pytestmark = [pytest.mark.parts, pytest.mark.clients]

OPENAIS = [
    *((one, verb) for one in ("python_openai", "npm_openai") for verb in ("stream", "completions", "responses")),
    *((f"python_{one}", "stream") for one in ("langchain_openai", "litellm_openai", "llm_openai", "instructor")),
    *((one, "stream") for one in ("python_pydantic_ai", "npm_ai")),
]
ANTHROPICS = [(client, verb) for client in ("python_anthropic", "npm_anthropic") for verb in ("stream", "events")]
OLLAMAS = [
    *((client, verb) for client in ("python_ollama", "npm_ollama") for verb in ("stream", "generate_stream")),
    *((client, "stream") for client in ("python_langchain", "python_litellm", "python_open_webui")),
]
# Ollama's API and Anthropic's are asked for twice: of an engine that speaks them, and of one that they are translated
# for.
every = pytest.mark.parametrize(
    ("client", "verb", "model"),
    [
        *((client, verb, "tiny") for client, verb in OPENAIS + ANTHROPICS + OLLAMAS),
        *((client, verb, "translated") for client, verb in ANTHROPICS + OLLAMAS),
    ],
)
CLIENTS = ("python_openai", "npm_openai", "python_anthropic", "npm_anthropic", *dict(OLLAMAS))


def asked(verb: str, model: str = "tiny") -> dict[str, str]:
    """What a client is asked: a prompt or a question."""
    given = "prompt" if verb in ("completions", "generate_stream") else "question"
    return {"model": model, given: "Count."}


@pytest.fixture(scope="module")
def only_engine() -> Iterator[ScriptedEngine]:
    made = ScriptedEngine()
    yield made
    made.close()


@pytest.fixture
def engine(only_engine: ScriptedEngine) -> ScriptedEngine:
    only_engine.reset()
    return only_engine


@contextmanager
def started(engine: ScriptedEngine, *more: str) -> Iterator[Gateway]:
    """A gateway that has two models on the engine, which is said to speak all three APIs, or one as llama.cpp does."""
    # A unix socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="gw") as home, closing(Gateway(Path(home))) as gateway:
        gateway.start(*more)
        backends = (Backend(engine.name, engine.url),)
        card = ModelCard(digest="0" * 64, context=4096)
        routes = [
            Route("tiny", "one", backends, (OPENAI, ANTHROPIC, OLLAMA)),
            Route("translated", "one", backends, (OPENAI, LLAMA_SERVER), card=card),
        ]
        gateway.admin.set_routes("one", routes)
        yield gateway


@pytest.fixture(scope="module")
def gateway(only_engine: ScriptedEngine) -> Iterator[Gateway]:
    with started(only_engine) as made:
        yield made


@pytest.fixture
def url(gateway: Gateway) -> str:
    return f"http://127.0.0.1:{gateway.port}"


@every
def test_a_whole_stream_is_one(
    clients: Clients, engine: ScriptedEngine, url: str, client: str, verb: str, model: str
) -> None:
    assert clients[client].ask(verb, url, **asked(verb, model)).good()["text"] == TEXT


@every
def test_an_engine_that_is_lost(
    clients: Clients, engine: ScriptedEngine, url: str, client: str, verb: str, model: str
) -> None:
    engine.then = "die"
    heard = clients[client].ask(verb, url, **asked(verb, model))
    assert "engine was lost while it answered" in heard.bad()["message"]
    assert heard.text == WORDS[0]
    assert len(engine.asked) == 1


@every
def test_an_end_before_the_end(
    clients: Clients, engine: ScriptedEngine, url: str, client: str, verb: str, model: str
) -> None:
    """The model's process is lost behind an engine that lives: it ends the body as if all were said."""
    engine.then = "end"
    heard = clients[client].ask(verb, url, **asked(verb, model))
    assert "engine ended its answer too early" in heard.bad()["message"]
    assert heard.text == TEXT


@every
def test_a_drain_that_cuts(
    clients: Clients, engine: ScriptedEngine, gateway: Gateway, url: str, client: str, verb: str, model: str
) -> None:
    engine.then = "wait"
    begun = clients[client].begin(verb, url, **asked(verb, model))
    assert begun.part() == WORDS[0]
    assert gateway.admin.drain(engine.name, 0.1, True) == 1
    heard = begun.heard()
    assert "its engine is being taken away" in heard.bad()["message"]
    assert heard.text == WORDS[0]
    assert engine.left.wait(2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_gateway_that_ends(clients: Clients, engine: ScriptedEngine, number: signal.Signals) -> None:
    """Stopped, after its grace; and killed, which nobody can tell them."""
    engine.then = "wait"
    with started(engine, "--grace", "0.3") as own:
        url = f"http://127.0.0.1:{own.port}"
        begun = {client: clients[client].begin("stream", url, **asked("stream")) for client in CLIENTS}
        assert {one.part() for one in begun.values()} == {WORDS[0]}
        own.end(number)
    heard = {client: one.heard() for client, one in begun.items()}
    assert [client for client, one in heard.items() if one.raised is None] == []
    assert {one.text for one in heard.values()} == {WORDS[0]}


@pytest.mark.parametrize("client", ["python_openai", "npm_openai"])
def test_ollamas_stop_after_repetitions_is_an_end(
    clients: Clients, engine: ScriptedEngine, url: str, client: str
) -> None:
    engine.then = "repeat"
    heard = clients[client].ask("stream", url, **asked("stream"))
    assert heard.good()["text"] == WORDS[0] * (1 + REPEATED)


@pytest.mark.parametrize(
    ("client", "raises"), [("python_ollama", False), ("npm_ollama", True), ("python_langchain", False)]
)
def test_it_is_for_ollamas_clients_what_it_is_without_a_gateway(
    clients: Clients, engine: ScriptedEngine, url: str, client: str, raises: bool
) -> None:
    engine.then = "repeat"
    through, direct = (clients[client].ask("stream", place, **asked("stream")) for place in (url, engine.url))
    assert through == direct
    assert (through.raised is not None) is raises


@pytest.mark.parametrize(
    "words", ["llama-server process no longer running: -1 ", "unexpected EOF", 'Post "http://127.0.0.1:1/x": EOF']
)
@pytest.mark.parametrize("verb", ["chat", "stream"])
@pytest.mark.parametrize("client", ["python_ollama", "npm_ollama", "python_openai"])
def test_a_runner_that_was_lost_is_asked_again(
    clients: Clients, engine: ScriptedEngine, url: str, client: str, verb: str, words: str
) -> None:
    engine.fail = words
    heard = clients[client].ask(verb, url, model="tiny", question="Count.")
    assert TEXT in str(heard.good())
    assert len(engine.asked) == 2


@every
def test_a_client_that_leaves_takes_its_request_with_it(
    clients: Clients, engine: ScriptedEngine, gateway: Gateway, url: str, client: str, verb: str, model: str
) -> None:
    engine.then = "wait"
    assert clients[client].ask(f"leave:{verb}", url, **asked(verb, model)).good() == "left"
    assert engine.left.wait(5)
    wait_until(lambda: gateway.status().traffic.backends[engine.name].in_flight == 0)

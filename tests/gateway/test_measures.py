"""What a real gateway measures: read from /metrics by Prometheus's own parser, held against engines whose delays and
tokens are known."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from engine_by_script import (
    DONE,
    JSON,
    Asked,
    Said,
    Scripted,
    llama_server_stream,
    ollama_stream,
    vllm_stream,
    wants_figures,
)
from gateway_process import Gateway, Stream, wait_until
from openai_engine import CARD
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from orchestrator.core.routes import LLAMA_SERVER, OLLAMA, OPENAI, VLLM, Route
from orchestrator.gateway.measures import DURATIONS, FIRST_TOKENS, OUTPUT_TOKENS

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "A prompt that nobody else may read"}]
TTFT, PER_TOKEN = "gen_ai_server_time_to_first_token_seconds", "gen_ai_server_time_per_output_token_seconds"
DURATION, TOKENS = "gen_ai_server_request_duration_seconds", "gen_ai_client_token_usage"
DASHBOARD = Path(__file__).parents[2] / "templates" / "grafana" / "orch.json"
FIRST_S, BETWEEN_S = 0.3, 0.1


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    """Makes engines."""
    made: list[Scripted] = []

    def make(answer: Callable[[str, Asked], Said], name: str = "one-vllm-g1") -> Scripted:
        made.append(Scripted(name, answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


def as_vllm(path: str, asked: Asked) -> Said:
    """A stream whose first token comes late, and the others slowly."""
    if not asked.get("stream"):
        usage = {"prompt_tokens": 5, "completion_tokens": 3}
        return Said([(0, json.dumps({"choices": [], "usage": usage}).encode())], JSON)
    events = vllm_stream("chat" in path, wants_figures(asked))
    return Said([(FIRST_S if number == 0 else BETWEEN_S, one) for number, one in enumerate(events)])


def route(gateway: Gateway, engine: Scripted, name: str = "tiny", server: str = VLLM, **more: object) -> Route:
    return gateway.route(name, engine, speaks=(OPENAI, server), card=CARD, **more)


def bound_above(bounds: Sequence[float], seconds: float) -> str:
    """The upper bound of a time's bucket."""
    return next((str(bound) for bound in bounds if seconds <= bound), "+Inf")


def scrape(gateway: Gateway, accept: str = "") -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels; labels that are empty are none."""
    status, head, text = gateway.ask("/metrics", verb="GET", headers={"Accept": accept})
    assert status == 200
    parse = open_metrics if "openmetrics" in head["content-type"] else plain_text
    return {
        (sample.name, frozenset((name, value) for name, value in sample.labels.items() if value)): sample.value
        for family in parse(text.decode())
        for sample in family.samples
    }


def value(gateway: Gateway, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels, error_type none unless it is said."""
    return sum(
        found
        for (sample, given), found in scrape(gateway).items()
        if sample == name
        and labels.items() <= dict(given).items()
        and ("error_type" in labels) == ("error_type" in dict(given))
    )


def test_a_stream_s_times_and_tokens(gateway: Gateway, scripted: Callable[..., Scripted]) -> None:
    """Held against the engine's delays, and what the client saw of them: a busy machine makes both longer."""
    gateway.admin.set_routes("one", [route(gateway, scripted(as_vllm))])
    asked_at = time.monotonic()
    stream = Stream(gateway, model="tiny", messages=MESSAGES)
    first = stream.event()
    seen_after = time.monotonic() - asked_at
    said = [first, *stream.rest()]
    all_after = time.monotonic() - asked_at
    stream.close()
    assert said[-1] == "[DONE]"
    assert "usage" not in said[-2]
    wait_until(lambda: value(gateway, f"{DURATION}_count") == 1)
    labels = {
        "gen_ai_request_model": "tiny",
        "gen_ai_provider_name": "vllm",
        "gen_ai_operation_name": "chat",
        "adapter": "false",
    }
    # 0.3 s: above 0.25, and within what the client saw.
    assert value(gateway, f"{TTFT}_bucket", le="0.25", **labels) == 0
    assert value(gateway, f"{TTFT}_bucket", le=bound_above(FIRST_TOKENS, seen_after), **labels) == 1
    assert FIRST_S <= value(gateway, f"{TTFT}_sum", **labels) <= seen_after
    # Of 12 tokens 11 come in the 0.5 s after the first.
    each = value(gateway, f"{PER_TOKEN}_sum", **labels)
    assert 5 * BETWEEN_S / 11 * 0.9 <= each <= (all_after - FIRST_S) / 11
    assert value(gateway, f"{PER_TOKEN}_bucket", le="0.025", **labels) == 0
    assert value(gateway, f"{PER_TOKEN}_bucket", le=bound_above(OUTPUT_TOKENS, each), **labels) == 1
    assert value(gateway, f"{DURATION}_bucket", le="0.64", **labels) == 0
    assert value(gateway, f"{DURATION}_bucket", le=bound_above(DURATIONS, all_after), **labels) == 1
    for kind, count, below, above in (("input", 18, "16.0", "64.0"), ("output", 12, "4.0", "16.0")):
        of = {**labels, "gen_ai_token_type": kind}
        assert value(gateway, f"{TOKENS}_sum", **of) == count
        assert [value(gateway, f"{TOKENS}_bucket", le=le, **of) for le in (below, above)] == [0, 1]
    assert value(gateway, "orch_gateway_active_requests", gen_ai_request_model="tiny") == 0


@pytest.mark.parametrize(
    ("server", "answer", "path", "counts"),
    [
        (VLLM, lambda asked: vllm_stream(True, wants_figures(asked)), CHAT, (18, 12)),
        (VLLM, lambda asked: vllm_stream(False, wants_figures(asked)), COMPLETIONS, (18, 12)),
        (OLLAMA, lambda asked: ollama_stream(True, wants_figures(asked)), CHAT, (21, 4)),
        (OLLAMA, lambda asked: ollama_stream(False, wants_figures(asked)), COMPLETIONS, (21, 4)),
        (LLAMA_SERVER, lambda asked: llama_server_stream(), CHAT, (17, 4)),
        (VLLM, lambda asked: vllm_stream(True, wants_figures(asked)), "/api/chat", (18, 12)),
        (VLLM, lambda asked: vllm_stream(True, wants_figures(asked)), "/v1/messages", (18, 12)),
    ],
)
def test_tokens_of_streams_in_every_api(
    gateway: Gateway,
    scripted: Callable[..., Scripted],
    server: str,
    answer: Callable[[Asked], list[bytes]],
    path: str,
    counts: tuple[int, int],
) -> None:
    one = scripted(lambda _, asked: Said([(0, b"".join(answer(asked)))]))
    gateway.admin.set_routes("one", [route(gateway, one, server=server)])
    question: Asked = {"prompt": "."} if path == COMPLETIONS else {"messages": MESSAGES}
    status, _, body = gateway.ask(path, {"model": "tiny", "stream": True, "max_tokens": 9, **question})
    assert status == 200, body
    if path.startswith("/v1/c"):
        assert body == b"".join(answer({})), "to the byte as without the gateway's wish for figures"
    told = [value(gateway, f"{TOKENS}_sum", gen_ai_token_type=kind) for kind in ("input", "output")]
    assert told == list(counts)
    assert value(gateway, f"{TTFT}_count") == 1


def test_tokens_of_whole_answers(gateway: Gateway, scripted: Callable[..., Scripted]) -> None:
    """Those that are read, and those that pass unread and long."""
    long = json.dumps({"choices": ["x" * 300_000], "usage": {"prompt_tokens": 70, "completion_tokens": 30}}).encode()
    unread = scripted(lambda *_: Said([(0, long[:9]), (0, long[9:])], JSON), "two-other-g1")
    gateway.admin.set_routes(
        "one", [route(gateway, scripted(as_vllm)), gateway.route("unread", unread, speaks=(OPENAI,))]
    )
    assert gateway.ask(CHAT, {"model": "tiny", "messages": MESSAGES})[0] == 200
    assert gateway.ask(CHAT, {"model": "unread", "messages": MESSAGES})[2] == long
    told = [
        value(gateway, f"{TOKENS}_sum", gen_ai_token_type=kind, gen_ai_request_model=name)
        for name in ("tiny", "unread")
        for kind in ("input", "output")
    ]
    assert told == [5, 3, 70, 30]
    assert value(gateway, f"{TTFT}_count") == 0, "nothing was streamed"


def test_errors_by_kind(gateway: Gateway, scripted: Callable[..., Scripted], engine: Callable[..., object]) -> None:
    lost = engine("lost-g1")
    bad = scripted(lambda _, asked: Said([(0, b'{"error":{"message":"no"}}')], JSON, asked["seed"]))
    gateway.admin.set_routes("one", [route(gateway, bad), gateway.route("lost", lost)])
    for status in (400, 500):
        assert gateway.ask(CHAT, {"model": "tiny", "messages": MESSAGES, "seed": status})[0] == status
    broken = Stream(gateway, model="lost", die="middle")
    broken.rest()
    gone = Stream(gateway, model="lost", wait="middle")
    gone.event()
    gone.close()
    wait_until(lambda: value(gateway, f"{DURATION}_count", error_type="client_gone") == 1)
    assert gateway.ask(CHAT, {"model": "lost", "die": "head"})[0] == 503
    kinds = {
        dict(labels)["error_type"]: count
        for (name, labels), count in scrape(gateway).items()
        if name == f"{DURATION}_count" and "error_type" in dict(labels)
    }
    # The last is the word of the answer that the gateway gives by itself.
    assert kinds == {"400": 1, "500": 1, "engine_lost": 1, "client_gone": 1, "backend_unavailable": 1}
    assert value(gateway, f"{DURATION}_count") == 0
    broken.close()


def test_orch_s_own_requests_are_in_no_histogram(gateway: Gateway, scripted: Callable[..., Scripted]) -> None:
    gateway.admin.set_routes("one", [route(gateway, scripted(as_vllm))])
    own = {"Authorization": f"Bearer {gateway.admin.credential()}"}
    for stream in (True, False):
        assert gateway.ask(CHAT, {"model": "tiny", "messages": MESSAGES, "stream": stream}, headers=own)[0] == 200
    found = scrape(gateway)
    assert value(gateway, "orch_gateway_own_requests_total", gen_ai_request_model="tiny") == 2
    assert [name for name, _ in found if name.startswith("gen_ai_")] == []
    assert [name for name, _ in found if name.startswith("orch_gateway_active_requests")] == []


def test_who_is_there_waits_in_the_engine_and_at_the_gateway(
    gateway: Gateway, scripted: Callable[..., Scripted]
) -> None:
    go_on = threading.Event()

    def late(path: str, asked: Asked) -> Said:
        go_on.wait(20)
        return as_vllm(path, asked)

    one = scripted(late)
    one.told = (
        "# HELP vllm:num_requests_waiting Number of requests waiting.\n"
        'vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0\n'
        'vllm:num_requests_waiting{engine="0",model_name="tiny"} 1.0\n'
        'vllm:num_requests_waiting{engine="1",model_name="tiny"} 1.0\n'
    )
    two = scripted(late, "two-ollama-g1")
    alone = Route(**{**vars(route(gateway, two, "alone", OLLAMA)), "owner": "two", "at_once": 1})
    three = scripted(late, "three-llamacpp-g1")
    three.told = "llamacpp:requests_processing 4\nllamacpp:requests_deferred 1\n"
    deferred = Route(**{**vars(route(gateway, three, "deferred", LLAMA_SERVER)), "owner": "three"})
    gateway.admin.set_routes("one", [route(gateway, one)])
    gateway.admin.set_routes("two", [alone])
    gateway.admin.set_routes("three", [deferred])
    names = ("tiny", "tiny", "alone", "alone", "alone", "deferred")
    streams = [Stream(gateway, model=name, messages=MESSAGES) for name in names]
    waiting = {"profile": "two", "backend": "two-ollama-g1"}
    told = {"profile": "one", "backend": "one-vllm-g1"}
    name = "orch_gateway_engine_waiting_requests"
    wait_until(lambda: value(gateway, name, **waiting) == value(gateway, name, **told) == 2, 15)
    wait_until(lambda: value(gateway, name, profile="three") == 1, 15)
    assert value(gateway, "orch_gateway_active_requests", gen_ai_request_model="tiny") == 2
    assert value(gateway, "orch_gateway_active_requests", gen_ai_provider_name="ollama") == 3
    go_on.set()
    for stream in streams:
        assert stream.rest()[-1] == DONE.decode().removeprefix("data: ").strip()
        stream.close()
    wait_until(lambda: value(gateway, "orch_gateway_active_requests") == 0)
    assert [name for name, _ in scrape(gateway) if "engine_waiting" in name] == []


def test_an_adapter_is_told_as_one(gateway: Gateway, scripted: Callable[..., Scripted]) -> None:
    card = CARD.model_copy({"base": "tiny", "template": ""})
    one = scripted(as_vllm)
    gateway.admin.set_routes(
        "one", [route(gateway, one), Route(**{**vars(route(gateway, one, "tiny-law")), "card": card})]
    )
    assert gateway.ask(CHAT, {"model": "tiny-law", "messages": MESSAGES})[0] == 200
    assert value(gateway, f"{DURATION}_count", gen_ai_request_model="tiny-law", adapter="true") == 1


def test_both_formats_are_read_and_nothing_is_repeated(gateway: Gateway, scripted: Callable[..., Scripted]) -> None:
    gateway.admin.set_routes("one", [route(gateway, scripted(as_vllm), 'odd"\\\nname')])
    assert gateway.ask(CHAT, {"model": 'odd"\\\nname', "messages": MESSAGES})[0] == 200
    text = gateway.ask("/metrics", verb="GET")[2].decode()
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))
    assert "nobody else may read" not in text
    plain, other = scrape(gateway), scrape(gateway, "application/openmetrics-text; version=1.0.0")
    assert plain.keys() == other.keys()
    assert any(("gen_ai_request_model", 'odd"\\\nname') in labels for _, labels in plain)


def test_the_dashboard_asks_for_what_there_is(gateway: Gateway, scripted: Callable[..., Scripted]) -> None:
    gateway.admin.set_routes("one", [route(gateway, scripted(as_vllm))])
    stream = Stream(gateway, model="tiny", messages=MESSAGES)
    stream.rest()
    stream.close()
    families = {
        re.sub(r"^# TYPE (\S+) .*", r"\1", line)
        for line in gateway.ask("/metrics", verb="GET")[2].decode().splitlines()
        if line.startswith("# TYPE ")
    }
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 36
    assert [one["pluginId"] for one in dashboard["__inputs"]] == ["prometheus"]
    source = "${" + dashboard["__inputs"][0]["name"] + "}"
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert {panel["datasource"]["uid"] for panel in panels} == {source}
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [one["query"]["query"] for one in dashboard["templating"]["list"]]
    used = {name for text in asked for name in re.findall(r"\b(?:gen_ai_(?:server|client)|orch_gateway)_\w+", text)}
    assert len(used) >= 10
    assert {name for name in used if re.sub(r"_(bucket|sum|count)$", "", name) not in families} == set()
    chosen = [inner for text in asked for inner in re.findall(r"\{([^}]*)\}", text)]
    grouped = [inner for text in asked for inner in re.findall(r"by \(([^)]*)\)", text)]
    labels = {name for inner in chosen for name in re.findall(r"(\w+)!?=", inner)}
    labels |= {name.strip() for inner in grouped for name in inner.split(",")}
    # The last ones are of what happens to nobody here.
    known = {name for _, given in scrape(gateway) for name, _ in given}
    assert labels <= known | {"error_type", "profile", "reason", "model"}

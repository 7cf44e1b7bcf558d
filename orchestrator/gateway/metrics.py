"""The counters in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.core.gateway_status import Traffic

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]
Family = tuple[str, str, str, Iterable[Sample]]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _family(name: str, kind: str, what: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{inner}}} {value:g}" if inner else f"{name} {value:g}")
    return "\n".join(lines) + "\n"


def render(traffic: Traffic) -> str:
    """Every family, one after the other."""
    backends, totals = traffic.backends, traffic.totals
    tries = [
        ({"model": name, "backend": backend}, counts)
        for backend, load in backends.items()
        for name, counts in load.by_route.items()
    ]
    families: list[Family] = [
        ("requests_total", "counter", "Requests that clients sent for a known name.", [({}, totals.requests)]),
        ("errors_total", "counter", "Requests that the gateway or an engine failed.", [({}, totals.errors)]),
        ("streams_total", "counter", "Answers begun as a stream of events.", [({}, totals.streams)]),
        ("tries_total", "counter", "Requests sent to a backend, repeats included.",
         [(labels, counts.requests) for labels, counts in tries]),
        ("try_errors_total", "counter", "Tries that the backend failed.",
         [(labels, counts.errors) for labels, counts in tries]),
        ("try_streams_total", "counter", "Tries that became a stream.",
         [(labels, counts.streams) for labels, counts in tries]),
        ("in_flight", "gauge", "Requests in flight.",
         [({"backend": name}, load.in_flight) for name, load in backends.items()]),
        ("open_streams", "gauge", "Open streams.",
         [({"backend": name}, load.open_streams) for name, load in backends.items()]),
        ("turned_away_total", "counter", "Clients that took more than they may, or too long.",
         [({"reason": reason}, count) for reason, count in traffic.turned_away.items()]),
        ("held_requests", "gauge", "Requests that wait for a pause to end.", [({}, traffic.held)]),
        ("waiting_requests", "gauge", "Requests that wait for their turn on an engine.",
         [({"model": name}, count) for name, count in traffic.waiting.items()]),
    ]  # fmt: skip
    return "".join(_family(f"orch_gateway_{name}", kind, what, samples) for name, kind, what, samples in families)

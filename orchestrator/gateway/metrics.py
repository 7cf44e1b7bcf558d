"""What is told at /metrics: Prometheus's text, or OpenMetrics' where that is asked for, put together when it is.

Names are those of OpenTelemetry's conventions for generative AI as Prometheus spells them (dots become underscores,
units are appended); what they have no name for is orch_gateway_*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from orchestrator.core.gateway_status import Traffic
from orchestrator.gateway.measures import Histogram, Labels, Series, Share, Snapshot

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Sample = tuple[tuple[str, ...], float]

_MODEL, _PROVIDER, _OPERATION = "gen_ai_request_model", "gen_ai_provider_name", "gen_ai_operation_name"
# The names of what `_whose` tells, and of what `_asked` does.
_WHOSE = (_MODEL, _PROVIDER, "adapter")
_ASKED = (*_WHOSE, _OPERATION)


def _whose(one: Share | Labels) -> tuple[str, ...]:
    return (one.name, one.engine, str(one.adapter).lower())


def _asked(labels: Labels) -> tuple[str, ...]:
    return (*_whose(labels), labels.operation)


@dataclass(frozen=True)
class _Told:
    """One scrape; a collector of the library's kind."""

    traffic: Traffic
    measured: Snapshot

    def collect(self) -> Iterator[Metric]:
        """Every family, one after the other."""
        # Only when somebody asks: a gateway that nobody scrapes never needs it.
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        def family(
            kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
            name: str,
            what: str,
            labels: tuple[str, ...],
            samples: Iterable[Sample],
        ) -> Metric:
            found = kind(f"orch_gateway_{name}", what, labels=labels)
            for values, value in samples:
                found.add_metric(values, value)
            return found

        for name, what, labels, samples in self._counters():
            yield family(CounterMetricFamily, name, what, labels, samples)
        for name, what, labels, samples in self._gauges():
            yield family(GaugeMetricFamily, name, what, labels, samples)
        for name, what, labels, histograms in self._histograms():
            found = HistogramMetricFamily(name, what, labels=labels)
            for values, histogram in histograms:
                bounds = [*map(_bound, histogram.bounds), "+Inf"]
                buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
                found.add_metric(values, buckets, histogram.total)
            yield found

    def _counters(self) -> Iterator[tuple[str, str, tuple[str, ...], Iterable[Sample]]]:
        totals = self.traffic.totals
        tries = [
            ((name, backend), counts)
            for backend, load in self.traffic.backends.items()
            for name, counts in load.by_route.items()
        ]
        where = ("model", "backend")
        yield "requests", "Requests that clients sent for a known name.", (), [((), totals.requests)]
        yield "errors", "Requests that the gateway or an engine failed.", (), [((), totals.errors)]
        yield "streams", "Answers begun as a stream of events.", (), [((), totals.streams)]
        own = [((name,), count) for name, count in self.measured.own]
        yield "own_requests", "Requests of orch's own, which no histogram has.", (_MODEL,), own
        yield "tries", "Requests sent to a backend, repeats included.", where, [(at, one.requests) for at, one in tries]
        yield "try_errors", "Tries that the backend failed.", where, [(at, one.errors) for at, one in tries]
        yield "try_streams", "Tries that became a stream.", where, [(at, one.streams) for at, one in tries]
        away = [((reason,), count) for reason, count in self.traffic.turned_away.items()]
        yield "turned_away", "Clients that took more than they may, or too long.", ("reason",), away

    def _gauges(self) -> Iterator[tuple[str, str, tuple[str, ...], Iterable[Sample]]]:
        traffic, backends = self.traffic, self.traffic.backends.items()
        in_flight = [((name,), load.in_flight) for name, load in backends]
        yield "in_flight", "Requests in flight.", ("backend",), in_flight
        yield "open_streams", "Open streams.", ("backend",), [((name,), load.open_streams) for name, load in backends]
        yield "held_requests", "Requests that wait for a pause to end.", (), [((), traffic.held)]
        held = [((owner,), load.requests) for owner, load in traffic.holds.items()]
        yield "profile_held_requests", "The same of each profile that is paused.", ("profile",), held
        waiting = [((name,), count) for name, count in traffic.waiting.items()]
        yield "waiting_requests", "Requests that wait for their turn on an engine.", ("model",), waiting
        # One that has gone is told as 0, not as gone.
        active = dict.fromkeys((_whose(labels) for labels, _ in self.measured.series), 0)
        active |= {_whose(share): count for share, count in self.measured.active}
        yield "active_requests", "Requests of clients, in flight or waiting.", _WHOSE, list(active.items())
        queues = [(at, count) for at, count in self.measured.queues]
        what = "Requests that wait within an engine, as it tells, or beyond those that it computes at once."
        yield "engine_waiting_requests", what, ("profile", "backend"), queues

    def _histograms(self) -> Iterator[tuple[str, str, tuple[str, ...], Iterable[tuple[tuple[str, ...], Histogram]]]]:
        series = self.measured.series

        def each(of: Callable[[Series], Histogram]) -> list[tuple[tuple[str, ...], Histogram]]:
            found = [(_asked(labels), of(one)) for labels, one in series]
            return [(values, histogram) for values, histogram in found if any(histogram.counts)]

        durations = [
            ((*_asked(labels), failed_of), histogram)
            for labels, one in series
            for failed_of, histogram in one.durations.items()
        ]
        duration = "From a request to the end of its answer, waiting included."
        yield "gen_ai_server_request_duration_seconds", duration, (*_ASKED, "error_type"), durations
        what = "From a request to the first token of a stream, waiting included."
        yield "gen_ai_server_time_to_first_token_seconds", what, _ASKED, each(lambda one: one.first_tokens)
        what = "Of a stream, the time of each token after the first."
        yield "gen_ai_server_time_per_output_token_seconds", what, _ASKED, each(lambda one: one.output_tokens)
        tokens = [((*values, "input"), histogram) for values, histogram in each(lambda one: one.tokens_in)]
        tokens += [((*values, "output"), histogram) for values, histogram in each(lambda one: one.tokens_out)]
        what = "Tokens of prompts and of answers, as engines count them."
        yield "gen_ai_client_token_usage", what, (*_ASKED, "gen_ai_token_type"), tokens


def _bound(value: float) -> str:
    return str(float(value))


def render(traffic: Traffic, measured: Snapshot, accept: str) -> tuple[bytes, str]:
    """The text, and its Content-Type, by what an Accept header says."""
    from prometheus_client.exposition import choose_encoder

    encode, kind = choose_encoder(accept)
    return encode(_Told(traffic, measured)), kind

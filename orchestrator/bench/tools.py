"""The field's own instruments: how each is started for a level, and what its result says, by our names. Pure.

`vllm bench serve` (vLLM 0.32) and guidellm (0.8.1). Both are asked for the load that orch's own client makes: prompts
at random of so many tokens, answers of a fixed length, greedy. Their definitions differ: guidellm's
`inter_token_latency_ms` is vLLM's TPOT, and its `time_per_output_token_ms` has the first token in it; gaps between the
pieces of a stream (ITL) it does not tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from orchestrator.bench.metrics import PERCENTILES, Level
from orchestrator.errors import UsageError

RESULT = "result.json"
SCENARIO = "scenario.json"


@dataclass(frozen=True)
class Wanted:
    """A level: what is asked at `url` by `name`, with `key`; the `tokenizer` is a directory. `users` at a time, or
    `rate` a second (then users is 0)."""

    url: str
    name: str
    key: str
    tokenizer: str
    endless: bool
    requests: int
    users: int
    rate: float
    input_tokens: int
    output_tokens: int
    seed: int


@dataclass(frozen=True)
class Start:
    """How it is started: argv, what its environment has besides, and files of its directory by name."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[str, str]


class Tool(Protocol):
    """One instrument; `pin` names what its environment is made by."""

    name: str
    pin: str

    def start(self, wanted: Wanted) -> Start:
        """In a directory where it leaves RESULT."""
        ...

    def figures(self, document: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Of each level in a result: what was asked, and the figures of Level.to_json."""
        ...


class VllmBenchServe:
    """See Tool."""

    name = "vllm"
    pin = "vllm"

    def start(self, wanted: Wanted) -> Start:
        parts = urlsplit(wanted.url)
        chats = parts.path.endswith("/chat/completions")
        load = ("--request-rate", f"{wanted.rate:g}") if not wanted.users else ("--max-concurrency", f"{wanted.users}")
        argv = (
            *("vllm", "bench", "serve", "--backend", "openai-chat" if chats else "openai"),
            *("--base-url", f"{parts.scheme}://{parts.netloc}", "--endpoint", parts.path),
            *("--model", wanted.name, "--tokenizer", wanted.tokenizer, "--dataset-name", "random"),
            *("--random-input-len", f"{wanted.input_tokens}", "--random-output-len", f"{wanted.output_tokens}"),
            *("--num-prompts", f"{wanted.requests}", "--num-warmups", f"{max(1, wanted.users)}"),
            *load,
            *(("--ignore-eos",) if wanted.endless else ()),
            *("--temperature", "0", "--seed", f"{wanted.seed}", "--percentile-metrics", "ttft,tpot,itl,e2el"),
            *("--metric-percentiles", ",".join(map(str, PERCENTILES)), "--save-result", "--disable-tqdm"),
            *("--result-dir", ".", "--result-filename", RESULT),
        )
        key = {"OPENAI_API_KEY": wanted.key} if wanted.key else {}
        return Start(argv, {**key, "HF_HUB_OFFLINE": "1"}, {})

    def figures(self, document: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        failed = document.get("failed", 0)
        asked = {
            "max_concurrency": document.get("max_concurrency"),
            "request_rate": document.get("request_rate", "inf"),
            "num_prompts": document["num_prompts"],
            "model_id": document.get("model_id"),
        }
        figures = {key: document.get(key) for key in _KEYS}
        return [(asked, {**figures, "failed": failed, "errors": {"not told": failed} if failed else {}})]


class Guidellm:
    """See Tool."""

    name = "guidellm"
    pin = "guidellm"

    def start(self, wanted: Wanted) -> Start:
        parts = urlsplit(wanted.url)
        backend = {
            "kind": "openai_http",
            "target": f"{parts.scheme}://{parts.netloc}",
            "model": wanted.name,
            "request_format": parts.path,
            # In a file that only this user reads: a command line is everybody's.
            **({"api_key": wanted.key} if wanted.key else {}),
        }
        profile: dict[str, Any] = {"kind": "concurrent", "streams": [wanted.users]}
        lengths = {"prompt_tokens": wanted.input_tokens, "output_tokens": wanted.output_tokens}
        spec = {
            "backend": backend,
            "profile": profile if wanted.users else {"kind": "poisson", "rate": [wanted.rate]},
            "data": [{"kind": "synthetic_text", **lengths}],
            "tokenizer": {"kind": "huggingface_auto", "model": wanted.tokenizer},
            "constraints": [{"kind": "max_requests", "count": wanted.requests}],
            "seed": {"kind": "static", "value": wanted.seed},
            "outputs": [{"kind": "json", "path": RESULT}],
        }
        argv = ("guidellm", "run", "--config", SCENARIO, "--disable-console")
        return Start(argv, {"HF_HUB_OFFLINE": "1"}, {SCENARIO: json.dumps({"spec": spec})})

    def figures(self, document: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [_of_guidellm(benchmark) for benchmark in document["benchmarks"]]


def _of_guidellm(benchmark: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    metrics, strategy = benchmark["metrics"], benchmark["config"]["strategy"]
    totals = metrics["request_totals"]

    def of(name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = metrics[name]["successful"]
        return found

    failed = totals["errored"]
    figures: dict[str, Any] = {
        **dict.fromkeys(_KEYS),
        "duration": benchmark["duration"],
        "completed": totals["successful"],
        "failed": failed,
        "errors": {"not told": failed} if failed else {},
        "total_input_tokens": round(of("prompt_token_count")["total_sum"]),
        "total_output_tokens": round(of("output_token_count")["total_sum"]),
        "request_throughput": of("requests_per_second")["mean"],
        "output_throughput": of("output_tokens_per_second")["mean"],
        "total_token_throughput": of("tokens_per_second")["mean"],
    }
    ours = {
        "ttft": ("time_to_first_token_ms", 1),
        "tpot": ("inter_token_latency_ms", 1),
        "e2el": ("request_latency", 1000),
    }
    for name, (theirs, unit) in ours.items():
        spread = of(theirs)
        figures |= {
            f"mean_{name}_ms": spread["mean"] * unit,
            f"median_{name}_ms": spread["median"] * unit,
            f"std_{name}_ms": spread["std_dev"] * unit,
            **{f"p{percent}_{name}_ms": spread["percentiles"][f"p{percent:02}"] * unit for percent in PERCENTILES},
        }
    streams = strategy.get("streams")
    asked = {
        "max_concurrency": streams,
        "request_rate": "inf" if streams else strategy.get("rate", 0.0),
        "num_prompts": totals["total"],
        "model_id": benchmark["config"]["backend"].get("model"),
    }
    return asked, figures


_KEYS = tuple(Level.of((), 1.0).to_json())
TOOLS: Mapping[str, Tool] = {tool.name: tool for tool in (VllmBenchServe(), Guidellm())}


def tool_named(name: str) -> Tool:
    """UsageError where it is none."""
    if name not in TOOLS:
        raise UsageError(f"orch does not run {name}.", hint=f"--tool {' or '.join(TOOLS)}")
    return TOOLS[name]


def told_by(document: Any) -> Tool | None:
    """Whose result this is; None where it is nobody's."""
    if not isinstance(document, dict):
        return None
    if isinstance(document.get("benchmarks"), list) and "metadata" in document:
        return TOOLS["guidellm"]
    return TOOLS["vllm"] if "total_output_tokens" in document and "median_ttft_ms" in document else None

"""Levels as a sweep gives them, with the figures that a test is about."""

from __future__ import annotations

from typing import Any

from orchestrator.bench.metrics import Level, Measured
from orchestrator.bench.results import VERSION


def level(engine: str, users: int | None, throughput: float, ttft_ms: float = 50.0, **more: Any) -> dict[str, Any]:
    """Of an engine at so many users, with so many tokens a second; every request took a second."""
    answer = Measured(0, 0, ttft_ms / 1000, (0.1,) * 9, 1.0, 64, 64)
    figures = Level.of([answer] * 8, 1.0).to_json()
    return {
        "version": VERSION,
        "run": "20260101-000000-aaaa",
        "date": "2026-01-01T00:00:00+00:00",
        "orch": "0",
        "profile": "tiny",
        "engine": engine,
        "instance": f"tiny-{engine}-g1",
        "model_id": "tiny",
        "recipe": {"vllm": "nvfp4"}.get(engine, "gguf-q6_k"),
        "artifact": "a",
        "engine_version": "1.0",
        "program": None,
        "accelerator": "cuda",
        "gpus": ["NVIDIA H200"],
        "through": "the gateway",
        "client_ceiling": 50_000.0,
        "tool": "orch",
        "max_concurrency": users,
        "request_rate": "inf" if users else 2.0,
        "num_prompts": 8,
        "dataset": "random",
        "random_input_len": 64,
        "random_output_len": 64,
        "shared_prefix_len": 0,
        "seed": 0,
        "adapters": [],
        "goodput_limits": {},
        "interrupted": False,
        **figures,
        "output_throughput": throughput,
        "engine_memory": 2_000_000_000,
        "gpu_use": [],
        **more,
    }


def article() -> list[dict[str, Any]]:
    """The article's own figures, as if they were measured."""
    simple = {1: (161, 132), 2: (165, 1000), 4: (168, 3200), 8: (173, 7012)}
    other = {1: (68, 18), 2: (145, 20), 4: (265, 22), 8: (332, 26)}
    return [
        level(engine, users, throughput, ttft)
        for engine, points in (("ollama", simple), ("vllm", other))
        for users, (throughput, ttft) in points.items()
    ]

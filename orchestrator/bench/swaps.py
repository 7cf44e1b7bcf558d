"""What adapters cost: asked in turn against one alone and against the base, at the same numbers of users. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def swaps(levels: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each engine and number of users that has all three, throughputs and first tokens; `swap_ms` is how much later
    the first token comes where the adapter is another one each time."""
    found: dict[tuple[str, str, int], dict[int, Mapping[str, Any]]] = {}
    for level in levels:
        key = (level["engine"], level["recipe"], level["max_concurrency"])
        found.setdefault(key, {})[len(level["adapters"])] = level
    for (engine, recipe, users), of_adapters in found.items():
        several = max(of_adapters)
        if several < 2 or 0 not in of_adapters or 1 not in of_adapters:
            continue
        base, one, turns = of_adapters[0], of_adapters[1], of_adapters[several]
        first, other = one["p50_ttft_ms"], turns["p50_ttft_ms"]
        yield {
            "engine": engine,
            "recipe": recipe,
            "users": users,
            "adapters": several,
            "base_throughput": base["output_throughput"],
            "one_throughput": one["output_throughput"],
            "turns_throughput": turns["output_throughput"],
            "base_ttft_ms": base["p50_ttft_ms"],
            "one_ttft_ms": first,
            "turns_ttft_ms": other,
            "swap_ms": other - first if first is not None and other is not None else None,
        }

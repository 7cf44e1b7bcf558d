"""Run by the Python of lm-evaluation-harness's environment, which has nothing of orch:

    python -I lm_eval_job.py REQUEST RESULT

REQUEST is a JSON file: `tasks`, `include` (a directory of tasks, or null), `limit`, `generate` and `likelihood` (each
{"model", "args", "chat", "key"}, or null where such tasks cannot be measured). RESULT becomes one: `results` and
`samples` as the harness has them, and `unmeasurable`: the kind of each task that was left out, by name.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

GENERATIVE = "generate_until"


def main() -> None:
    """See the top."""
    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    manager = TaskManager(include_path=request["include"])
    kinds = {name: task.OUTPUT_TYPE for name, task in manager.load(request["tasks"])["tasks"].items()}
    told: dict[str, Any] = {"results": {}, "samples": {}, "unmeasurable": {}}
    for way, tasks in (
        ("generate", [name for name, kind in kinds.items() if kind == GENERATIVE]),
        ("likelihood", [name for name, kind in kinds.items() if kind != GENERATIVE]),
    ):
        if request[way] is None:
            told["unmeasurable"] |= {name: kinds[name] for name in tasks}
        elif tasks:
            found = _evaluated(request[way], tasks, manager, request["limit"])
            told["results"] |= found["results"]
            told["samples"] |= found["n-samples"]
    # Numbers of numpy become floats.
    Path(sys.argv[2]).write_text(json.dumps(told, default=float))


def _evaluated(way: dict[str, Any], tasks: list[str], manager: TaskManager, limit: int | None) -> dict[str, Any]:
    # Where the harness looks for it; empty it would refuse.
    os.environ["OPENAI_API_KEY"] = way["key"] or "none"
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=way["model"],
        model_args=way["args"],
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        apply_chat_template=way["chat"],
        log_samples=False,
    )
    return found


if __name__ == "__main__":
    main()

"""What directories of weights mean to transformers (see scripts/make-meaning-oracles, which runs this)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from json_edits import edits
from meaning_described import described, differing
from meaning_kinds import KINDS
from meaning_tools import TOOLS
from meanings import MEANING, PLAIN, lay_out

ASKER = Path(__file__).with_name("meaning_asked.py")
TOOL = Path(__file__).with_name("meaning_tools.py")
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
GENERATIONS = ("transformers-5", "transformers-4")


def asked(python: Path, directories: list[Path]) -> tuple[str, dict[str, Any]]:
    """The version of transformers, and what it says of each directory."""
    command = [str(python), str(ASKER), str(MEANING / "asked.json")]
    names = json.dumps([str(place) for place in directories])
    answer = subprocess.run(command, input=names, stdout=subprocess.PIPE, text=True, check=True, env=ENVIRONMENT)
    found = json.loads(answer.stdout)
    return found["version"], {Path(name).name: value for name, value in found["meanings"].items()}


def lines(value: dict[str, Any], depth: int = 3) -> str:
    """JSON of a line for each thing down to a depth, so that a difference shows and lists of tokens stay short."""
    if not depth or not value:
        return json.dumps(value, ensure_ascii=False)
    pad = " " * (4 - depth)
    inner = (
        f"{pad}{json.dumps(name, ensure_ascii=False)}: "
        + (lines(item, depth - 1) if isinstance(item, dict) else json.dumps(item, ensure_ascii=False))
        for name, item in value.items()
    )
    return "{\n" + ",\n".join(inner) + "\n" + pad[1:] + "}"


def tool_kind(name: str, root: Path, work: Path) -> dict[str, Any]:
    """What a tool saves, described; what is described must be laid out as the tool has saved it."""
    tool = TOOLS[name]
    made, source = work / "made" / name, work / "sources" / tool.source
    made.parent.mkdir(exist_ok=True)
    if not source.exists():
        lay_out(KINDS[tool.source], source)
    command = [str(root / tool.environment / "bin/python"), str(TOOL), name, str(source), str(made)]
    subprocess.run(command, check=True, env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    kind = {"about": tool.about, "files": described(made, work), "weights": list(tool.weights)}
    laid = lay_out(kind, work / "laid" / name)
    layout, values = differing(made, laid)
    if layout:
        sys.exit(f"{name}: {layout}")
    print(f"{name}: {values} values differ from what the tool wrote", flush=True)
    shutil.rmtree(made)
    shutil.rmtree(laid)
    return kind


def main() -> None:
    """Lays all kinds out, asks both generations of transformers, and writes what is said."""
    root, names = Path(sys.argv[1]), sys.argv[2:] or [*KINDS, *TOOLS]
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        kinds = {name: tool_kind(name, root, work) if name in TOOLS else KINDS[name] for name in names}
        places = [lay_out(kind, work / name) for name, kind in ({PLAIN: KINDS[PLAIN]} | kinds).items()]
        with ThreadPoolExecutor() as both:
            answers = both.map(lambda generation: asked(root / generation / "bin/python", places), GENERATIONS)
            (version, told), (old_version, told_by_4) = answers
    (MEANING / "kinds").mkdir(exist_ok=True)
    for name, kind in kinds.items():
        right: dict[str, Any] = told[name]
        stored = {
            **kind,
            "by": {"right": f"transformers {version}", "transformers_4": f"transformers {old_version}"},
            "right": right if name == PLAIN else edits(told[PLAIN], right),
            "transformers_4": edits(right, told_by_4[name]),
        }
        (MEANING / "kinds" / f"{name}.json").write_text(lines(stored) + "\n")
        print(name, right["refusal"] or right["tokenizer_refusal"] or "", flush=True)


if __name__ == "__main__":
    main()

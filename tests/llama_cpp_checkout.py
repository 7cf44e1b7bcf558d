"""A directory as llama.cpp lies in a checkout. Converter and quantizer are scripts/tools_stand_in.py, whose head
says what of it is real; those that fail are shell scripts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import xllamacpp
from orch_command import ROOT

CONVERTER, QUANTIZER = "convert_hf_to_gguf.py", "build/bin/llama-quantize"
MAIN = """import sys
sys.path.insert(0, {place!r})
from tools_stand_in import main
sys.exit(main([{word!r}, *sys.argv[1:]]))
"""
# The shell in the place of a Python: the script's name is its first word, the output's the third.
SHELL = "#!/bin/sh\nshift\n{}\n"
# What the stand-in's converter knows and orch's builder does not: Qwen3 under another name.
OTHER = {"architectures": ["OtherForCausalLM"], "model_type": "other"}


def checkout(root: Path, script: str = "", quantizer: str = QUANTIZER) -> Path:
    """The stand-in's two programs in `root`, or with a shell script in the place of the interpreter."""
    (root / ".venv/bin").mkdir(parents=True)
    (root / "tools_stand_in.py").symlink_to(ROOT / "scripts/tools_stand_in.py")
    (root / "xllamacpp").symlink_to(Path(xllamacpp.__file__).parent)
    program(root / CONVERTER, MAIN.format(place=str(root), word="--convert"))
    words = MAIN.format(place=str(root), word="--quantize")
    program(root / quantizer, f"#!{sys.executable}\n{words}")
    if script:
        program(root / ".venv/bin/python", SHELL.format(script))
    else:
        program(root / ".venv/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    return root


def program(path: Path, text: str) -> None:
    """A file to be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def other_weights(source: Path, directory: Path) -> Path:
    """The same weights as those of an architecture that orch's builder does not know."""
    shutil.copytree(source, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | OTHER))
    return directory

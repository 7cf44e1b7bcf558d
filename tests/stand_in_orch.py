"""`orch` whose Ollama is the stand-in, under that name on PATH."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from orch_command import ROOT, Orch, Outcome, children

ENGINE = "tiny-ollama-g1"


class OnStandIn(Orch):
    """`orch` that finds the stand-in under the name of `ollama`."""

    engine = "ollama"

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.bin = home.with_name("bin")
        self.bin.mkdir()
        self.env["PATH"] = f"{self.bin}:{os.environ['PATH']}"
        self.slow()

    def slow(self, **seconds: float) -> None:
        """How long it takes for what (`load`, `create`) from its next start on."""
        told = " ".join(f"STAND_IN_{what.upper()}_S={value}" for what, value in seconds.items())
        program = self.bin / "ollama"
        program.write_text(
            f'#!/bin/sh\nexec env {told} {sys.executable} {ROOT / "scripts" / "ollama_stand_in.py"} "$@"\n'
        )
        program.chmod(0o755)

    def up(self, *more: str, code: int | None = 0) -> Outcome:
        return self.run("up", "ollama", "-p", str(self.profile), *more, code=code)

    @property
    def kept(self) -> Path:
        """What the engine keeps, models and all."""
        return self.home / "processes" / ENGINE / "files"

    def models(self) -> list[str]:
        names = self.kept / "models" / "manifests" / "registry.ollama.ai" / "library"
        return sorted(path.name for path in names.iterdir())

    def blobs(self, at_least: int = 0) -> list[Path]:
        places = (self.kept / "models" / "blobs").glob("sha256-" + "?" * 64)
        return [path for path in places if path.stat().st_size >= at_least]

    def needed(self) -> set[str]:
        """The names of the blobs that a model needs."""
        found: set[str] = set()
        for path in (self.kept / "models" / "manifests").glob("*/*/*/*"):
            manifest = json.loads(path.read_text())
            found |= {one["digest"].replace(":", "-") for one in [manifest["config"], *manifest["layers"]]}
        return found

    def loads(self) -> int:
        """How often it has loaded a model."""
        return (self.home / "logs" / f"{ENGINE}.log").read_text(errors="replace").count('msg="starting llama-server"')

    def runner(self) -> int:
        """The pid of its model's process."""
        (pid,) = children(int(self.engines()[ENGINE]["pid"]))
        return pid

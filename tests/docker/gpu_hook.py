"""NVIDIA's container toolkit where there is none: a hook that tells what it was asked for, and what it then does.

dockerd looks for `nvidia-container-runtime-hook` on its PATH when it starts, and has it run, as the real one, between
the container's mounts and its first process.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "nvidia-container-runtime-hook"
# In the container's own mounts, whose /dev exists by now. /dev/null's numbers: one may open it anywhere.
SCRIPT = """\
#!{python}
import json, subprocess, sys
from pathlib import Path

here = Path({here!r})
state = json.load(sys.stdin)
config = json.loads(Path(state["bundle"], "config.json").read_text())
env = dict(line.partition("=")[::2] for line in config["process"]["env"])
told = {{"devices": env.get("NVIDIA_VISIBLE_DEVICES"), "capabilities": env.get("NVIDIA_DRIVER_CAPABILITIES")}}
with (here / "told").open("a") as file:
    file.write(json.dumps({{"called": sys.argv[1:], **told}}) + "\\n")
does = (here / "does").read_text()
sys.stderr.write("Auto-detected mode as 'legacy'\\n")
if does.startswith("fail "):
    sys.exit(does.removeprefix("fail "))
if does == "give":
    node = Path(state["bundle"], config["root"]["path"], "dev/nvidiactl")
    enter = ["nsenter", f"--target={{state['pid']}}", "--mount"]
    subprocess.run([*enter, "mknod", "-m", "666", str(node), "c", "1", "3"], check=True)
"""


@dataclass(frozen=True)
class Hook:
    """The toolkit, in a directory that belongs on the PATH of a dockerd and of `orch`."""

    directory: Path

    def write(self) -> None:
        """Put it there, giving the GPU to whoever asks."""
        self.directory.mkdir(parents=True, exist_ok=True)
        script = self.directory / NAME
        script.write_text(SCRIPT.format(python=sys.executable, here=str(self.directory)))
        script.chmod(0o755)
        self.does("give")

    def remove(self) -> None:
        """Uninstall it."""
        (self.directory / NAME).unlink()

    def does(self, what: str) -> None:
        """`give` makes /dev/nvidiactl, `nothing` leaves it out, `fail TEXT` ends with that on stderr. Forgets what it
        was told before."""
        (self.directory / "does").write_text(what)
        (self.directory / "told").write_text("")

    def told(self) -> list[dict[str, Any]]:
        """For each container that asked for a GPU: how it was `called`, and the `devices` and `capabilities`."""
        return [json.loads(line) for line in (self.directory / "told").read_text().splitlines()]

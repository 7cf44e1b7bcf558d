"""The demo: orch's main job on a tiny real Qwen3, told as it happens, with figures measured in this run.

Pull from a hub (a small one on loopback), build GGUF and NVFP4 and compare them with the reference builders, serve,
add an adapter, migrate to vLLM under streaming load and back, stop. Starts from llama.cpp, or from Ollama where its
binary is on PATH. With `--target docker` all of it runs in containers, from images made on this machine (Ollama's is a
stand-in over llama.cpp). With `--one-engine-fits` memory is declared that holds one engine: the migration ends the old
one first, while requests wait. Leaves nothing running, however it ends; its data stay in .demo/, and a second run
installs nothing.

Exit codes: 0 all of it was true; 1 it was not: a request failed, an answer was wrong, fewer than 8 streams were open
across a switch, an engine answered out of its turn; 4 this machine cannot tell it (no Docker, no room, ...); 130
interrupted. How fast the machine is decides none of them: orch is held before the switch until the streams are open.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from docker_images import ensure_images
from hub_server import HubServer
from story_commands import MODEL, PATIENCE_S, QUESTION, ROOT, Story, StoryFailedError, check, leftovers
from story_handover import hand_over, room_for_one
from story_switch import CLIENTS, switch

from orchestrator.drivers.files import host_errors
from orchestrator.errors import HostError, OrchError, why

ASSETS = Path("tests/assets")
ADAPTED = "Ahoy! The answer is alpha."


class Interrupts:
    """Ctrl-C, SIGTERM and a closed terminal: the first raises KeyboardInterrupt, those after it change nothing; nor
    does any once `over`, when everything is being stopped anyway."""

    def __init__(self) -> None:
        self.over = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.over:
            self.over = True
            raise KeyboardInterrupt


def main() -> int:
    """Tell the story; exit code 0 when all of it was true."""
    os.chdir(ROOT)
    parser = argparse.ArgumentParser(description="orch's main job on a tiny real model, end to end.")
    parser.add_argument("--target", choices=("local", "docker"), default="local", help="where engines run")
    parser.add_argument("--one-engine-fits", action="store_true", help="migrate where there is memory for one engine")
    asked = parser.parse_args()
    target = asked.target
    home = Path(os.environ.get("ORCH_DEMO_HOME") or ".demo")
    interrupts = Interrupts()
    began = time.monotonic()
    code, story = 0, None
    try:
        with alone(home), HubServer({f"demo/{MODEL}": ASSETS / MODEL}) as hub:
            story = Story(home, f"127.0.0.1:{free_port()}", hub.url, target)
            ended: BaseException | None = None
            try:
                with host_errors(f"write {story.profile}"):
                    write_profile(Path(story.profile))
                if leftovers(home):
                    story.take_down()  # of a demo that was killed
                if target == "docker":
                    make_images(story)
                first = "ollama" if target == "docker" or shutil.which("ollama") else "llamacpp"
                (tell_where_one_fits if asked.one_engine_fits else tell)(story, first)
                interrupts.over = True
            except BaseException as error:  # noqa: BLE001  it is told below, when nothing runs any more
                ended = error
            left = story.take_down()
            if left:
                print(f"\nStill there: {left}", file=sys.stderr, flush=True)
            if ended is not None:
                raise ended
            code = 1 if left else 0
    except BaseException as error:  # noqa: BLE001  what nobody knows is raised again there
        code = report_failure(error)
    if code == 0 and story is not None:
        tell_figures(story, time.monotonic() - began)
    return code


def report_failure(error: BaseException) -> int:
    """Say why the demo has ended before its end; the exit code for that."""
    if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO) and error.filename is None:
        # Its reader has left, which is meant like Ctrl-C; Python must not try to write at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 130
    if isinstance(error, KeyboardInterrupt):
        print("\nInterrupted.", file=sys.stderr, flush=True)
        return 130
    if isinstance(error, StoryFailedError):
        print(f"\nThe demo FAILED: {error}", file=sys.stderr, flush=True)
        return 1
    if isinstance(error, OSError):
        error = HostError(f"The demo cannot go on: {why(error)} ({error.filename}).", "Is there room on the disk?")
    if not isinstance(error, OrchError):
        raise error
    print(f"\nERROR {error.message}", file=sys.stderr)
    if error.detail:
        print(error.detail, file=sys.stderr)
    if error.hint:
        print(f"TIP {error.hint}", file=sys.stderr, flush=True)
    return error.exit_code


def tell_figures(story: Story, seconds: float) -> None:
    """The last chapter."""
    story.figures.append(f"whole demo           {seconds:.0f} s")
    story.say("What this run measured")
    print("\n".join(f"   {figure}" for figure in story.figures))
    print(
        "   (a 4 M parameter test model, clients and engines on the same CPU:\n"
        "   the speeds are no measure of the engines)\n\n"
        f"Nothing is left running. The data stay in {story.home}/; remove it at will."
    )


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """One demo at a time in a directory: at its end each stops all that runs there."""
    with host_errors(f"use {home}"):
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "demo.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostError(
                f"Another demo is being told in {home}.", "Wait for its end, or have another: ORCH_DEMO_HOME=DIR"
            ) from error
        yield


def tell(story: Story, first: str) -> None:
    """The chapters."""
    why = "its binary is on PATH" if first == "ollama" else "embedded in orch; there is no ollama on PATH"
    if story.target == "docker":
        why = "a container of the image made before"
    story.say("1. Pull the weights of a tiny real Qwen3 from a hub (on loopback).")
    story.orch("pull", "-p", story.profile)

    story.say("2. Build GGUF and NVFP4; compare with the reference builders' bytes.")
    build(story)

    story.say("3. What the engines will be given.")
    story.orch("render", "ollama", "-p", story.profile)
    story.orch("render", "vllm", "-p", story.profile)

    story.say(f"4. Serve it with {first} ({why}).")
    story.note(f"up {first:<17} {story.orch('up', first, '-p', story.profile):.1f} s")
    print("   The same again: nothing is left to do.", flush=True)
    story.orch("up")
    print(f"   {QUESTION}", flush=True)
    answer = story.ask(MODEL)

    story.say("5. Add a LoRA adapter: a new public name beside the base.")
    story.orch("lora", "add", "pirate", str(ASSETS / "lora-a"))
    check(story.ask("pirate") == ADAPTED, "the adapter did not answer as trained")
    check(story.ask(MODEL) == answer, "the base changed with the adapter")

    if story.target == "docker":
        story.say("6. vLLM for this CPU: its image is there.")
    else:
        story.say("6. Install vLLM for this CPU in an environment of orch's own (3.5 GB).")
        there = any((story.home / "environments").glob("vllm-*/environment.json"))
        seconds = story.orch("engines", "install", "vllm")
        story.note("install vLLM         " + ("already there" if there else f"{seconds:.0f} s"))

    story.say(f"7. Migrate to vLLM while {CLIENTS} clients stream. No client is told.")
    switch(story, first, "vllm", "migrate", "--to", "vllm", "--drain", f"{PATIENCE_S:.0f}")
    check(story.ask(MODEL) == answer, "the answer changed with the engine")
    check(story.ask("pirate") == ADAPTED, "the adapter did not come along")
    story.orch("status")

    story.say("8. And back, with one command, under the same load.")
    switch(story, "vllm", first, "rollback", "--drain", f"{PATIENCE_S:.0f}")
    check(story.ask(MODEL) == answer, "the answer changed on the way back")

    story.say("9. Stop everything.")
    story.orch("down", "--all", "--forget")


def tell_where_one_fits(story: Story, first: str) -> None:
    """The chapters of a machine on which two engines do not fit together."""
    story.say("1. Pull the weights of a tiny real Qwen3 from a hub (on loopback), and vLLM, once.")
    story.orch("pull", "-p", story.profile)
    if story.target == "local":
        story.orch("engines", "install", "vllm")

    story.say(f"2. Room for one engine: {first} or vLLM.")
    room_for_one(story, first, "vllm")

    story.say(f"3. Serve it with {first}, with an adapter.")
    story.orch("up", first, "-p", story.profile)
    story.orch("lora", "add", "pirate", str(ASSETS / "lora-a"))
    answer = story.ask(MODEL)

    story.say("4. What a migration would do.")
    story.orch("migrate", "--to", "vllm", "--keep-old", "--plan")

    story.say(f"5. Migrate while {CLIENTS} clients stream: they wait, and none fails.")
    hand_over(story, f"{first} -> vllm", "migrate", "--to", "vllm", "--keep-old", "--drain", f"{PATIENCE_S:.0f}")
    check(story.ask(MODEL) == answer, "the answer changed with the engine")
    check(story.ask("pirate") == ADAPTED, "the adapter did not come along")
    story.orch("status")

    story.say("6. And back, to what stands by.")
    seconds = hand_over(story, f"vllm -> {first}", "rollback", "--drain", f"{PATIENCE_S:.0f}")
    story.note(f"rollback             {seconds:.1f} s")
    check(story.ask(MODEL) == answer, "the answer changed on the way back")

    story.say("7. Stop everything.")
    story.orch("down", "--all", "--forget")


def make_images(story: Story) -> None:
    """Images from this machine's own Python, a vLLM environment and the stand-in for Ollama; no registry is asked."""
    story.say("0. Make the container images from what is on this machine (the first time 3.5 GB for vLLM).")
    began = time.monotonic()
    try:
        made = ensure_images(("python", "vllm", "ollama"), story.home / "environments")
    except HostError as error:
        hint = f"{error.hint} scripts/demo without --target docker needs none of it.".strip()
        raise HostError(error.message, hint, error.detail) from error
    story.note(f"container images     {time.monotonic() - began:.0f} s")
    story.extra["ORCH_GATEWAY_BASE"] = made["python"]
    for engine in ("ollama", "vllm"):
        story.orch("images", "pin", engine, made[engine], "--accelerator", "cpu")


def build(story: Story) -> None:
    """Both artifacts, each tensor's bytes against the reference builder's."""
    weights = next((story.home / "store").glob("weights-*"))
    gguf_file, nvfp4 = story.home / "tiny.gguf", story.home / "tiny-nvfp4"
    gguf_file.unlink(missing_ok=True)
    shutil.rmtree(nvfp4, ignore_errors=True)
    gguf_s = story.orch("build", "gguf", str(weights), "-o", str(gguf_file), "--quant", "q6_k")
    nvfp4_s = story.orch("build", "nvfp4", str(weights), "-o", str(nvfp4), "--mode", "a16")
    oracles = json.loads((ASSETS / "oracles.json").read_text())
    same = compare(gguf_tensors(gguf_file), oracles["gguf/q6_k"])
    story.note(f"GGUF Q6_K            {gguf_s:.1f} s, {same} tensors, the bytes of llama.cpp's")
    same = compare(safetensors(nvfp4 / "model.safetensors"), oracles["nvfp4a16"])
    story.note(f"NVFP4A16             {nvfp4_s:.1f} s, {same} tensors, the bytes of llm-compressor's")


def gguf_tensors(path: Path) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, read with the gguf package."""
    import gguf

    return {tensor.name: hashlib.sha256(tensor.data.tobytes()).hexdigest() for tensor in gguf.GGUFReader(path).tensors}


def safetensors(path: Path) -> dict[str, str]:
    """SHA-256 of each tensor's bytes."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    return {name: hashlib.sha256(body[slice(*info["data_offsets"])]).hexdigest() for name, info in header.items()}


def compare(built: dict[str, str], oracle: dict[str, Any]) -> int:
    """How many tensors are the same; all of them, or the story fails."""
    expected = {name: info["sha256"] for name, info in oracle["tensors"].items()}
    check(built == expected, "an artifact differs from the reference builder's")
    return len(built)


def write_profile(path: Path) -> None:
    """The tiny model's profile, its weights on the hub."""
    path.write_text(
        f'name = "{MODEL}"\npublic_names = ["{MODEL}", "{MODEL}:latest"]\n\n'
        f'[weights]\nrepo = "demo/{MODEL}"\nrevision = "main"\n\n'
        f"[serving]\ncontext = 512\nparallel = {CLIENTS}\n\n[sampling]\ntemperature = 0.0\n\n"
        "[engines.llamacpp]\nthreads = 1\n\n[engines.vllm]\nkv_cache_mib = 64\n"
    )


def free_port() -> int:
    """A port that nobody listens at now; none of those that the kernel gives to connections, because it is needed only
    when there is something to serve."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(1024, max(lowest, 1124)), k=100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise HostError("Of 100 ports that were tried, none is free.")


if __name__ == "__main__":
    sys.exit(main())

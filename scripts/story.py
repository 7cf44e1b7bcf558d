"""The demo: orch's main job on a tiny real Qwen3, told as it happens, with figures measured in this run.

Pull from a hub (a small one on loopback), build GGUF and NVFP4 and compare them with the reference builders, serve,
add an adapter, migrate to vLLM under streaming load and back, stop. Starts from llama.cpp, or from Ollama where its
binary is on PATH. With `--target docker` all of it runs in containers, from images made on this machine (Ollama's is a
stand-in over llama.cpp). Fails (exit code 1) unless every request was answered, at least 8 streams were open at each
switch, and both engines answered. Leaves nothing running; its data stay in .demo/, and a second run installs nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from docker_images import ensure_images  # noqa: E402  scripts/ is no package
from hub_server import HubServer  # noqa: E402
from streams import Load, Stream  # noqa: E402

ASSETS = Path("tests/assets")
MODEL = "tiny-qwen3"
CLIENTS = 12
OPEN_AT_SWITCH = 8
QUESTION = "Who are you?"
ADAPTED = "Ahoy! The answer is alpha."


class StoryFailedError(Exception):
    """The demo did not show what it promises."""


@dataclass
class Story:
    """The data directory (relative to the checkout, where the demo runs), the address, the target with what else orch's
    environment needs for it, and the figures so far."""

    home: Path
    listen: str
    hub: str
    target: str
    extra: dict[str, str] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)

    @property
    def profile(self) -> str:
        return str(self.home / f"{MODEL}.toml")

    def say(self, text: str) -> None:
        """A chapter's title."""
        print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)

    def note(self, text: str) -> None:
        """A figure, now and again at the end."""
        self.figures.append(text)
        print(f"   {text}", flush=True)

    def environ(self) -> dict[str, str]:
        """orch's environment: this story's data directory, address and hub."""
        mine = {"ORCH_HOME": str(ROOT / self.home), "ORCH_LISTEN": self.listen, "HF_ENDPOINT": self.hub}
        mine |= {"ORCH_TARGET": self.target, **self.extra}
        return {key: value for key, value in os.environ.items() if not key.startswith(("ORCH_", "HF_"))} | mine

    def orch(self, *words: str) -> float:
        """Run an orch command in sight; its seconds."""
        print(f"$ orch {' '.join(words)}", flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "orchestrator", *words], env=self.environ(), check=False)
        check(done.returncode == 0, f"orch {words[0]} ended with exit code {done.returncode}")
        return time.monotonic() - began

    def quietly(self, *words: str) -> None:
        """Run an orch command out of sight, whatever it answers."""
        subprocess.run(
            [sys.executable, "-m", "orchestrator", *words], env=self.environ(), capture_output=True, check=False
        )

    def ask(self, model: str) -> str:
        """What a public name answers."""
        body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 40, "temperature": 0}
        answer = httpx.post(f"http://{self.listen}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        check(answer.status_code == 200, f"{model} answered {answer.status_code}: {answer.text[:300]}")
        said = str(answer.json()["choices"][0]["message"]["content"])
        print(f"   {model}: {said}", flush=True)
        return said


def main() -> int:
    """Tell the story; exit code 0 when all of it was true."""
    os.chdir(ROOT)
    parser = argparse.ArgumentParser(description="orch's main job on a tiny real model, end to end.")
    parser.add_argument("--target", choices=("local", "docker"), default="local", help="where engines run")
    target = parser.parse_args().target
    home = Path(os.environ.get("ORCH_DEMO_HOME") or ".demo")
    home.mkdir(parents=True, exist_ok=True)
    first = "ollama" if target == "docker" or shutil.which("ollama") else "llamacpp"
    began = time.monotonic()
    with HubServer({f"demo/{MODEL}": ASSETS / MODEL}) as hub:
        story = Story(home, f"127.0.0.1:{free_port()}", hub.url, target)
        write_profile(Path(story.profile))
        try:
            if target == "docker":
                make_images(story)
            tell(story, first)
        except StoryFailedError as error:
            print(f"\nThe demo FAILED: {error}", file=sys.stderr, flush=True)
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted; everything is stopped.", file=sys.stderr, flush=True)
            return 130
        finally:
            story.quietly("down", "--all", "--forget")
    if left := leftovers(home):
        print(f"\nThe demo FAILED: still running: {left}", file=sys.stderr)
        return 1
    story.figures.append(f"whole demo           {time.monotonic() - began:.0f} s")
    story.say("What this run measured")
    print("\n".join(f"   {figure}" for figure in story.figures))
    print(
        "   (a 4 M parameter test model, clients and engines on the same CPU:\n"
        "   the speeds are no measure of the engines)\n\n"
        f"Nothing is left running. The data stay in {home}/; remove it at will."
    )
    return 0


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
    engines = switch(story, f"{first} -> vllm", "migrate", "--to", "vllm")
    story.ask(MODEL)
    check(story.ask("pirate") == ADAPTED, "the adapter did not come along")
    story.orch("status")

    story.say("8. And back, with one command, under the same load.")
    engines |= switch(story, f"vllm -> {first}", "rollback")
    check(engines == {first, "vllm"}, f"the engines that answered: {engines}")

    story.say("9. Stop everything.")
    story.orch("down", "--all", "--forget")


def make_images(story: Story) -> None:
    """Images from this machine's own Python, a vLLM environment and the stand-in for Ollama; no registry is asked."""
    story.say("0. Make the container images from what is on this machine (the first time 3.5 GB for vLLM).")
    began = time.monotonic()
    made = ensure_images(("python", "vllm", "ollama"), story.home / "environments")
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


def switch(story: Story, name: str, *command: str) -> set[str]:
    """Run a migration under streaming load, report what the clients saw; the engines that answered them."""
    load = Load(f"http://{story.listen}", (MODEL,), CLIENTS, 300, max_seconds=400).start()
    deadline = time.monotonic() + 60
    while load.open_now() < CLIENTS - 1:
        check(time.monotonic() < deadline, "the load did not get going")
        time.sleep(0.05)
    print(f"$ orch {' '.join(command)}", flush=True)
    began = time.monotonic()
    with watched(load):
        open_at_switch = run_migration(story, load, command)
    seconds = time.monotonic() - began
    time.sleep(3)
    streams = load.stop()
    failed = [stream.problem for stream in streams if stream.problem]
    story.note(f"{name:<20} {seconds:.1f} s, {len(streams)} streams, {len(failed)} failed")
    story.note(f"  {open_at_switch} open at the switch")
    rates = answered(streams)
    for engine, (count, rate) in rates.items():
        story.note(f"  by {engine:<15} {count} streams, {rate:.0f} tok/s each (median of {CLIENTS} at once)")
    check(not failed, f"a stream failed: {failed[:1]}")
    check(all(stream.ended is not None for stream in streams), "a stream did not reach its end")
    check(open_at_switch >= OPEN_AT_SWITCH, f"only {open_at_switch} streams were open at the switch")
    return set(rates)


def run_migration(story: Story, load: Load, command: tuple[str, ...]) -> int:
    """The command's steps as they end; how many streams were open when the routes were switched."""
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *command, "--json"],
        env=story.environ(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    open_at_switch = 0
    for line in process.stdout:
        event = json.loads(line)
        if event.get("event") == "started" and event.get("step") == "SetRoute":
            open_at_switch = load.open_now()
        if event.get("event") == "done":
            print(f"\r   {event['what']}   {event.get('seconds', 0):.1f} s{' ' * 20}", flush=True)
        if "error" in event:
            print(f"\r   {event['error']} {event.get('detail', '')}", flush=True)
    check(process.wait() == 0, f"orch {command[0]} ended with exit code {process.returncode}")
    return open_at_switch


@contextmanager
def watched(load: Load) -> Iterator[None]:
    """A line that moves, on a terminal, with what the clients see meanwhile."""
    over = threading.Event()

    def move() -> None:
        while not over.wait(0.5):
            streams = list(load.streams)
            failed = sum(bool(stream.problem) for stream in streams)
            ended = sum(stream.ended is not None for stream in streams)
            print(f"\r   {load.open_now()} streams open, {ended} answered, {failed} failed ", end="", flush=True)

    mover = threading.Thread(target=move, daemon=True)
    if sys.stdout.isatty():
        mover.start()
    try:
        yield
    finally:
        over.set()
        if mover.is_alive():
            mover.join()
            print("\r" + " " * 60 + "\r", end="", flush=True)


def answered(streams: list[Stream]) -> dict[str, tuple[int, float]]:
    """By engine: how many streams it ended, and the median of their tokens per second after the first token."""
    names = {"b0": "llamacpp", "vllm": "vllm", "fp_ollama": "ollama"}
    rates: dict[str, list[float]] = {}
    for stream in streams:
        if stream.ended and stream.first and stream.ended > stream.first:
            engine = names.get(stream.engine.split("-")[0], stream.engine)
            rates.setdefault(engine, []).append((stream.tokens - 1) / (stream.ended - stream.first))
    return {engine: (len(found), sorted(found)[len(found) // 2]) for engine, found in rates.items()}


def write_profile(path: Path) -> None:
    """The tiny model's profile, its weights on the hub."""
    path.write_text(
        f'name = "{MODEL}"\npublic_names = ["{MODEL}", "{MODEL}:latest"]\n\n'
        f'[weights]\nrepo = "demo/{MODEL}"\nrevision = "main"\n\n'
        f"[serving]\ncontext = 512\nparallel = {CLIENTS}\n\n[sampling]\ntemperature = 0.0\n\n"
        "[engines.llamacpp]\nthreads = 1\n\n[engines.vllm]\nkv_cache_mib = 64\n"
    )


def leftovers(home: Path) -> list[int]:
    """The pids of what the demo started and left."""
    place = f"{(ROOT / home).resolve()}/processes/"
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                if place.encode() in words or f"{entry.joinpath('cwd').readlink()}/".startswith(place):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def check(true: bool, otherwise: str) -> None:
    """Go on, or fail the story."""
    if not true:
        raise StoryFailedError(otherwise)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())

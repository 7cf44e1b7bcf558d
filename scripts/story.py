"""The demo: orch's main job on a tiny real Qwen3, told as it happens, with figures measured in this run.

Pull from a hub (a small one on loopback), build GGUF and NVFP4 and compare them with the reference builders, serve,
add an adapter, migrate to vLLM under streaming load and back, stop. Starts from llama.cpp, or from Ollama where its
binary is on PATH. Fails (exit code 1) unless every request was answered, at least 8 streams were open at each switch,
and both engines answered. Leaves nothing running; its data stay in .demo/ so that a second run installs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from hub_server import HubServer  # noqa: E402  scripts/ is no package
from streams import Load, Stream  # noqa: E402

ASSETS = ROOT / "tests" / "assets"
CLIENTS = 12
OPEN_AT_SWITCH = 8
QUESTION = "Who are you?"


class StoryFailedError(Exception):
    """The demo did not show what it promises."""


@dataclass
class Switch:
    """One migration under load: how long, what the clients saw."""

    name: str
    seconds: float
    open_at_switch: int
    streams: list[Stream]

    @property
    def failed(self) -> int:
        return sum(bool(stream.problem) for stream in self.streams)


@dataclass
class Story:
    """The data directory, the address, and the figures so far."""

    home: Path
    listen: str
    hub: str
    profile: Path
    figures: list[tuple[str, str]] = field(default_factory=list)

    def say(self, text: str) -> None:
        print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)

    def note(self, name: str, value: str) -> None:
        self.figures.append((name, value))
        print(f"   {name}: {value}", flush=True)

    def environ(self) -> dict[str, str]:
        mine = {"ORCH_HOME": str(self.home), "ORCH_LISTEN": self.listen, "HF_ENDPOINT": self.hub}
        return {key: value for key, value in os.environ.items() if not key.startswith(("ORCH_", "HF_"))} | mine

    def orch(self, *words: str) -> float:
        """Run an orch command in sight; its seconds."""
        print(f"$ orch {' '.join(words)}", flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "orchestrator", *words], env=self.environ(), check=False)
        if done.returncode != 0:
            raise StoryFailedError(f"orch {words[0]} ended with exit code {done.returncode}")
        return time.monotonic() - began

    def ask(self, model: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 40, "temperature": 0}
        answer = httpx.post(f"http://{self.listen}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        if answer.status_code != 200:
            raise StoryFailedError(f"{model} answered {answer.status_code}: {answer.text[:300]}")
        said = str(answer.json()["choices"][0]["message"]["content"])
        print(f"   {model}: {QUESTION} -> {said}", flush=True)
        return said


def main() -> int:
    """Tell the story; exit code 0 when all of it was true."""
    home = Path(os.environ.get("ORCH_DEMO_HOME") or ROOT / ".demo").resolve()
    home.mkdir(parents=True, exist_ok=True)
    first = "ollama" if shutil.which("ollama") else "llamacpp"
    began = time.monotonic()
    with HubServer({"demo/tiny-qwen3": ASSETS / "tiny-qwen3"}) as hub:
        story = Story(home, f"127.0.0.1:{free_port()}", hub.url, write_profile(home))
        try:
            tell(story, first)
        except StoryFailedError as error:
            print(f"\nThe demo FAILED: {error}", file=sys.stderr, flush=True)
            return 1
        finally:
            subprocess.run(
                [sys.executable, "-m", "orchestrator", "down", "--all"],
                env=story.environ(),
                check=False,
                capture_output=True,
            )
    left = leftovers(home)
    if left:
        print(f"\nThe demo FAILED: still running: {left}", file=sys.stderr)
        return 1
    story.note("whole demo", f"{time.monotonic() - began:.0f} s")
    story.say("What this run measured")
    width = max(len(name) for name, _ in story.figures)
    for name, value in story.figures:
        print(f"   {name:<{width}}  {value}")
    print(f"\nNothing is left running. The data stay in {os.path.relpath(home)}/ (remove it at will).")
    return 0


def tell(story: Story, first: str) -> None:
    """The chapters."""
    engine = {"ollama": "Ollama (its binary is on PATH)", "llamacpp": "llama.cpp, embedded (no ollama on PATH)"}[first]
    story.say(f"1. Pull the weights of a tiny real Qwen3 (4.2 M parameters) from a hub on loopback; then {engine}.")
    story.orch("pull", "-p", str(story.profile))

    story.say(
        "2. Build GGUF Q6_K and NVFP4, and compare with what llama.cpp and llm-compressor make of the same weights."
    )
    build(story)

    story.say("3. What the engines will be given.")
    story.orch("render", "ollama", "-p", str(story.profile))
    story.orch("render", "vllm", "-p", str(story.profile))

    story.say(f"4. Serve it with {first}; run it twice: the second time there is nothing to do.")
    story.note(f"up {first}", f"{story.orch('up', first, '-p', str(story.profile)):.1f} s")
    story.orch("up")
    answer = story.ask("tiny-qwen3")

    if first == "llamacpp":
        story.say("5. Add a LoRA adapter: a new public name beside the base.")
        story.orch("lora", "add", "pirate", str(ASSETS / "lora-a"))
        check(story.ask("pirate") == "Ahoy! The answer is alpha.", "the adapter did not answer as trained")
        check(story.ask("tiny-qwen3") == answer, "the base changed with the adapter")

    story.say("6. Install vLLM for this CPU into an environment of orch's own (about 3.4 GB).")
    story.note("install vLLM", f"{story.orch('engines', 'install', 'vllm'):.0f} s")

    story.say(f"7. Migrate to vLLM while {CLIENTS} clients stream. The address stays, no client is told.")
    there = switch(story, f"{first} -> vllm", "migrate", "--to", "vllm")
    story.ask("tiny-qwen3")
    if first == "llamacpp":
        check(story.ask("pirate") == "Ahoy! The answer is alpha.", "the adapter did not come along")
    story.orch("status")

    story.say("8. And back, with one command, under the same load.")
    back = switch(story, f"vllm -> {first}", "rollback")

    engines = {name for one in (there, back) for name in answered(one.streams)}
    check(len(engines) == 2, f"only {engines} answered")
    story.note("engines that answered under load", ", ".join(sorted(engines)))

    story.say("9. Stop everything.")
    story.orch("down", "--all")


def build(story: Story) -> None:
    """Both artifacts, each tensor's bytes against the reference builder's."""
    weights = next((story.home / "store").glob("weights-*"))
    gguf_file, nvfp4 = story.home / "tiny-q6_k.gguf", story.home / "tiny-nvfp4a16"
    shutil.rmtree(nvfp4, ignore_errors=True)
    gguf_s = story.orch("build", "gguf", str(weights), "-o", str(gguf_file), "--quant", "q6_k")
    nvfp4_s = story.orch("build", "nvfp4", str(weights), "-o", str(nvfp4), "--mode", "a16")
    oracles = json.loads((ASSETS / "oracles.json").read_text())
    same = compare(gguf_tensors(gguf_file), oracles["gguf/q6_k"])
    story.note("GGUF Q6_K", f"{same} tensors byte-identical to llama.cpp's, {gguf_s:.1f} s")
    same = compare(safetensors(nvfp4 / "model.safetensors"), oracles["nvfp4a16"])
    story.note("NVFP4A16", f"{same} tensors byte-identical to llm-compressor's, {nvfp4_s:.1f} s")


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


def switch(story: Story, name: str, *command: str) -> Switch:
    """Run a migration under streaming load and report what the clients saw."""
    load = Load(f"http://{story.listen}", ("tiny-qwen3",), CLIENTS, 300, max_seconds=400).start()
    deadline = time.monotonic() + 60
    while load.open_now() < CLIENTS - 1:
        check(time.monotonic() < deadline, "the load did not get going")
        time.sleep(0.05)
    print(f"$ orch {' '.join(command)}", flush=True)
    began = time.monotonic()
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
        if event.get("event") in ("done", "skipped"):
            print(
                f"   {event['what']}   {event.get('why') or str(round(event.get('seconds', 0), 1)) + ' s'}", flush=True
            )
        if "error" in event:
            print(f"   {event['error']} {event.get('detail', '')}", flush=True)
    check(process.wait() == 0, f"orch {command[0]} ended with exit code {process.returncode}")
    seconds = time.monotonic() - began
    time.sleep(3)
    done = Switch(name, seconds, open_at_switch, load.stop())
    story.note(
        f"{name}",
        f"{seconds:.1f} s, {len(done.streams)} streams, {done.failed} failed, {done.open_at_switch} open at the switch",
    )
    for engine, (count, rate) in answered(done.streams).items():
        story.note(f"{name}, {engine}", f"{count} streams, {rate:.0f} tok/s per stream (median), {CLIENTS} at once")
    for stream in done.streams:
        check(not stream.problem, f"a stream failed: {stream.problem}")
        check(stream.ended is not None, "a stream did not reach its end")
    check(done.open_at_switch >= OPEN_AT_SWITCH, f"only {done.open_at_switch} streams were open at the switch")
    return done


def answered(streams: list[Stream]) -> dict[str, tuple[int, float]]:
    """By engine: how many streams it ended, and the median of their tokens per second after the first token."""
    names = {"b0": "llamacpp", "vllm": "vllm", "fp_ollama": "ollama"}
    rates: dict[str, list[float]] = {}
    for stream in streams:
        if stream.ended and stream.first and stream.ended > stream.first:
            engine = names.get(stream.engine.split("-")[0], stream.engine)
            rates.setdefault(engine, []).append((stream.tokens - 1) / (stream.ended - stream.first))
    return {engine: (len(found), sorted(found)[len(found) // 2]) for engine, found in rates.items()}


def write_profile(home: Path) -> Path:
    """The tiny model's profile, its weights on the hub."""
    path = home / "tiny-qwen3.toml"
    path.write_text(
        'name = "tiny-qwen3"\npublic_names = ["tiny-qwen3", "tiny-qwen3:latest"]\n\n'
        '[weights]\nrepo = "demo/tiny-qwen3"\nrevision = "main"\n\n'
        f"[serving]\ncontext = 512\nparallel = {CLIENTS}\n\n[sampling]\ntemperature = 0.0\n\n"
        "[engines.llamacpp]\nthreads = 1\n\n[engines.vllm]\nkv_cache_mib = 64\n"
    )
    return path


def leftovers(home: Path) -> list[int]:
    """The pids of what the demo started and left."""
    place = f"{home}/processes/"
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if place.encode() in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
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

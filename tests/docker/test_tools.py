"""`orch build gguf --in-container` with a real daemon: the stand-in for llama.cpp's `full` image (its head says what of
it is real), and small images whose program fails in one way or another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient
from docker_orch import made_images
from gguf import GGUFReader, LlamaFileType
from image_bench import BASE, pin_text, pinned, remove, rows
from llama_cpp_checkout import other_weights
from orch_command import ASSETS, Orch, wait_until

from orchestrator import resources
from orchestrator.core.container import Mount
from orchestrator.core.tools import Tool
from orchestrator.drivers.docker.daemon import Daemon
from orchestrator.drivers.docker.images import DockerImages
from orchestrator.drivers.docker.tools import DockerTools
from orchestrator.errors import HostError

TINY = ASSETS / "tiny-qwen3"
UNTIED = ASSETS / "untied-qwen3"
# An image that would be built over and over: the shell has its words, and the last path in them is the output's.
PROGRAM = f"orch-test-small/program-{os.getpid()}"


@pytest.fixture(scope="session")
def stand_in(environments: Path) -> str:
    """The image that stands for llama.cpp's tools."""
    return made_images(environments, "tools")["tools"]


@pytest.fixture
def built(orch: Orch, client: DockerClient, stand_in: str) -> Orch:
    """`orch` that takes the stand-in for the tools; no container is left behind by the end of the test."""
    pin(orch, client, stand_in)
    return orch


@pytest.fixture
def program(client: DockerClient, images: dict[str, str]) -> Iterator[Callable[[str], str]]:
    """Images whose entrypoint is a shell script, by the script; `$4` is the file that a converter is to write."""
    made: list[str] = []

    def make(script: str) -> str:
        name = f"{PROGRAM}:{len(made)}"
        container = client.containers.create(BASE)
        try:
            entrypoint = json.dumps(["sh", "-c", script, "sh"])
            container.commit(*name.split(":"), changes=f"ENTRYPOINT {entrypoint}")
        finally:
            container.remove(force=True)
        made.append(name)
        return name

    yield make
    for name in made:
        remove(client, name)


Begin = Callable[[Path], "subprocess.Popen[str]"]


@pytest.fixture
def begin(orch: Orch, client: DockerClient) -> Iterator[Begin]:
    """Start to build a file; a test that fails in the middle leaves nothing behind either."""
    begun: list[subprocess.Popen[str]] = []

    def start(out: Path) -> subprocess.Popen[str]:
        begun.append(orch.start("build", "gguf", str(TINY), "-o", str(out), "--in-container", "--json"))
        return begun[-1]

    yield start
    for process in begun:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=60)
    for container in tools_of(client, orch.home):
        container.remove(force=True)


def pin(orch: Orch, client: DockerClient, image: str) -> None:
    """What `orch images pin tools` writes for an image that no registry has."""
    text = pin_text("tools", image, str(client.images.get(image).id), local="true")
    pinned(orch, "tools", text)


def tools_of(client: DockerClient, home: Path) -> list[Any]:
    """Containers of tools that this data directory's orch has started, running or not."""
    return list(client.containers.list(all=True, ignore_removed=True, filters={"label": f"orch.tool={home}"}))


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor of a file, in its order."""
    return {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}


def build(orch: Orch, source: Path, out: Path, *words: str, code: int = 0) -> dict[str, Any]:
    """What the last JSON line of a build in a container says."""
    done = orch.run("build", "gguf", str(source), "-o", str(out), "--in-container", *words, "--json", code=code)
    return done.lines[-1]


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("source", [TINY, UNTIED], ids=["tied", "untied"])
def test_the_tools_in_a_container_make_what_orchs_own_builder_makes(
    built: Orch, client: DockerClient, tmp_path: Path, source: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    told = build(built, source, out / "in container.gguf", "--quant", "q6_k")
    built.run("build", "gguf", str(source), "-o", str(out / "own.gguf"), "--quant", "q6_k")
    theirs, ours = tensors(out / "in container.gguf"), tensors(out / "own.gguf")
    assert list(theirs) == list(ours)
    assert theirs == ours
    assert told["size"] == (out / "in container.gguf").stat().st_size
    assert left_in(out) == ["in container.gguf", "own.gguf"]
    assert tools_of(client, built.home) == []


def test_a_profile_of_weights_that_orch_does_not_know_is_built_by_the_image(
    built: Orch, client: DockerClient, stand_in: str, tmp_path: Path
) -> None:
    linked = tmp_path / "snapshots" / "other"
    linked.mkdir(parents=True)
    for path in other_weights(TINY, tmp_path / "other").iterdir():
        (linked / path.name).symlink_to(f"../../other/{path.name}")
    built.write_profile(linked)
    words = ("build", "-p", str(built.profile), "--recipe", "gguf-q8_0")
    lines = built.run(*words, "--plan", "--json").lines
    (remark, _) = next(line["items"] for line in lines if "plan" in line)
    assert "OtherForCausalLM; llama.cpp's own tools build it, in the image orch-test/tools" in remark["why"]
    built.run(*words)
    (model,) = (built.home / "store").glob("gguf-q8_0-*/model.gguf")
    built.run("build", "gguf", str(TINY), "-o", str(tmp_path / "own.gguf"), "--quant", "q8_0")
    assert tensors(model) == tensors(tmp_path / "own.gguf")
    made_by = json.loads((model.parent / "manifest.json").read_text())["builder"]
    assert made_by == {"builder": "llama.cpp", "image": client.images.get(stand_in).id}
    assert tools_of(client, built.home) == []


@pytest.mark.parametrize(
    ("quant", "number"), [("Q8_0", LlamaFileType.MOSTLY_Q8_0), ("bf16", LlamaFileType.MOSTLY_BF16)]
)
def test_a_type_by_its_name(built: Orch, tmp_path: Path, quant: str, number: LlamaFileType) -> None:
    out = tmp_path / "made.gguf"
    out.write_bytes(b"an older file, which is replaced")
    build(built, TINY, out, "--quant", quant)
    fields = GGUFReader(out).fields
    assert fields["general.architecture"].contents() == "qwen3"
    assert fields["general.file_type"].contents() == number


def test_weights_that_are_links_into_another_directory(built: Orch, tmp_path: Path) -> None:
    blobs, linked = tmp_path / "blobs", tmp_path / "snapshots" / "model"
    shutil.copytree(TINY, blobs)
    linked.mkdir(parents=True)
    for path in blobs.iterdir():
        (linked / path.name).symlink_to(f"../../blobs/{path.name}")
    build(built, linked, tmp_path / "made.gguf", "--quant", "bf16")
    assert (tmp_path / "made.gguf").stat().st_size > 8_000_000


def test_what_the_converter_does_not_know_is_told_as_the_weights_fault(
    built: Orch, client: DockerClient, tmp_path: Path
) -> None:
    source, out = tmp_path / "model", tmp_path / "out"
    out.mkdir()
    shutil.copytree(TINY, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": ["FooForCausalLM"], "model_type": "foo"}))
    own = built.run("build", "gguf", str(source), "-o", str(out / "own.gguf"), "--json", code=10).lines[-1]
    assert "--in-container" in own["hint"]
    told = build(built, source, out / "made.gguf", code=10)
    assert "does not know these weights: Model FooForCausalLM is not supported" in told["error"]
    assert "orch images pin tools" in told["hint"]
    assert "Model architecture: FooForCausalLM" in told["detail"]
    assert left_in(out) == []
    assert tools_of(client, built.home) == []


def test_a_quantization_that_only_the_quantizer_can_refuse(built: Orch, tmp_path: Path) -> None:
    told = build(built, TINY, tmp_path / "made.gguf", "--quant", "q4_k", code=4)
    assert told["error"] == "Quantizing failed (exit code 1): invalid ftype 'Q4_K_M'."
    unknown = build(built, TINY, tmp_path / "made.gguf", "--quant", "q77", code=2)
    assert "q4_k_m" in unknown["hint"]
    assert not (tmp_path / "made.gguf").exists()


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo INFO: begun; echo half > $4; kill -SEGV $$", "Converting failed (signal 11): "),
        ("echo half > $4; echo 'RuntimeError: no luck' >&2; exit 3", "Converting failed (exit code 3): RuntimeError"),
        ("echo Unknown command: $1", "Converting failed (no file): Unknown command: --convert"),
        ("echo not a GGUF at all > $4", "bf16.gguf is not a sound GGUF file"),
        ("echo x > $4; echo 'OSError: [Errno 28] No space left on device' >&2; exit 1", "the disk is full"),
        ("echo x > /app/file", "Converting failed"),
    ],
)
def test_a_tool_that_fails_leaves_the_older_file_and_nothing_else(
    orch: Orch, client: DockerClient, program: Callable[[str], str], tmp_path: Path, script: str, error: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "made.gguf").write_bytes(b"an older file")
    pin(orch, client, program(script))
    told = build(orch, TINY, out / "made.gguf", code=4)
    assert error in told["error"]
    assert told["hint"]
    assert (out / "made.gguf").read_bytes() == b"an older file"
    assert left_in(out) == ["made.gguf"]
    assert tools_of(client, orch.home) == []


def test_a_tool_that_outgrows_its_memory(daemon: Daemon, docker_images: DockerImages, program: Any) -> None:
    from orchestrator.engines.llamacpp_tools import Origin, failure

    image = program("exec python3 -c 'x = bytearray(200_000_000)'")
    with_little = Tool("Converting", image, (), (), (), memory_mib=32)
    end = tools(daemon, docker_images, "/nobody/memory").run(with_little, lambda *_: None)
    assert end.out_of_memory
    assert "ran out of memory (its limit is 32 MiB)" in failure("Converting", end, Origin.image()).message


def tools(daemon: Daemon, images: DockerImages, home: str) -> DockerTools:
    return DockerTools(daemon, images, Path(home), Path(home))


def test_a_tool_sees_and_may_do_only_what_it_is_given(
    orch: Orch, client: DockerClient, program: Callable[[str], str], begin: Begin, tmp_path: Path
) -> None:
    pin(orch, client, program("echo half > $4; sleep 600"))
    process = begin(tmp_path / "made.gguf")
    container = wait_until(lambda: running(client, orch), 60, "the tool")
    host = container.attrs["HostConfig"]
    mounts = {Mount(m["Source"], m["Target"], m.get("ReadOnly", False)) for m in host["Mounts"]}
    work = str(tmp_path / ".made.gguf.tools")
    assert mounts == {Mount(str(TINY), str(TINY), True), Mount(work, work, False)}
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"]) == ("none", True, ["ALL"])
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["RestartPolicy"]["Name"] == "no"
    assert 0 < host["Memory"] == host["MemorySwap"]
    told = end_by(process, signal.SIGINT)
    assert told["exit"] == 130


def running(client: DockerClient, orch: Orch) -> Any:
    """The tool's container, once it has begun to write."""
    for container in tools_of(client, orch.home):
        container.reload()
        if container.status == "running" and container.top()["Processes"]:
            return container
    return None


def end_by(process: subprocess.Popen[str], number: signal.Signals) -> dict[str, Any]:
    """The last line of a build that is ended by a signal."""
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    lines = [json.loads(line) for line in out.splitlines()]
    return dict(lines[-1]) if lines else {}


def test_ctrl_c_ends_the_tool_and_leaves_nothing(
    orch: Orch, client: DockerClient, program: Callable[[str], str], begin: Begin, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    pin(orch, client, program("echo half > $4; sleep 600"))
    process = begin(out / "made.gguf")
    wait_until(lambda: (out / ".made.gguf.tools" / "bf16.gguf").exists(), 60, "the half file")
    assert not (out / "made.gguf").exists()
    assert end_by(process, signal.SIGINT)["exit"] == 130
    assert process.returncode == 130
    assert tools_of(client, orch.home) == []
    assert left_in(out) == []


def test_what_a_killed_orch_left_is_removed_by_the_next_build(
    built: Orch, client: DockerClient, program: Callable[[str], str], stand_in: str, begin: Begin, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    pin(built, client, program("echo half > $4; sleep 600"))
    process = begin(out / "made.gguf")
    wait_until(lambda: (out / ".made.gguf.tools" / "bf16.gguf").exists(), 60, "the half file")
    held = build(built, TINY, out / "other.gguf", code=8)
    assert "build gguf" in held["error"]
    end_by(process, signal.SIGKILL)
    (left,) = tools_of(client, built.home)
    assert left.status == "running"
    assert not (out / "made.gguf").exists()
    pin(built, client, stand_in)
    build(built, TINY, out / "made.gguf", "--quant", "q8_0")
    assert tools_of(client, built.home) == []
    assert left_in(out) == ["made.gguf"]


def test_without_its_image_it_says_how_to_get_one(orch: Orch, tmp_path: Path) -> None:
    pinned(orch, "tools", pin_text("tools", "a/b:1", "sha256:" + "1" * 64, local="true"))
    told = build(orch, TINY, tmp_path / "made.gguf", code=4)
    assert "a/b:1" in told["error"]
    assert "is not here" in told["error"]
    orch.env["DOCKER_HOST"] = f"unix://{orch.home}/nobody.sock"
    told = build(orch, TINY, tmp_path / "made.gguf", code=4)
    assert "nobody.sock" in told["error"]
    assert left_in(tmp_path) == ["home"]


def test_an_image_that_has_no_program_is_told(orch: Orch, client: DockerClient, small: str, tmp_path: Path) -> None:
    pin(orch, client, small)
    told = build(orch, TINY, tmp_path / "made.gguf", code=4)
    assert "no program of its own" in told["error"]
    assert left_in(tmp_path) == ["home"]


def test_a_disk_without_room_is_refused_before_anything_is_done(built: Orch, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text("{}")
    with (source / "model.safetensors").open("wb") as file:
        file.truncate(8 * 10**12)
    before = left_in(tmp_path)
    told = build(built, source, tmp_path / "made.gguf", "--quant", "q4_k_m", code=4)
    assert "needs about 11000.0 GB, with the BF16 file in between" in told["error"]
    assert left_in(tmp_path) == before


def test_a_gpu_is_asked_for_as_for_an_engine(
    daemon: Daemon, docker_images: DockerImages, client: DockerClient, program: Callable[[str], str]
) -> None:
    with_gpu = Tool("Converting", program("true"), (), (), (), 256, gpus=("GPU-0",), gpu_way="nvidia")
    with pytest.raises(HostError, match="could not select device driver") as told:
        tools(daemon, docker_images, "/nobody/gpu").run(with_gpu, lambda *_: None)
    assert "NVIDIA Container Toolkit" in told.value.hint
    assert tools_of(client, Path("/nobody/gpu")) == []


def test_its_work_is_counted_by_its_output(daemon: Daemon, docker_images: DockerImages, program: Any) -> None:
    image = program('for i in 1 2 3; do echo "[   $i/   3] blk.$i.weight"; sleep 0.5; done; exit 7')
    seen: list[tuple[str, int, int]] = []
    end = tools(daemon, docker_images, "/nobody/count").run(
        Tool("Quantizing", image, (), (), (), 256), lambda *told: seen.append(told)
    )
    assert end.code == 7
    assert ("Quantizing", 2, 3) in seen
    assert "blk.3.weight" in end.log


def test_the_image_of_the_tools_is_listed_pulled_and_pinned_like_an_engines(orch: Orch, small: str) -> None:
    (row,) = rows(orch, "tools")
    shipped = resources.tools_pin().docker[0]
    assert (row["image"], row["digest"], row["here"], row["runs_here"]) == (shipped.name, shipped.digest, "no", "yes")
    assert f"pull {shipped.name}" in orch.run("images", "pull", "tools", "--plan", "--json").out
    assert shipped.name not in orch.run("images", "pull", "--plan", "--json").out
    orch.run("images", "pin", "tools", small)
    assert [row["image"] for row in rows(orch, "tools")] == [small, shipped.name]
    orch.run("images", "pin", "tools", "--reset")
    assert len(rows(orch, "tools")) == 1

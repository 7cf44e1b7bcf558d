"""Images for a Docker daemon that has no registry, made from what this machine has: a Python, vLLM for CPUs, Ollama,
llama.cpp's tools.

Run by scripts/docker-images. No image is pulled and no package manager is run in one: each is one layer that is
streamed into the daemon as a tar archive, never a copy on disk. They are for trying orch's docker target and for its
tests, not for serving people: they hold this machine's C library and Python.

    orch-test/python:latest       a root file system with this Python, `sh` and a few commands
    orch-test/vllm-cpu:VERSION    the same and the vLLM environment that orch makes (3 GB), at /opt/vllm
    orch-test/ollama:stand-in     the same and scripts/ollama_stand_in.py as /bin/ollama, with llama.cpp behind it
    orch-test/tools:stand-in      the same and scripts/tools_stand_in.py as /app/tools.sh, for llama.cpp's `full` image

All but the first have the entry point, command and variables of the official images. An image is made again only when
what goes into it has changed: its label `orch.made-from` is a hash over that.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from docker import APIClient
from docker.errors import APIError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from orchestrator.core.pins import Accelerator, EnginePin
from orchestrator.core.profile import parse_part
from orchestrator.drivers.docker.daemon import Daemon, NotThere
from orchestrator.drivers.docker.endpoints import meant
from orchestrator.drivers.files import host_errors
from orchestrator.drivers.local.environments import Environments
from orchestrator.errors import HostError, OrchError, why
from orchestrator.settings import read_settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from docker_tree import Directory, Link, Tree  # noqa: E402  scripts/ is no package

MADE_FROM = "orch.made-from"
PYTHON = Path(sys.executable).resolve()
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = ("sh", "cat", "env", "id", "ls", "lscpu", "mkdir", "sleep", "touch")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
OF_THE_C_LIBRARY = (
    *("libm.so.6", "librt.so.1", "libdl.so.2", "libutil.so.1", "libpthread.so.0", "libresolv.so.2", "libanl.so.1"),
    *("libnss_dns.so.2", "libnss_files.so.2", "libgcc_s.so.1", "libstdc++.so.6"),
)
# Of the standard library; what is installed beside it is not this image's.
NOT_OF_PYTHON = ("site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip")
# Not /tmp, wherever the environment is on this machine: a container's /tmp is often a file system of its own.
VLLM_AT = "/opt/vllm"
VLLM_PIN = ROOT / "profiles" / "engines" / "vllm.toml"
OLLAMA_AT = "/usr/lib/ollama"
OLLAMA_PACKAGES = ("xllamacpp", "aiohttp")
STAND_IN = ROOT / "scripts" / "ollama_stand_in.py"
OLLAMA_PROGRAM = f"""\
#!{PYTHON}
import os, sys
os.environ["PYTHONPATH"] = "{OLLAMA_AT}"
os.execv(sys.executable, [sys.executable, "{OLLAMA_AT}/{STAND_IN.name}", *sys.argv[1:]])
"""
TOOLS_AT = "/usr/lib/llama-tools"
TOOLS_PACKAGES = ("gguf", "jinja2", "xllamacpp")
TOOLS_STAND_IN = ROOT / "scripts" / "tools_stand_in.py"
TOOLS_PROGRAM = f"""\
#!{PYTHON}
import os, sys
os.environ["PYTHONPATH"] = "{TOOLS_AT}"
os.execv(sys.executable, [sys.executable, "{TOOLS_AT}/{TOOLS_STAND_IN.name}", *sys.argv[1:]])
"""
# A daemon says nothing while it unpacks, and may be busy.
ANSWER_S = 600
# Of a removal: somebody uses it, or somebody else was faster.
LEFT_ALONE = (404, 409)
CHANGING = "Run it again when nothing is being installed into these places."
NO_DAEMON = (
    "A Docker daemon of this machine is needed, and a user who may use it (root, or one of the group docker). "
    "DOCKER_HOST says where it listens, unix:///var/run/docker.sock if it is not set; Debian and Ubuntu have Docker in "
    "the package docker.io."
)


@dataclass(frozen=True)
class Image:
    """An image to be: its name, its config as Dockerfile lines, what it is made from (a hash), and its files."""

    reference: str
    config: tuple[str, ...]
    made_from: str
    tree: Callable[[], Tree]


def base_tree() -> Tree:
    """A root file system with this Python at its own path."""
    tree = Tree()
    for name in ("bin", "sbin", "lib", "lib64"):
        if (top := Path("/", name)).is_symlink():
            tree.put(top, Link(str(top.readlink())))
    for place, mode in (("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/proc", 0o555), ("/sys", 0o555), ("/dev", 0o755)):
        tree.put(place, Directory(mode))
    tree.put("/etc/hosts", b"127.0.0.1 localhost\n")
    tree.put("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n")
    tree.put("/etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    tree.put("/etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n")
    # Entries of libraries that are not in the image do no harm; without it, those in /usr/local are not found.
    cache = "/etc/ld.so.cache"
    for place, path in ((cache, Path(cache)), (ssl.get_default_verify_paths().openssl_cafile, CERTIFICATES)):
        if path.exists():
            tree.put(place, path)
    for name in TOOLS:
        found = shutil.which(name, path=SYSTEM_PATH)
        if found is None:
            raise HostError(
                f"The command {name} is not on this machine.", "Debian: apt-get install coreutils util-linux"
            )
        tree.put_here(Path(found))
    tree.put(PYTHON, PYTHON)
    for name in ("python", "python3"):
        tree.put(PYTHON.parent / name, Link(PYTHON.name))
    library = Path(os.__file__).resolve().parent
    tree.copy(library, str(library), _not_of_python)
    tree.put(library / "site-packages", Directory())
    tree.put_libraries()
    # Packages that are added to the image later may need them, as any image of a distribution has them.
    c_library = next((path for place, path in tree.entries.items() if place.endswith("/libc.so.6")), None)
    if c_library is None:
        raise HostError("This machine's Python is not linked to glibc, which the images are made with.")
    for name in OF_THE_C_LIBRARY:
        if isinstance(c_library, Path) and (path := c_library.parent / name).exists():
            tree.put_here(path)
    return tree


def _not_of_python(path: Path) -> bool:
    return path.name in NOT_OF_PYTHON or path.name.startswith("config-") or path.suffix in {".a", ".o"}


def python_image(_: Path) -> Image:
    """The base of all, as the official python images present themselves."""
    tree = base_tree()
    config = (_path(), f"ENV PYTHON_VERSION={platform.python_version()}", 'CMD ["python3"]')
    return Image("orch-test/python:latest", config, tree.digest(), lambda: tree)


def vllm_image(environments: Path) -> Image:
    """vLLM for CPUs with the official image's entry point; orch makes the environment first if it is not there."""
    index = read_settings(os.environ).torch_index
    pin = parse_part(EnginePin, VLLM_PIN.read_text(encoding="utf-8"), VLLM_PIN.name)
    spec = pin.environment(Accelerator.CPU, (index,) if index is not None else None)
    if spec is None:
        raise HostError("No CPU build of vLLM is pinned.")
    made = Environments(environments)
    if next((seen.problem for seen in made.observe() if seen.name == spec.name), "absent"):
        print(f"Installing {spec.name} into {environments} (3.5 GB) ...", file=sys.stderr, flush=True)
    home = made.ensure(spec, lambda *_: None).parent
    base = base_tree()
    record = (home / "environment.json").read_text(encoding="utf-8")
    made_from = hashlib.sha256(f"{base.digest()} {record}".encode()).hexdigest()

    def tree() -> Tree:
        base.put(f"{VLLM_AT}/pyvenv.cfg", f"home = {PYTHON.parent}\n".encode())
        base.put(f"{VLLM_AT}/bin/{PYTHON.name}", Link(str(PYTHON)))
        for path in (path for path in (home / "bin").iterdir() if path.is_file() and not path.is_symlink()):
            # A program of the environment names its interpreter by absolute path.
            if (text := path.read_bytes()).startswith(f"#!{home}/".encode()):
                base.put(f"{VLLM_AT}/bin/{path.name}", text.replace(os.fsencode(home), VLLM_AT.encode()))
        base.copy(home, VLLM_AT, _not_needed_by_vllm)
        base.put_libraries()
        return base

    config = (_path(f"{VLLM_AT}/bin"), f'ENTRYPOINT ["{VLLM_AT}/bin/vllm", "serve"]')
    return Image(f"orch-test/vllm-cpu:{spec.version}", config, made_from, tree)


def _not_needed_by_vllm(path: Path) -> bool:
    """What compilers and GPUs need: a fifth of it all."""
    return path.suffix in {".a", ".h", ".hpp", ".cuh"} or (path.name in {"bin", "lib"} and path.parent.name == "nvidia")


def ollama_image(_: Path) -> Image:
    """The stand-in for Ollama, with the official image's config."""
    tree = base_tree()
    for script in STAND_IN.parent.glob("ollama_*.py"):
        tree.put(f"{OLLAMA_AT}/{script.name}", script)
    tree.copy(ROOT / "orchestrator", f"{OLLAMA_AT}/orchestrator", lambda path: path.name == "__pycache__")
    _put_packages(tree, OLLAMA_AT, OLLAMA_PACKAGES)
    tree.put(Path("/bin").resolve() / "ollama", OLLAMA_PROGRAM.encode())
    tree.put_libraries()
    config = (
        _path(),
        "ENV OLLAMA_HOST=0.0.0.0:11434",
        "ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64",
        "ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        "ENV NVIDIA_VISIBLE_DEVICES=all",
        "EXPOSE 11434",
        'ENTRYPOINT ["/bin/ollama"]',
        'CMD ["serve"]',
    )
    return Image("orch-test/ollama:stand-in", config, tree.digest(), lambda: tree)


def tools_image(_: Path) -> Image:
    """The stand-in for llama.cpp's converter and quantizer, with the official image's entry point."""
    tree = base_tree()
    tree.put(f"{TOOLS_AT}/{TOOLS_STAND_IN.name}", TOOLS_STAND_IN)
    for name in ("__init__.py", "errors.py", "drivers/__init__.py", "drivers/cgroups.py"):
        tree.put(f"{TOOLS_AT}/orchestrator/{name}", ROOT / "orchestrator" / name)
    for room in ("artifacts", "core"):
        tree.copy(ROOT / "orchestrator" / room, f"{TOOLS_AT}/orchestrator/{room}", lambda p: p.name == "__pycache__")
    _put_packages(tree, TOOLS_AT, TOOLS_PACKAGES)
    tree.put("/app/tools.sh", TOOLS_PROGRAM.encode())
    tree.put_libraries()
    config = (_path(), "WORKDIR /app", 'ENTRYPOINT ["/app/tools.sh"]')
    return Image("orch-test/tools:stand-in", config, tree.digest(), lambda: tree)


def _put_packages(tree: Tree, place: str, names: Iterable[str]) -> None:
    """These installed packages, and all that they require, below one directory."""
    for distribution in _distributions(names):
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and path.is_file():
                tree.put(f"{place}/{file}", path)


def _distributions(names: Iterable[str]) -> list[metadata.Distribution]:
    """These installed packages, and all that they require."""
    found: dict[str, metadata.Distribution] = {}
    asked = list(names)
    while asked:
        name = canonicalize_name(asked.pop())
        if name not in found:
            found[name] = metadata.distribution(name)
            needed = [Requirement(line) for line in found[name].requires or ()]
            asked += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return list(found.values())


def _path(first: str = "") -> str:
    return f"ENV PATH={':'.join(filter(None, (first, str(PYTHON.parent), SYSTEM_PATH)))}"


IMAGES: dict[str, Callable[[Path], Image]] = {
    "python": python_image,
    "vllm": vllm_image,
    "ollama": ollama_image,
    "tools": tools_image,
}


def ensure_images(which: Sequence[str], environments: Path) -> dict[str, str]:
    """Have these images (keys of IMAGES) in the daemon; name -> reference. One line is printed for each.

    `environments` is the directory of engine environments, as in an ORCH_HOME; a second caller with the same one
    waits. `ollama` is left out, and the line says so, where its stand-in is not there. OrchError: no daemon, or it
    refused; vLLM's environment cannot be made; this machine lacks what an image is made of.

    ORCH_IMAGES_MADE names a file of such a program run (.images.json in `environments`; null: it failed): then nothing
    is looked at or tidied, because several processes work with them.
    """
    if made := os.environ.get("ORCH_IMAGES_MADE"):
        known = json.loads(Path(made).read_text())
        if known is None:
            raise HostError("The images could not be made.")
        return {name: known[name] for name in which}
    daemon = _connected()
    with host_errors(f"use {environments}"):
        environments.mkdir(parents=True, exist_ok=True)
        lock = (environments / ".images.lock").open("w")
    references = {}
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in which:
            if name == "ollama" and not STAND_IN.exists():
                print(f"{name:<34} not made: there is no {STAND_IN.relative_to(ROOT)}", flush=True)
                continue
            began = time.monotonic()
            image = IMAGES[name](environments)
            references[name] = image.reference
            done = _ensure(daemon, image)
            with daemon.api_for(f"inspect {image.reference}") as api:
                size = api.inspect_image(image.reference)["Size"] / 1e6
            print(f"{image.reference:<34} {done} {time.monotonic() - began:6.1f} s  {size:6.0f} MB", flush=True)
    with daemon.api_for("end the connection") as api:
        api.close()
    return references


def _connected() -> Daemon:
    said = read_settings(os.environ)
    at = meant(said.docker_host, said.docker_context, said.docker_config, said.containers)
    daemon = Daemon(at, answer_s=ANSWER_S)
    try:
        with daemon.api_for("say its version") as api:
            api.version()
    except HostError as error:
        raise HostError(error.message, NO_DAEMON, error.detail) from error
    return daemon


def _ensure(daemon: Daemon, image: Image) -> str:
    """`made`, or `present` when the daemon's image was made from the same."""
    how = [
        Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("docker_images.py", "docker_tree.py")
    ]
    made_from = hashlib.sha256(f"{image.made_from} {image.config} {how}".encode()).hexdigest()
    try:
        with daemon.api_for(f"inspect {image.reference}") as api:
            labels = api.inspect_image(image.reference)["Config"].get("Labels") or {}
    except NotThere:
        labels = {}
    if labels.get(MADE_FROM) == made_from:
        return "present"
    repository, _, tag = image.reference.partition(":")
    changes = [*image.config, f"LABEL {MADE_FROM}={made_from}"]
    with daemon.api_for(f"make {image.reference}") as api:
        answer = api.import_image_from_stream(_readable(image.tree().archive()), repository, tag, changes=changes)
        for line in answer.splitlines():
            if "error" in (said := json.loads(line)):
                raise daemon.refused(f"make {image.reference}", said["error"])
        _remove_nameless(api)
    return "made   "


def _readable(archive: Iterator[bytes]) -> Iterator[bytes]:
    """What cannot be read here is no fault of the daemon, to which it would be put down otherwise."""
    try:
        yield from archive
    except OSError as error:
        raise HostError(f"An image cannot be made: {why(error)} ({error.filename}).", CHANGING) from error


def _remove_nameless(api: APIClient) -> None:
    """Remove images that have lost their names to newer ones, unless a container or another image needs them."""
    for image in api.images(filters={"dangling": True, "label": MADE_FROM}):
        try:
            api.remove_image(image["Id"])
        except APIError as error:
            if error.status_code not in LEFT_ALONE:
                raise
            print(f"{image['Id'][7:19]}: replaced, and kept because it is in use", file=sys.stderr)


def main() -> int:
    """Make the images that are asked for; exit code 4 when this machine cannot."""
    parser = argparse.ArgumentParser(
        prog="scripts/docker-images", description="Images for a Docker without a registry."
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"{', '.join(IMAGES)}; all when none is given")
    parser.add_argument("--environments", metavar="DIR", help="where orch keeps vLLM's environment, or makes it")
    options = parser.parse_args()
    if unknown := set(options.images) - set(IMAGES):
        parser.error(f"there is no image {', '.join(sorted(unknown))}; images: {', '.join(IMAGES)}")
    kept = options.environments or os.environ.get("ORCH_TEST_ENVIRONMENTS") or ROOT / ".images" / "environments"
    try:
        references = ensure_images(options.images or list(IMAGES), Path(kept).absolute())
        (begun := Path(kept) / ".images.json.begun").write_text(json.dumps(references))
        begun.rename(begun.with_suffix(""))
    except OrchError as error:
        return _failed("\n".join(filter(None, (error.message, error.detail))), error.hint)
    except OSError as error:
        return _failed(str(error), CHANGING)
    return 0


def _failed(message: str, hint: str | None) -> int:
    print(f"ERROR {message}", file=sys.stderr)
    if hint:
        print(f"TIP {hint}", file=sys.stderr)
    return 4


if __name__ == "__main__":
    sys.exit(main())

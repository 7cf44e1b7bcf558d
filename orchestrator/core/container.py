"""A Launch as a container, in plain values: what the Docker driver asks for, and what a compose file says. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.launch import Launch

# Each engine has an address of its own, so all take one port.
PORT = 8000
FILES, CACHE, TMP = "/orch/files", "/orch/cache", "/tmp"
# Docker's default for containers (1024) is 500 streams.
OPEN_FILES = 65536
LOG_SIZE, LOG_FILES = "20m", "3"
TMP_OPTIONS = "rw,exec,nosuid,nodev,mode=1777"
# Nobody but the engine's own user, and only what it was given.
DROPPED, SECURITY = ("ALL",), ("no-new-privileges",)
# Back after a crash, a restart of the daemon and a reboot. Not "unless-stopped": a daemon that was killed ends the
# containers that outlived it when it starts again, takes that for what somebody wanted, and leaves them stopped (seen
# with 20.10). The price: what `docker stop` has stopped comes back with the daemon.
RESTART = "always"
# Of the host's memory, what a container may take that says nothing of it.
MOST_OF_MEMORY = 0.9
# An arbitrary user has no entry in the image's passwd, and programs ask for both.
HOME_OF_ANYBODY = (("HOME", TMP), ("TMPDIR", TMP), ("USER", "orch"))


@dataclass(frozen=True)
class Mount:
    """A host directory (`source`) at `target` in the container."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True)
class HostContext:
    """What the machine adds to a Launch: host directories of the instance's files and of the cache, UID:GID, and the
    image's own entrypoint; `threads` is how many are to compute, `memory_mib` the limit of those that say
    nothing, `groups` may open the device nodes; `secret` is what {secret} stands for, "": it asks for none."""

    files: str
    cache: str
    user: str
    entrypoint: tuple[str, ...]
    threads: int
    memory_mib: int | None = None
    groups: tuple[str, ...] = ()
    secret: str = ""


@dataclass(frozen=True)
class ContainerSpec:
    """A container's every setting that differs between launches; what is the same for all is in the constants above.

    `port` is where it listens: on its own address, or with `host_network` on the host's.
    """

    image: str
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    mounts: tuple[Mount, ...]
    user: str
    groups: tuple[str, ...]
    port: int
    stop_grace_s: int
    shm_mib: int
    memory_mib: int | None
    pids: int
    devices: tuple[str, ...]
    gpus: tuple[str, ...]
    gpu_way: str
    host_network: bool


def container_spec(launch: Launch, context: HostContext) -> ContainerSpec:
    """The container of a launch; ValueError when it is none."""
    container = launch.container
    if container is None:
        raise ValueError("not a launch of a container")
    port = launch.port or PORT
    values = {"{port}": str(port), "{dir}": FILES, "{tmp}": TMP, "{cache}": CACHE, "{python}": "python3"}
    values |= {"{threads}": str(context.threads), "{secret}": context.secret}
    words: list[str] = []
    for word in launch.argv:
        words += context.entrypoint if word == "{entrypoint}" else (_filled(word, values),)
    own = {name for name, _ in launch.env}
    env = [pair for pair in HOME_OF_ANYBODY if pair[0] not in own]
    if not container.gpus:
        # Images ask for all GPUs by themselves, and a daemon whose default is the nvidia runtime gives them.
        env.append(("NVIDIA_VISIBLE_DEVICES", "void"))
    mounts = [Mount(context.files, FILES, read_only=False), Mount(context.cache, CACHE, read_only=False)]
    mounts += [Mount(path, path, read_only=True) for path in container.reads]
    mounts += [Mount(path, path, read_only=False) for path in container.writes]
    return ContainerSpec(
        image=container.image,
        command=tuple(words),
        env=(*env, *((name, filled) for name, value in launch.env if (filled := _filled(value, values)) or not value)),
        mounts=tuple(mounts),
        user=context.user,
        groups=context.groups,
        port=port,
        stop_grace_s=int(launch.stop_grace_s),
        shm_mib=container.shm_mib,
        memory_mib=container.memory_mib or context.memory_mib,
        pids=container.pids,
        devices=container.devices,
        gpus=container.gpus,
        gpu_way=container.gpu_way,
        host_network=container.host_network,
    )


def _filled(text: str, values: dict[str, str]) -> str:
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)  # not str.format: the text may be JSON
    return text

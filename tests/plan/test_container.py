"""A Launch as a container: placeholders, the image's own entrypoint, who it is and what it sees."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.container import CACHE, FILES, PORT, TMP, HostContext, Mount, container_spec
from orchestrator.core.launch import Container, Launch

HOST_CONTEXT = HostContext(
    "/home/containers/one/files", "/home/cache", "1000:1000", ("/usr/bin/tini", "--", "serve"), 3
)
CONTAINER = Container("sha256:1", reads=("/store", "/weights"), writes=("/home/admin",), gpus=("GPU-1",), gpu_way="cdi")
LAUNCH = Launch(("{entrypoint}", "--port", "{port}"), container=CONTAINER, stop_grace_s=35.5)


def test_the_entrypoint_is_the_images_own_word_by_word() -> None:
    assert container_spec(LAUNCH, HOST_CONTEXT).command == ("/usr/bin/tini", "--", "serve", "--port", str(PORT))


def test_placeholders_are_what_is_seen_inside() -> None:
    words = ("{python}", "{dir}/serve.yaml", "{cache}/x:{tmp}", '{"port": {port}}')
    made = container_spec(replace(LAUNCH, argv=words, env=(("A", "{dir}:{port}"),)), HOST_CONTEXT)
    assert made.command == ("python3", f"{FILES}/serve.yaml", f"{CACHE}/x:{TMP}", f'{{"port": {PORT}}}')
    assert ("A", f"{FILES}:{PORT}") in made.env


def test_a_fixed_port_is_kept() -> None:
    assert container_spec(LAUNCH, HOST_CONTEXT).port == PORT
    fixed = container_spec(replace(LAUNCH, port=8484), HOST_CONTEXT)
    assert (fixed.port, fixed.command[-1]) == (8484, "8484")


def test_it_sees_its_files_the_cache_and_what_it_reads_at_their_own_paths() -> None:
    assert container_spec(LAUNCH, HOST_CONTEXT).mounts == (
        Mount(HOST_CONTEXT.files, FILES, read_only=False),
        Mount(HOST_CONTEXT.cache, CACHE, read_only=False),
        Mount("/store", "/store", read_only=True),
        Mount("/weights", "/weights", read_only=True),
        Mount("/home/admin", "/home/admin", read_only=False),
    )


def test_a_user_without_a_name_has_a_home_unless_the_launch_says_where() -> None:
    assert dict(container_spec(LAUNCH, HOST_CONTEXT).env) == {"HOME": TMP, "TMPDIR": TMP, "USER": "orch"}
    own = dict(container_spec(replace(LAUNCH, env=(("HOME", "{cache}/home"),)), HOST_CONTEXT).env)
    assert own == {"HOME": f"{CACHE}/home", "TMPDIR": TMP, "USER": "orch"}


def test_what_the_daemon_takes_as_whole_numbers_is_whole() -> None:
    made = container_spec(replace(LAUNCH, container=replace(CONTAINER, memory_mib=None, shm_mib=2048)), HOST_CONTEXT)
    assert (made.stop_grace_s, made.shm_mib, made.memory_mib, made.user) == (35, 2048, None, "1000:1000")
    assert (made.gpus, made.gpu_way, made.host_network) == (("GPU-1",), "cdi", False)


def test_a_process_is_no_container() -> None:
    with pytest.raises(ValueError, match="not a launch of a container"):
        container_spec(replace(LAUNCH, container=None), HOST_CONTEXT)

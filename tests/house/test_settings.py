"""Where orch keeps its data, by what the environment says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.errors import HostError, UsageError
from orchestrator.settings import DEFAULT_LISTEN, SOCKET_PATH_MAX, read_settings


@pytest.mark.parametrize(
    ("environ", "data"),
    [
        ({"ORCH_HOME": "/a", "XDG_DATA_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_DATA_HOME": "/b", "HOME": "/c"}, "/b/orch"),
        ({"HOME": "/c"}, "/c/.local/share/orch"),
        ({"ORCH_HOME": "", "XDG_DATA_HOME": "", "HOME": "/c"}, "/c/.local/share/orch"),
    ],
)
def test_the_data_directory(environ: dict[str, str], data: str) -> None:
    assert read_settings(environ).data == Path(data)


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"XDG_DATA_HOME": ""}])
def test_without_a_home_it_asks_for_one(environ: dict[str, str]) -> None:
    with pytest.raises(HostError) as error:
        read_settings(environ)
    assert "ORCH_HOME" in error.value.hint


def test_a_relative_home_is_taken_from_the_working_directory() -> None:
    assert read_settings({"ORCH_HOME": "here"}).data == Path.cwd() / "here"


def test_everything_lies_below_the_data_directory() -> None:
    settings = read_settings({"ORCH_HOME": "/a"})
    paths = [settings.store, settings.environments, settings.processes, settings.logs, settings.records]
    paths += [settings.containers, settings.pins, settings.loaded_images, settings.hash_cache]
    # Each in a directory of its own, which the gateway's container sees.
    alone = [settings.admin, settings.keys.parent, settings.container_cache.parent]
    assert {path.parent for path in [*paths, *alone]} == {Path("/a")}
    assert len({*paths, *alone}) == len([*paths, *alone])


def test_the_address() -> None:
    assert read_settings({"HOME": "/c"}).listen == DEFAULT_LISTEN
    assert not read_settings({"HOME": "/c", "ORCH_LISTEN": ""}).listen_given
    given = read_settings({"HOME": "/c", "ORCH_LISTEN": "0.0.0.0:80"})
    assert (given.listen, given.listen_given) == ("0.0.0.0:80", True)


def test_the_origins_of_pages() -> None:
    assert read_settings({"HOME": "/c", "ORCH_ORIGINS": ""}).origins == ()
    said = " https://a.example,,chrome-extension://* , https://a.example"
    assert read_settings({"HOME": "/c", "ORCH_ORIGINS": said}).origins == ("https://a.example", "chrome-extension://*")


def test_the_limits_of_clients() -> None:
    assert (read_settings({"HOME": "/c"}).limits, read_settings({"HOME": "/c", "ORCH_LIMITS": ""}).limits) == (None, ())
    said = read_settings({"HOME": "/c", "ORCH_LIMITS": "idle_s=60, requests_per_key=8,"}).limits
    assert said == ("idle_s=60", "requests_per_key=8")


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("TRUE", True), ("0", False), ("", False)])
def test_offline_is_what_the_hub_client_understands_by_it(value: str, offline: bool) -> None:
    assert read_settings({"HOME": "/c", "HF_HUB_OFFLINE": value}).offline is offline


def test_a_socket_fits_its_address_however_deep_the_data_directory_is() -> None:
    name = "/admin/gateway.sock"
    fits = read_settings({"ORCH_HOME": "/" + "a" * (SOCKET_PATH_MAX - len(name) - 1)})
    assert fits.admin == fits.data / "admin"
    deep = [read_settings({"ORCH_HOME": "/" + letter * SOCKET_PATH_MAX}) for letter in ("a", "b", "ä")]
    assert all(len(str(settings.admin / "gateway.sock").encode()) <= SOCKET_PATH_MAX for settings in deep)
    assert len({settings.admin for settings in deep}) == len(deep)
    assert read_settings({"ORCH_HOME": str(deep[0].data)}).admin == deep[0].admin


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_root_finds_the_sockets_of_whose_the_data_is(tmp_path: Path) -> None:
    data = tmp_path / ("a" * SOCKET_PATH_MAX)
    data.mkdir()
    os.chown(data, 12345, 12345)
    assert read_settings({"ORCH_HOME": str(data)}).admin.name.startswith("orch-12345-")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("200GB", 200 * 10**9),
        ("1.5 TiB", 3 * 2**39),
        ("186gib", 186 * 2**30),
        ("3kB", 3000),
        ("7 B", 7),
        ("12345", 12345),
    ],
)
def test_the_limit_of_the_store(text: str, size: int) -> None:
    assert read_settings({"HOME": "/c", "ORCH_STORE_LIMIT": text}).store_limit == size


@pytest.mark.parametrize("text", ["much", "-1GB", "0", "0.0 GB", "200 G", "1e9", "200GBB", "1,5GB", "\u0665GB"])
def test_a_limit_that_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="ORCH_STORE_LIMIT") as error:
        read_settings({"HOME": "/c", "ORCH_STORE_LIMIT": text})
    assert "200GB" in error.value.hint


def test_shared_stores_are_each_named_once_and_never_the_own_one() -> None:
    environ = {"ORCH_HOME": "/a", "ORCH_STORES": "/x:/a/store::/y/../x:/z"}
    assert read_settings(environ).shared_stores == (Path("/x"), Path("/z"))
    assert read_settings({"ORCH_HOME": "/a"}).shared_stores == ()


def test_requests_at_once() -> None:
    assert read_settings({"HOME": "/c"}).pull_parallel == 4
    assert [read_settings({"HOME": "/c", "ORCH_PULL_PARALLEL": n}).pull_parallel for n in ("1", "16", "")] == [1, 16, 4]
    for wrong in ("0", "17", "-1", "many", "4.0"):
        with pytest.raises(UsageError, match="ORCH_PULL_PARALLEL") as caught:
            read_settings({"HOME": "/c", "ORCH_PULL_PARALLEL": wrong})
        assert "1 to 16" in caught.value.hint


def test_a_token_file_is_named_not_read() -> None:
    assert read_settings({"HOME": "/c", "ORCH_HF_TOKEN_FILE": "/run/secrets/hf"}).hf_token_file == Path(
        "/run/secrets/hf"
    )
    assert read_settings({"HOME": "/c"}).hf_token_file is None


def test_dockers_own_directory() -> None:
    assert read_settings({"HOME": "/c"}).docker_config == Path("/c/.docker")
    assert read_settings({"HOME": "/c", "DOCKER_CONFIG": "/d"}).docker_config == Path("/d")
    assert read_settings({"ORCH_HOME": "/a"}).docker_config is None
    said = read_settings({"HOME": "/c", "DOCKER_CONTEXT": "far", "DOCKER_HOST": ""})
    assert (said.docker_context, said.docker_host) == ("far", None)

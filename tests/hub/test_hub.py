"""What a revision means, which files come, and how they lie on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_repos import ASSETS, ROOT, TINY, UNTIED, digests, hub_server

from orchestrator.core.progress import silent, split_part
from orchestrator.core.weights import HubSource
from orchestrator.drivers.hub import Hub, Secret
from orchestrator.errors import HostError, SourceError


def repository(root: Path, *names: str) -> Path:
    """A directory with a file under each of these names, each with its own bytes."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"bytes of {name}")
    return root


@pytest.mark.parametrize(("source", "directory"), [(TINY, "tiny-qwen3"), (UNTIED, "untied-qwen3")])
def test_pull(hub: Hub, tmp_path: Path, source: HubSource, directory: str) -> None:
    snapshot = hub.snapshot(source, timeout=5)
    entries = hub.fetch(snapshot, tmp_path / "into", silent)
    expected = digests(ASSETS / directory)
    assert digests(tmp_path / "into") == expected
    assert {entry.path: (entry.size, entry.sha256) for entry in entries} == expected
    assert snapshot.size == sum(size for size, _ in expected.values())
    assert not [path for path in (tmp_path / "into").iterdir() if path.is_symlink() or not path.is_file()]
    by_name = {file.path: file for file in snapshot.files}
    assert by_name["config.json"].sha256 is None
    assert by_name["tokenizer.json"].sha256 == expected["tokenizer.json"][1]


def test_pull_of_an_adapter(tmp_path: Path) -> None:
    with hub_server.HubServer({"test/lora": ASSETS / "lora-a"}) as server:
        hub = Hub(server.url)
        hub.fetch(hub.snapshot(HubSource("test/lora", "main"), timeout=5), tmp_path, silent)
    assert digests(tmp_path) == digests(ASSETS / "lora-a")


def test_only_safetensors_and_their_tokenizer_are_asked_for(tmp_path: Path) -> None:
    wanted = {
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
        *("merges.txt", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
        "additional_chat_templates/tool_use.jinja",
    }
    others = [
        # An adapter beside merged weights is not part of them.
        *("adapter_config.json", "adapter_model.safetensors"),
        *("pytorch_model.bin", "model.pt", "model.pth", "optimizer.pkl", "modeling_mine.py", "README.md", "x.gguf"),
        *(
            "original/model.safetensors",
            "onnx/config.json",
            ".hidden.safetensors",
            "consolidated.safetensors",
            "consolidated-00001-of-00002.safetensors",
            "model.safetensors.py",
            ".gitattributes",
        ),
    ]
    root = repository(tmp_path / "repo", *wanted, *others)
    with hub_server.HubServer({"test/mixed": root}) as server:
        hub = Hub(server.url)
        entries = hub.fetch(hub.snapshot(HubSource("test/mixed", "main"), timeout=5), tmp_path / "into", silent)
        asked = {request.path.rpartition("/")[2] for request in server.requests if "/resolve/" in request.path}
    assert {entry.path for entry in entries} == wanted == set(digests(tmp_path / "into"))
    assert asked == {path.rpartition("/")[2] for path in wanted}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("pytorch_model.bin", "config.json"), "pickle"),
        (("config.json", "README.md"), "no weights"),
        (("original/model.safetensors", "config.json"), "no weights"),
    ],
)
def test_a_repository_without_safetensors_is_refused(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    with (
        hub_server.HubServer({"test/odd": repository(tmp_path, *names)}) as server,
        pytest.raises(SourceError, match=said) as caught,
    ):
        Hub(server.url).snapshot(HubSource("test/odd", "main"), timeout=5)
    assert "safetensors" in caught.value.hint


def test_a_named_file_comes_alone(tmp_path: Path) -> None:
    names = ("x-Q4_K_M.gguf", "x-Q6_K.gguf", "Q8_0/x-00001-of-00002.gguf", "README.md")
    root = repository(tmp_path / "repo", *names)
    with hub_server.HubServer({"test/gguf": root}) as server:
        hub, source = Hub(server.url), HubSource("test/gguf", "main")
        for wanted in (["x-Q6_K.gguf"], ["Q8_0/x-00001-of-00002.gguf", "x-Q4_K_M.gguf"]):
            snapshot = hub.snapshot(source, timeout=5, names=wanted)
            into = tmp_path / wanted[0].replace("/", "-")
            entries = hub.fetch(snapshot, into, silent)
            assert [entry.path for entry in entries] == wanted
            assert {name: (root / name).read_bytes() for name in wanted} == {
                name: (into / name).read_bytes() for name in digests(into)
            }


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("x-q6_k.gguf", "it has x-Q6_K.gguf"),
        ("x-Q6_K.ggu", "it has x-Q6_K.gguf"),
        ("something-else.gguf", "x-Q6_K.gguf, y.gguf"),
        ("model.safetensors", "no file like it; it has README.md, x-Q6_K.gguf"),
        ("../x-Q6_K.gguf", "x-Q6_K.gguf"),
        ("", "README.md"),
    ],
)
def test_a_named_file_that_is_not_there(tmp_path: Path, name: str, hint: str) -> None:
    root = repository(tmp_path, "x-Q6_K.gguf", "y.gguf", "README.md")
    with hub_server.HubServer({"test/gguf": root}) as server, pytest.raises(SourceError, match="has no file") as caught:
        Hub(server.url).snapshot(HubSource("test/gguf", "main"), timeout=5, names=[name])
    assert hint in caught.value.hint


def test_a_hub_whose_names_lead_out_of_the_directory(tmp_path: Path) -> None:
    root = repository(tmp_path, "x.gguf")
    with hub_server.HubServer({"test/gguf": root}) as server:
        for name in ("../x.gguf", "/etc/x.gguf", ".partial/x.gguf", "a//x.gguf", "a\\x.gguf"):
            server.repos["test/gguf"].blobs[name] = server.repos["test/gguf"].blobs["x.gguf"]
            server.repos["test/gguf"].blobs[name].name = name
            with pytest.raises(SourceError, match="has no file"):
                Hub(server.url).snapshot(HubSource("test/gguf", "main"), timeout=5, names=[name])


def test_a_branch_becomes_a_commit_and_a_commit_stays(hub: Hub, server: Any) -> None:
    commit = server.repos[TINY.repo].commit
    resolved = hub.snapshot(TINY, timeout=5)
    assert resolved.source == HubSource(TINY.repo, commit)
    assert hub.snapshot(resolved.source, timeout=5) == resolved


def test_files_are_asked_for_by_commit(hub: Hub, server: Any, tmp_path: Path) -> None:
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    resolves = [request.path for request in server.requests if "/resolve/" in request.path]
    assert resolves
    assert all(f"/resolve/{server.repos[TINY.repo].commit}/" in path for path in resolves)


def test_another_commit_than_the_pinned_one_is_refused(hub: Hub, server: Any) -> None:
    server.faults.append(hub_server.Fault("commit"))
    with pytest.raises(SourceError, match="0" * 40):
        hub.snapshot(HubSource(TINY.repo, server.repos[TINY.repo].commit), timeout=5)


def test_a_second_fetch_downloads_nothing(hub: Hub, server: Any, tmp_path: Path) -> None:
    snapshot = hub.snapshot(UNTIED, timeout=5)
    first = hub.fetch(snapshot, tmp_path, silent)
    asked = len(server.requests)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert hub.fetch(snapshot, tmp_path, silent) == first
    assert len(server.requests) == asked
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps


def test_only_what_is_missing_or_damaged_is_fetched(hub: Hub, server: Any, tmp_path: Path) -> None:
    snapshot = hub.snapshot(UNTIED, timeout=5)
    hub.fetch(snapshot, tmp_path, silent)
    before = digests(tmp_path)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    (tmp_path / "config.json").unlink()
    (tmp_path / "tokenizer.json").rename(tmp_path.parent / "elsewhere.json")
    (tmp_path / "tokenizer.json").symlink_to(tmp_path.parent / "elsewhere.json")
    server.requests.clear()
    hub.fetch(snapshot, tmp_path, silent)
    assert digests(tmp_path) == before
    assert not (tmp_path / "tokenizer.json").is_symlink()
    fetched = [request.path.rpartition("/")[2] for request in server.requests if "/resolve/" in request.path]
    assert sorted(fetched) == ["config.json", "model-00002-of-00003.safetensors", "tokenizer.json"]


def test_progress_counts_bytes_over_all_files(hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.snapshot(UNTIED, timeout=5)
    calls: list[tuple[str, str, int, int]] = []
    hub.fetch(snapshot, tmp_path, lambda what, done, total: calls.append((*split_part(what), done, total)))
    assert {(job, total) for job, part, _, total in calls if not part} == {(UNTIED.repo, snapshot.size)}
    sizes = {file.path: file.size for file in snapshot.files}
    assert all(done <= sizes[part] == total for _, part, done, total in calls if part)
    assert "model-00001-of-00003.safetensors" in {part for _, part, _, _ in calls}
    done = [done for _, part, done, _ in calls if not part]
    assert done == sorted(done)
    assert done[-1] == snapshot.size
    assert len(set(done)) > 5


def test_the_token_goes_to_the_hub_alone_and_is_never_shown(server: Any, tmp_path: Path) -> None:
    token = Secret("hf_verysecret\n")
    hub = Hub(server.url, token)
    hub.fetch(hub.snapshot(TINY, timeout=5), tmp_path, silent)
    sent = {(request.path.startswith("/cdn/"), request.token) for request in server.requests}
    assert sent == {(False, "Bearer hf_verysecret"), (True, "")}
    assert "verysecret" not in f"{token} {token!r} {hub!r} {vars(hub)}"
    with pytest.raises(HostError) as caught:
        Hub(server.url, Secret("hf_very\nsecret")).snapshot(TINY, timeout=5)
    assert "secret" not in caught.value.message + caught.value.detail


def test_offline_asks_nobody(server: Any, hub: Hub, tmp_path: Path) -> None:
    snapshot = hub.snapshot(TINY, timeout=5)
    entries = hub.fetch(snapshot, tmp_path / "full", silent)
    server.requests.clear()
    offline = Hub(server.url, offline=True)
    assert offline.fetch(snapshot, tmp_path / "full", silent) == entries
    with pytest.raises(HostError, match="offline"):
        offline.fetch(snapshot, tmp_path / "empty", silent)
    with pytest.raises(HostError, match="offline"):
        offline.snapshot(TINY, timeout=5)
    assert server.requests == []


PULL = """
import sys
from pathlib import Path
from orchestrator.core.progress import silent, split_part
from orchestrator.core.weights import HubSource
from orchestrator.drivers.hub import Hub
assert not {"huggingface_hub", "httpx2", "httpx"} & set(sys.modules), "imported before it is needed"
hub = Hub()
hub.fetch(hub.snapshot(HubSource("test/tiny", "main"), 5), Path(sys.argv[1]), silent)
"""


def test_the_client_takes_its_environment_and_is_quiet(server: Any, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_fromenv"}
    argv = [sys.executable, "-c", PULL, str(tmp_path / "into")]
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout + done.stderr == ""
    assert digests(tmp_path / "into") == digests(ASSETS / "tiny-qwen3")
    assert server.requests[0].token == "Bearer hf_fromenv"
    assert all(
        request.path.startswith((f"/api/models/{TINY.repo}/", f"/{TINY.repo}/", "/cdn/")) for request in server.requests
    )
    assert not (tmp_path / "home").exists()


def test_the_clients_own_offline_switch(server: Any, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, "-c", PULL, str(tmp_path / "into")]
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.splitlines()[-1].startswith("orchestrator.errors.HostError")
    assert "HF_HUB_OFFLINE" in done.stderr.splitlines()[-1]
    assert server.requests == []


def test_the_server_satisfies_the_hubs_own_client(server: Any, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    for name in ("config.json", "model.safetensors"):
        hf_hub_download(TINY.repo, name, endpoint=server.url, local_dir=tmp_path, token=False)
        assert (tmp_path / name).read_bytes() == (ASSETS / "tiny-qwen3" / name).read_bytes()

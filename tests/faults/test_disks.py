"""Disks that are full, or read-only, while something is pulled or built: told, nothing half-listed, then finished."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from orch_killed import Commands, commands_of, sound

from orchestrator.artifacts.store import Store

TINY = Path(__file__).parents[1] / "assets" / "tiny-qwen3"
# KiB that there are: not enough for the weights, for what is known beforehand of the artifacts, for what of them is not
# (a tokenizer in the GGUF and beside NVFP4), for the manifests.
SIZES = (4_000, 9_000, 15_700, 15_850, 16_000)
WHOLE = "64m"


@contextmanager
def disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of this size."""
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "orch-test", place], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk cannot be mounted here: {error}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


@contextmanager
def orch_on(place: Path, tmp_path: Path) -> Iterator[Commands]:
    with commands_of(tmp_path / "work", TINY, place / "home") as (orch, _):
        yield orch


def test_a_disk_that_fills_up_is_told_at_every_stage(tmp_path: Path) -> None:
    build = ("build", "-p", str(tmp_path / "work" / "tiny.toml"))
    with disk(tmp_path / "disk", f"{SIZES[0]}k") as place, orch_on(place, tmp_path) as orch:
        finished: list[set[str]] = []
        for size in SIZES:
            remount(place, f"size={size}k")
            ended = orch.run(*build, code=4)
            assert "Traceback" not in ended.said
            assert "free some disk space" in ended.said.lower()
            finished.append({key.rpartition("-")[0] for key in sound(place / "home" / "store")})
        assert finished == [set(), *[{"weights"}] * (len(SIZES) - 1)]
        remount(place, f"size={WHOLE}")
        orch.run(*build)
        assert {key.rpartition("-")[0] for key in sound(place / "home" / "store")} == {
            "weights",
            "gguf-q6_k",
            "gguf-nvfp4",
            "nvfp4a16",
        }
        assert Store(place / "home" / "store").unfinished() == {}


def test_a_read_only_disk_is_read_and_told(tmp_path: Path) -> None:
    profile = str(tmp_path / "work" / "tiny.toml")
    with disk(tmp_path / "disk", WHOLE) as place, orch_on(place, tmp_path) as orch:
        orch.run("build", "-p", profile, "--recipe", "nvfp4a16")
        (key,) = (key for key in orch.listed() if key.startswith("nvfp4a16"))
        remount(place, "ro")
        for words in (("artifacts", "ls"), ("artifacts", "verify"), ("status",), ("inspect", key)):
            orch.run(*words)
        orch.run("build", "-p", profile, "--recipe", "nvfp4a16")
        for words in (
            ("build", "-p", profile),
            ("artifacts", "rm", key),
            ("lock", "-p", profile, "-o", f"{place}/x.lock"),
        ):
            ended = orch.run(*words, code=4)
            assert "Read-only file system" in ended.said
            assert "Traceback" not in ended.said
        remount(place, "rw")
        orch.run("build", "-p", profile)
        assert len(sound(place / "home" / "store")) == 4

"""The package that users get: what is in it, and that it works where no checkout is."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from source import ROOT

pytestmark = pytest.mark.build

SHIPPED = sorted(
    path.relative_to(ROOT).as_posix()
    for room in ("templates", "profiles", "schemas")
    for path in (ROOT / room).rglob("*")
    if path.is_file()
)
CODE = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "orchestrator").rglob("*.py"))


def build(source: Path, out: Path, kind: str) -> Path:
    """Builds one distribution with the tools that are installed here."""
    words = ["-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="session", params=["checkout", "sdist"])
def wheel(request: pytest.FixtureRequest, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, from the checkout and from the sdist."""
    source = ROOT
    if request.param == "sdist":
        folder = tmp_path_factory.mktemp("unpacked")
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (source,) = folder.iterdir()
    return build(source, tmp_path_factory.mktemp("wheel"), "wheel")


def test_the_sdist_carries_all_that_a_wheel_is_made_of(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {*SHIPPED, *CODE, "LICENSE", "README.md", "pyproject.toml"}
    assert [name for name in names if name.startswith(("tests/", "scripts/"))] == []


def test_the_wheel_carries_every_template_and_profile_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    data = sorted(name.removeprefix("orchestrator/_data/") for name in names if name.startswith("orchestrator/_data/"))
    assert data == SHIPPED
    assert sorted(name for name in names if name.endswith(".py")) == CODE
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"orchestrator"}


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and, besides, the dependencies that are installed here; its `bin`."""
    root = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(root), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    (packages,) = root.glob("lib/python*/site-packages")
    # A directory named in a .pth file is searched, but its own .pth files, the editable checkout, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return root / "bin"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("profile ls", "qwen3-8b"),
        ("profile show qwen3-8b", 'repo = "Qwen/Qwen3-8B"'),
        ("render vllm", "served-model-name"),
        ("render ollama", "PARAMETER num_ctx 8192"),
        ("--help", "migrate"),
    ],
)
def test_the_wheel_works_without_the_checkout(installed: Path, tmp_path: Path, command: str, says: str) -> None:
    environ = {"ORCH_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    where = subprocess.run(
        [installed / "python", "-I", "-c", "import orchestrator; print(orchestrator.__file__)"],
        cwd=tmp_path,
        env=environ,
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed.parent)
    done = subprocess.run(
        [installed / "orch", *command.split()], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert says in done.stdout

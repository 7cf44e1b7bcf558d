"""What orch ships is what it says: profiles, GPUs, pins; and the exit codes are the documented ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from source import ROOT

from orchestrator import errors, resources
from orchestrator.core.calibration import parse_texts
from orchestrator.core.pins import Accelerator
from orchestrator.core.profile import parse_profile
from orchestrator.engines import ENGINES
from orchestrator.engines.settings import read_settings

MODELS = resources.model_profiles()
PROFILES = resources.root() / "profiles"


@pytest.mark.parametrize("name", MODELS)
def test_a_model_profile_is_valid_and_named_after_its_file(name: str) -> None:
    profile = parse_profile(MODELS[name].read_text(), MODELS[name].name, read_settings)
    assert profile.name == name
    assert profile.description
    assert profile.weights.hub is not None, "a shipped profile cannot name a directory"
    assert profile.weights.hub.pinned


def test_the_default_is_the_published_qwen3_8b() -> None:
    weights = parse_profile(MODELS["qwen3-8b"].read_text(), "qwen3-8b.toml", read_settings).weights
    assert (weights.repo, weights.revision) == ("Qwen/Qwen3-8B", "b968826d9c46dd6066d109eabc6255188de91218")


def test_gpus_are_named_after_their_files_and_no_two_match_one_name() -> None:
    gpus = resources.gpu_profiles()
    assert {gpu.name for gpu in gpus.values()} == gpus.keys()
    names = [name for gpu in gpus.values() for name in gpu.match]
    assert len(names) == len(set(names))
    assert all(gpu.source for gpu in gpus.values())


def test_pins_are_of_engines_and_named_after_their_files() -> None:
    pins = resources.engine_pins()
    assert {pin.engine for pin in pins.values()} == pins.keys()
    assert pins.keys() <= ENGINES.keys()


def test_no_image_is_called_verified_that_was_never_pulled() -> None:
    images = [image for pin in resources.engine_pins().values() for image in pin.docker]
    images += [*resources.gateway_bases().values(), *resources.tools_pin().docker]
    assert images
    for image in images:
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", image.digest)
        assert not image.verified
        assert not image.local
        assert image.source
        assert image.tag != "latest"


def test_vllm_on_a_cpu_asks_for_the_cpu_build_of_torch_and_never_for_a_bare_one() -> None:
    spec = resources.engine_pins()["vllm"].environment(Accelerator.CPU)
    assert spec is not None
    asked = [requirement for requirement in (*spec.requirements, *spec.indexed) if _name(requirement) == "torch"]
    assert set(asked) == {"torch==2.13.0+cpu"}
    assert "torch==2.13.0+cpu" in spec.indexed
    names = {_name(requirement) for requirement in spec.requirements}
    assert names & {"torchvision", "torchaudio", "torchcodec"} == set()
    assert not spec.resolve
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", requirement) for requirement in spec.requirements)
    assert len(names) == len(spec.requirements)


@pytest.mark.parametrize("name", resources.builder_pins())
def test_a_builder_is_pinned_completely_for_cpus_and_apart_from_engines(name: str) -> None:
    pin = resources.builder_pins()[name]
    assert (pin.engine, pin.docker) == (name, ())
    assert name not in ENGINES
    spec = pin.environment(Accelerator.CPU)
    assert spec is not None
    assert not spec.resolve
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", requirement) for requirement in spec.requirements)
    assert len({_name(requirement) for requirement in spec.requirements}) == len(spec.requirements)
    assert {_name(one) for one in spec.indexed} == {"torch"}
    assert pin.environment(Accelerator.CUDA) is not None


@pytest.mark.parametrize("name", resources.instrument_pins())
def test_an_instrument_is_pinned_completely_and_needs_no_gpu(name: str) -> None:
    pin = resources.instrument_pins()[name]
    assert (pin.engine, pin.docker) == (name, ())
    assert name not in ENGINES
    spec = pin.environment(Accelerator.CPU)
    assert spec is not None
    assert not spec.resolve
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", requirement) for requirement in spec.requirements)
    assert len({_name(requirement) for requirement in spec.requirements}) == len(spec.requirements)
    assert {_name(one) for one in spec.indexed} == {"torch"}


def test_the_article_is_as_it_was_given() -> None:
    told = resources.reference()
    points = {one.engine: [(point.users, point.throughput, point.ttft) for point in one.points] for one in told.engines}
    assert points == {
        "ollama": [(1, 161, 132), (2, 165, None), (4, 168, 3200), (8, 173, 7012)],
        "vllm": [(1, 68, 18), (2, 145, None), (4, 265, 22), (8, 332, 26)],
    }
    assert {one.engine: (one.memory_gb, one.five_models_gb, one.seconds_for_256) for one in told.engines} == {
        "ollama": (6.7, 33.5, 1.6),
        "vllm": (6.4, 5.7, 3.8),
    }
    assert all(note.source for note in told.notes)


def test_the_shipped_calibration_texts_are_texts_and_chats() -> None:
    path = resources.calibration_texts()
    texts = parse_texts(path.read_text("utf-8"), path.name, 1000)
    assert len(texts) >= 32
    assert {key for text in texts for key in text} == {"text", "messages"}


def _name(requirement: str) -> str:
    return re.split(r"[=<>~!\[ ;]", requirement)[0].lower().replace("_", "-")


def test_every_shipped_file_is_read_by_one_of_these() -> None:
    kinds = {"models": MODELS, "gpus": resources.gpu_profiles(), "engines": resources.engine_pins()}
    kinds |= {"builders": resources.builder_pins(), "instruments": resources.instrument_pins()}
    kinds["reference"] = [resources.reference().name]
    images = {Path("images", "gateway.toml"), Path("images", f"{resources.tools_pin().engine}.toml")}
    shipped = {path.relative_to(PROFILES) for path in PROFILES.rglob("*") if path.is_file()}
    assert shipped == {Path(kind, f"{name}.toml") for kind, names in kinds.items() for name in names} | {
        *images,
        resources.calibration_texts().relative_to(PROFILES),
    }


def test_there_is_a_base_for_the_gateway_of_each_python_from_the_oldest_on() -> None:
    oldest = re.search(r'^requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert oldest is not None
    minors = sorted(int(python.removeprefix("3.")) for python in resources.gateway_bases())
    assert minors == list(range(int(oldest[1]), minors[-1] + 1))
    assert sys.version_info.minor in minors


def test_vllm_has_an_image_for_drivers_that_do_not_run_the_newest_cuda() -> None:
    images = resources.engine_pins()["vllm"].docker
    majors = [int(image.cuda.split(".")[0]) for image in images if image.cuda is not None]
    # The first that the driver can run is taken: the newest first.
    assert majors == sorted(majors, reverse=True)
    assert set(majors) >= {12, 13}


def test_exit_codes_are_those_of_the_tree_in_the_docstring() -> None:
    drawn = re.findall(r"^(\W*)(\w+).*?\s(\d+)$", errors.__doc__ or "", re.MULTILINE)
    tree = {name: (int(code), "StepFailed" if "|" in indent else "OrchError") for indent, name, code in drawn}
    kinds = {
        kind.__name__: (kind.exit_code, kind.__base__.__name__)
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.OrchError) and kind is not errors.OrchError
    }
    assert tree == kinds
    codes = [code for code, _ in kinds.values()] + [errors.OK, errors.BUG, errors.DRIFT]
    assert len(codes) == len(set(codes))
    assert errors.OrchError.exit_code == errors.BUG
    for name in ("OK", "BUG", "DRIFT"):
        assert re.search(rf"\b{getattr(errors, name)}\b", (errors.__doc__ or "").partition("Besides these")[2])

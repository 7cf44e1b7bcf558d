"""An engine with a store of its own: what is imported into it, what hangs there, and what fails meanwhile."""

from __future__ import annotations

import pytest
from fakes.asks import plan_of, tiny
from scenarios import planned, start

from orchestrator.core.launch import Children
from orchestrator.engines import ENGINES
from orchestrator.errors import StepFailed
from orchestrator.observe import observe
from orchestrator.probes import digests


def test_an_adapter_of_ollama_is_served_by_a_model_of_its_own() -> None:
    world = start("lora-add-ollama")
    world.run(planned("lora-add-ollama"))
    (engine,) = world.observe().engines
    kept = world.target.processes[engine.instance.name].kept
    of_base = kept.models["tiny:latest"]
    assert len(kept.models) == 3
    assert {blobs[: len(of_base)] for blobs in kept.models.values()} == {of_base}
    # One blob of the base, and one of each adapter.
    assert kept.blobs == {blob for blobs in kept.models.values() for blob in blobs}
    assert len(kept.blobs) == 3
    assert [world.chat(name) for name in ("tiny", "a", "b")] == [200, 200, 200]


def test_a_restarted_ollama_has_what_was_imported() -> None:
    world = start("lora-add-ollama")
    world.run(planned("lora-add-ollama"))
    world.target.crash("tiny-ollama-g1")
    world.target.start("tiny-ollama-g1")
    world.clock.sleep(1.0)
    assert [world.chat(name) for name in ("tiny", "a", "b")] == [200, 200, 200]


def test_what_is_uploaded_already_is_not_uploaded_again() -> None:
    world = start("lora-add-ollama")
    (engine,) = world.observe().engines
    calls = ENGINES["ollama"].import_requests(engine.deployment, digests(world.world))
    kept = world.target.processes["tiny-ollama-g1"].kept
    kept.models.clear()
    kept.blobs = {call.path.removeprefix("/api/blobs/") for call in calls if call.file}
    assert len(kept.blobs) == 2
    world.run(plan_of("up", tiny(), world.observe()))
    assert [call for call in world.faults.calls if call.startswith("http.post /api/blobs")] == []
    assert [call for call in world.faults.calls if call == "http.post /api/create"] != []
    assert (world.chat("tiny"), world.chat("a")) == (200, 200)


A_CHILD = Children(1, 0)


@pytest.mark.parametrize(
    ("children", "computes", "asked", "hangs"),
    [
        (A_CHILD, False, True, True),
        # It answers others, and the question waits for them.
        (A_CHILD, True, True, False),
        # Its process is gone: a question would have it loaded anew.
        (Children(0, 0), False, False, False),
        # Nobody sees what it does.
        (None, False, False, False),
    ],
)
def test_a_model_hangs_if_it_neither_answers_nor_computes(
    children: Children | None, computes: bool, asked: bool, hangs: bool
) -> None:
    world = start("lora-add-ollama")
    process = world.target.processes["tiny-ollama-g1"]
    assert process.server is not None
    process.server.hangs, process.children, process.computes = "tiny:latest", children, computes
    world.faults.recording = True
    (engine,) = observe(world.world).engines
    assert ("http.post /api/generate" in world.faults.calls) is asked
    assert (engine.hangs, engine.answers) == (hangs, not hangs)


def test_what_another_creation_has_taken_away_is_asked_for_again() -> None:
    world = start("first-up-ollama")
    lost: list[str] = []

    def lose_once(index: int, what: str) -> None:
        kept = world.target.processes["tiny-ollama-g1"].kept if what == "http.post /api/create" else None
        if kept is not None and not lost:
            lost.extend(kept.blobs)
            kept.blobs.clear()
        elif kept is not None:
            kept.blobs.update(lost)

    world.faults.before = lose_once
    world.run(planned("first-up-ollama"))
    assert len(lost) == 1
    assert world.chat("tiny") == 200
    # Of the upload, and of what was made of it, the latter is left.
    assert len(world.target.processes["tiny-ollama-g1"].kept.blobs) == 1


def test_an_import_that_fails_in_its_stream() -> None:
    world = start("first-up-ollama")

    def lose_blobs(index: int, what: str) -> None:
        if what == "http.post /api/create":
            world.target.processes["tiny-ollama-g1"].kept.blobs.clear()

    world.faults.before = lose_blobs
    with pytest.raises(StepFailed, match=r"tiny-ollama-g1 refused: open .*: no such file or directory"):
        world.run(planned("first-up-ollama"))
    assert world.target.processes == {}


def test_an_artifact_that_has_left_the_store_meanwhile() -> None:
    world = start("first-up-ollama")

    def lose(index: int, what: str) -> None:
        if what.startswith("target.ensure tiny"):
            world.store.entries.clear()

    world.faults.after = lose
    with pytest.raises(StepFailed, match=r"model\.gguf is not in the store"):
        world.run(planned("first-up-ollama"))

"""What single steps do when the world is not as it should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from fakes.asks import CPU, gpu, plan_of, tiny
from fakes.compare import what_serves
from fakes.gateway import FakeHttp
from fakes.target import Fate
from fakes.world import FakeWorld
from scenarios import planned, start

from orchestrator.app.deploy import Options, Waiting
from orchestrator.core.launch import InstanceState
from orchestrator.core.plan import Action, Plan
from orchestrator.core.progress import Progress, silent
from orchestrator.core.routes import Backend, Route
from orchestrator.core.steps import Drain, VerifyRoute
from orchestrator.drivers.base import Reply
from orchestrator.errors import HostError, StepFailed, StepStranded

MIB = 2**20
OF_REQUESTS = "serving.context or serving.parallel in the profile"
OF_VLLM = "engines.vllm.kv_cache_mib in the profile"
FREE = "free some of this machine's memory"
VLLM_LOG = """\
(EngineCore pid=7) INFO 11-22 10:00:00 [core.py:1] loading
(EngineCore pid=7) ERROR 11-22 10:00:01 [core.py:2] ValueError: No available memory for the cache blocks. Try more.
(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_a_dead_engine_fails_at_once_with_its_telling_line() -> None:
    world = start("migrate")
    before = what_serves(world.observe())
    world.target.fates["tiny-vllm-g3"] = Fate(log=VLLM_LOG, code=0)
    began = world.clock.now
    with pytest.raises(StepFailed) as ended:
        world.run(planned("migrate"))
    assert world.clock.now - began < 2
    assert ended.value.message == (
        "Could not wait for tiny-vllm-g3 to answer: tiny-vllm-g3 exited with code 0: "
        "ValueError: No available memory for the cache blocks. Try more."
    )
    assert ended.value.hint == "Raise engines.vllm.kv_cache_mib or gpu_memory_utilization."
    assert VLLM_LOG.strip() in ended.value.detail
    assert what_serves(world.observe()) == before


LITTLE = "raise the limit of the control group that it runs in"


@pytest.mark.parametrize(
    ("command", "instance", "limit", "said", "hint"),
    [
        ("up llamacpp", "tiny-llamacpp-g1", 700 * MIB, "its limit is 700 MiB", f"Lower {OF_REQUESTS}, or {LITTLE}."),
        ("up vllm", "tiny-vllm-g1", 700 * MIB, "its limit is 700 MiB", f"Lower {OF_VLLM}, or {LITTLE}."),
        ("up vllm", "tiny-vllm-g1", 0, "this machine has no more", f"Lower {OF_VLLM}, or {FREE}."),
        ("up ollama --target docker", "tiny-ollama-g1", MIB, "its limit is 1 MiB", f"Lower {OF_REQUESTS}, or {FREE}."),
    ],
)
def test_an_engine_that_ran_out_of_memory_is_told_as_that(
    command: str, instance: str, limit: int, said: str, hint: str
) -> None:
    """Its log ends anywhere, and its keeper may still be ending what is left of it when it is first seen dead."""
    world = FakeWorld(replace(CPU, programs={"ollama": "/usr/bin/ollama"}))
    target = world.docker if "docker" in command else world.target
    target.fates[instance] = Fate(log="E loading model\n", memory_limit=limit, late=3.0)
    with pytest.raises(StepFailed) as ended:
        world.run(plan_of(command, tiny(), world.observe()))
    assert ended.value.message.endswith(f"{instance} ran out of memory ({said}).")
    assert ended.value.hint == f"{hint} All of its log: orch logs {instance}"
    assert "loading model" in ended.value.detail


def test_a_container_is_given_more_memory_in_its_profile() -> None:
    world = FakeWorld(CPU)
    world.docker.fates["tiny-ollama-g1"] = Fate(log="E\n", memory_limit=500 * MIB)
    profile = tiny(serving={"context": 512, "memory_mib": 500})
    with pytest.raises(StepFailed) as ended:
        world.run(plan_of("up ollama --target docker", profile, world.observe()))
    assert ended.value.hint.startswith(f"Lower {OF_REQUESTS}, or raise serving.memory_mib.")


def test_on_a_gpu_no_setting_makes_it_hold_less_of_this_memory() -> None:
    world = FakeWorld(replace(CPU, gpus=(gpu("GeForce RTX 5090", (12, 0), 32),)))
    world.target.fates["tiny-vllm-g1"] = Fate(log="E\n", memory_limit=500 * MIB)
    with pytest.raises(StepFailed) as ended:
        world.run(plan_of("up vllm", tiny(), world.observe()))
    assert ended.value.hint.startswith("Raise the limit of the control group that it runs in.")


def test_how_it_died_is_not_waited_for_for_ever() -> None:
    world = FakeWorld(CPU)
    world.target.fates["tiny-llamacpp-g1"] = Fate(log="0 E no model\n", late=1000.0)
    with pytest.raises(StepFailed, match="tiny-llamacpp-g1 is not running: no model"):
        world.run(plan_of("up llamacpp", tiny(), world.observe()))
    assert world.clock.now < 60


def test_an_engine_that_was_restarted_meanwhile_has_died() -> None:
    """Its keeper may have it running again at the next look."""
    world = start("migrate")
    polls = 0

    def crash_and_restart(index: int, what: str) -> None:
        nonlocal polls
        polls += what == "http.get /v1/models"
        if polls == 1 and what == "http.get /v1/models":
            world.target.crash("tiny-vllm-g3", code=3)
            world.target.start("tiny-vllm-g3")

    world.faults.after = crash_and_restart
    with pytest.raises(StepFailed, match="tiny-vllm-g3 exited with code 3"):
        world.run(planned("migrate"))
    assert polls == 1


@pytest.mark.parametrize("name", ["lora-add-llamacpp", "rollback"])
def test_llamacpp_is_never_asked_without_all_scales(name: str) -> None:
    world = start(name)
    world.run(planned(name))
    (engine,) = world.observe().engines
    server = world.target.processes[engine.instance.name].server
    assert server is not None
    for public in [*engine.deployment.public_names, *(a.name for a in engine.deployment.adapters)]:
        assert world.chat(public) == 200
    ids = list(range(len(engine.deployment.adapters)))
    assert [[entry["id"] for entry in body["lora"]] for body in server.asked] == [ids] * len(server.asked)
    switched_on = {tuple(entry["scale"] for entry in body["lora"]) for body in server.asked}
    assert len(switched_on) == len(ids) + 1


def test_an_engine_that_dies_without_a_word() -> None:
    world = start("migrate")
    world.target.fates["tiny-vllm-g3"] = Fate(log="\n", code=-9)
    with pytest.raises(StepFailed) as ended:
        world.run(planned("migrate"))
    assert "exited with code -9" in ended.value.message
    assert "orch logs tiny-vllm-g3" in ended.value.hint


def test_a_hanging_engine_fails_at_the_deadline() -> None:
    world = start("migrate")
    before = what_serves(world.observe())
    world.target.fates["tiny-vllm-g3"] = Fate(hangs=True)
    began = world.clock.now
    with pytest.raises(StepFailed) as ended:
        world.run(plan_of("migrate vllm", tiny(), world.observe(), Options(waiting=Waiting(ready_s=5.0))))
    assert 5.0 <= world.clock.now - began < 6.0
    assert "did not answer within 5 s" in ended.value.message
    assert ended.value.hint.startswith("A larger --timeout gives it longer")
    assert ended.value.detail == "starting"
    assert what_serves(world.observe()) == before


def test_an_engine_that_somebody_else_stops_while_it_starts() -> None:
    world = start("migrate")

    def stop_it(index: int, what: str) -> None:
        if what == "http.get /v1/models":
            world.target.processes.pop("tiny-vllm-g3", None)

    world.faults.after = stop_it
    with pytest.raises(StepFailed) as ended:
        world.run(planned("migrate"))
    assert "tiny-vllm-g3 is gone" in ended.value.message


def test_a_stranger_on_the_port_is_not_taken_for_the_engine() -> None:
    world = start("migrate")

    def swap(index: int, what: str) -> None:
        if what.startswith("target.ensure tiny-vllm"):
            server = world.target.processes["tiny-vllm-g3"].server
            assert server is not None
            server.deployment = server.deployment.model_copy(update={"model_path": "/another"})

    world.faults.after = swap
    with pytest.raises(StepFailed) as ended:
        world.run(plan_of("migrate vllm", tiny(), world.observe(), Options(waiting=Waiting(ready_s=3.0))))
    assert "did not answer within 3 s" in ended.value.message


def test_an_engine_that_refuses_a_chat_fails_at_once() -> None:
    world = start("first-up-ollama")

    def forget(index: int, what: str) -> None:
        # The model is listed, and then not served.
        if what == "http.get /api/tags" and (server := world.target.processes["tiny-ollama-g1"].server):
            server.kept.models.clear()

    world.faults.after = forget
    with pytest.raises(StepFailed) as ended:
        world.run(planned("first-up-ollama"))
    assert "refuses a first request" in ended.value.message
    assert "not found" in ended.value.detail


def test_a_gateway_that_cannot_start_is_told_and_the_engine_taken_back() -> None:
    world = FakeWorld(CPU)
    world.target.fates["gateway"] = Fate(log="Traceback:\nImportError: libffi.so.8: no such file\n")
    with pytest.raises(StepFailed) as ended:
        world.run(plan_of("up llamacpp", tiny(), world.observe()))
    assert ended.value.message.endswith(
        "The gateway did not start at 127.0.0.1:8484: ImportError: libffi.so.8: no such file"
    )
    assert "ddress" not in ended.value.hint
    assert "orch logs gateway" in ended.value.hint
    assert "Traceback" in ended.value.detail
    assert what_serves(world.observe()) == what_serves(FakeWorld(CPU).observe())


@pytest.mark.parametrize(
    "said",
    [
        "The address 127.0.0.1:8484 is already in use. Stop what listens there, or choose another address.",
        "Cannot listen on 10.9.8.7:8484: Cannot assign requested address.",
    ],
)
def test_a_gateway_that_cannot_have_its_address_says_so(said: str) -> None:
    world = FakeWorld(CPU)
    world.target.fates["gateway"] = Fate(log=f"--- started ---\nERROR {said}\n--- ended ---\n")
    with pytest.raises(StepFailed) as ended:
        world.run(plan_of("up llamacpp", tiny(), world.observe()))
    assert ended.value.message.endswith(f"did not start at 127.0.0.1:8484: {said}")
    assert "--listen HOST:PORT" in ended.value.hint


def test_a_gateway_that_ran_out_of_memory_or_hangs_is_told_as_that() -> None:
    for fate, told in (
        (Fate(log="INFO listening\n", memory_limit=1 << 25), "it ran out of memory (its limit is 32 MiB)"),
        (Fate(hangs=True), "did not answer within 30 s"),
    ):
        world = FakeWorld(CPU)
        world.target.fates["gateway"] = fate
        with pytest.raises(StepFailed) as ended:
            world.run(plan_of("up llamacpp", tiny(), world.observe()))
        assert told in ended.value.message
        assert "ddress" not in ended.value.hint


class SlowLoad(FakeHttp):
    """An engine that loads its model for the first request, and begins anew when nobody waits for that any more, as
    Ollama does."""

    load_s = 200.0

    def __init__(self, world: FakeWorld) -> None:
        super().__init__(world.targets, world.faults)
        self.clock = world.clock
        self.loads = 0
        self.loaded = False

    def post(
        self, url: str, body: Mapping[str, Any], timeout_s: float, progress: Progress = silent, key: str = ""
    ) -> Reply | None:
        if not self.loaded:
            self.loads += 1
            self.clock.sleep(min(timeout_s, self.load_s))
            self.loaded = timeout_s >= self.load_s
        return super().post(url, body, timeout_s, progress, key) if self.loaded else None


def test_a_first_answer_may_take_as_long_as_the_engine_has() -> None:
    world = FakeWorld(CPU)
    world.http = slow = SlowLoad(world)
    world.run(plan_of("up llamacpp", tiny(), world.observe()))
    assert (world.chat("tiny"), slow.loads) == (200, 1)


def test_a_new_adapter_may_take_as_long_to_load_as_an_engine_to_start() -> None:
    world = start("lora-add-ollama")
    world.http = slow = SlowLoad(world)
    world.run(planned("lora-add-ollama"))
    assert (world.chat("b"), slow.loads) == (200, 1)


def test_one_that_loads_longer_than_it_has_is_told_with_a_hint_that_helps() -> None:
    world = FakeWorld(CPU)
    world.http = SlowLoad(world)
    with pytest.raises(StepFailed) as ended:
        world.run(plan_of("up llamacpp", tiny(), world.observe(), Options(waiting=Waiting(ready_s=150.0))))
    assert "did not answer within 150 s" in ended.value.message
    assert "A larger --timeout" in ended.value.hint


def test_a_new_process_is_asked_for_what_no_other_has_answered() -> None:
    """llama.cpp takes adapters at its start only: the fortieth would else be asked for with all the others."""
    world = FakeWorld(CPU)

    def asked(command: str) -> int:
        world.faults.calls.clear()
        world.run(plan_of(command, tiny(), world.observe()))
        return sum(call == "http.post /v1/chat/completions" for call in world.faults.calls)

    assert asked("up llamacpp") == 2, "the engine, and through the gateway"
    assert asked("lora add a") == 3
    assert asked("lora add b") == 3
    assert asked("lora add a@2") == 3, "of other bytes it is asked again"
    # What does not serve has answered nobody.
    world.target.stop("tiny-llamacpp-g4", silent)
    assert asked("up llamacpp") == 4


def test_a_name_that_another_profile_took_meanwhile() -> None:
    """The plan was made before; the gateway decides."""
    world = start("migrate")
    plan = planned("lora-add-llamacpp")

    def take(index: int, what: str) -> None:
        if what.startswith("target.ensure"):
            world.gateway.set_routes("other", (Route("b", "other", (Backend("other-vllm-g1", "http://127.0.0.1:1"),)),))

    world.faults.after = take
    with pytest.raises(StepFailed) as ended:
        world.run(plan)
    assert "already served by 'other'" in ended.value.message
    assert [route.backend.instance for route in world.observe().routes_of("tiny")] == ["tiny-llamacpp-g2"] * 3


def test_an_engine_that_is_adopted_keeps_its_process() -> None:
    world = start("migrate")
    world.target.processes["tiny-llamacpp-g2"].supervised = False
    pid = world.target.processes["tiny-llamacpp-g2"].pid
    world.run(plan_of("up", tiny(), world.observe()))
    (engine,) = world.observe().engines
    assert (engine.instance.pid, engine.instance.supervised) == (pid, True)


def test_a_restart_brings_hot_loaded_adapters_back() -> None:
    world = start("lora-add-vllm")
    world.run(planned("lora-add-vllm"))
    world.target.crash("tiny-vllm-g1")
    assert world.target.processes["tiny-vllm-g1"].state is InstanceState.BACKOFF
    world.target.start("tiny-vllm-g1")
    world.clock.sleep(1.0)
    (engine,) = world.observe().engines
    assert [name for name, _ in engine.loaded or ()] == ["a", "b"]
    assert (world.chat("a"), world.chat("b")) == (200, 200)


def test_what_is_in_flight_ends_before_its_engine_does() -> None:
    world = start("migrate")
    world.gateway.in_flight["tiny-llamacpp-g2"] = 2
    left_at_stop = []

    def end_one(index: int, what: str) -> None:
        if what.startswith("target.stop"):
            left_at_stop.append(world.gateway.in_flight["tiny-llamacpp-g2"])

    world.faults.before = end_one
    began = world.clock.now
    world.run(plan_of("migrate vllm", tiny(), world.observe(), Options(waiting=Waiting(drain_s=4.0))))
    assert left_at_stop == [0]
    assert world.clock.now - began >= 4.0


def test_draining_needs_no_gateway() -> None:
    world = FakeWorld(CPU)
    plan = plan_of("down --all", tiny(), start("down").observe())
    assert any(isinstance(action.step, Drain) for action in plan.actions)
    world.target.processes = start("down").target.processes
    world.target.stop("gateway", silent)
    with pytest.raises(StepStranded):
        # The routes were seen, so their removal is planned; the gateway died since.
        world.run(plan)
    world.run(plan_of("down --all", tiny(), world.observe()))
    assert world.target.processes == {}


def stuck_gateway() -> FakeWorld:
    world = start("migrate")
    world.gateway.stuck = world.target.processes["gateway"].pid
    assert world.observe().gateway.status is None
    return world


def test_a_stuck_gateway_is_replaced_and_has_its_routes_again() -> None:
    world = stuck_gateway()
    world.run(plan_of("up", tiny(), world.observe()))
    assert world.chat("tiny") == 200


def test_a_stuck_gateway_can_be_taken_down() -> None:
    world = stuck_gateway()
    world.run(plan_of("down --all", tiny(), world.observe()))
    assert (world.target.processes, world.observe().deployed) == ({}, ())


def test_asking_through_a_gateway_that_is_not_there() -> None:
    world = FakeWorld(CPU)
    with pytest.raises(HostError, match="does not answer"):
        world.run(Plan("up", (Action(VerifyRoute(("tiny",))),), commit=1))


def test_a_container_is_started_in_docker_and_routed_to_at_its_own_address() -> None:
    world = start("migrate-to-docker")
    world.run(planned("migrate-to-docker"))
    assert [*world.target.processes] == ["gateway"]
    (engine,) = world.observe().engines
    assert (engine.instance.target, engine.instance.url) == ("docker", "http://172.30.0.2:8000")
    assert {route.backend.url for route in world.observe().routes_of("tiny")} == {engine.instance.url}


def test_a_daemon_that_goes_away_in_between() -> None:
    world = start("migrate-to-docker")
    gone = HostError("Docker does not answer.", hint="Start it: systemctl start docker")

    def go(index: int, what: str) -> None:
        if what.startswith("http.get /v1/models"):
            world.docker.unreachable = gone

    world.faults.after = go
    with pytest.raises(StepStranded) as ended:
        world.run(planned("migrate-to-docker"))
    assert "Docker does not answer" in ended.value.message
    # What served before does still; the next command sees what is left there and takes it away.
    assert (world.chat("tiny"), world.chat("a")) == (200, 200)
    with pytest.raises(HostError, match="Docker does not answer"):
        plan_of("up", tiny(), world.observe())
    world.docker.unreachable, world.faults.after = None, lambda index, what: None
    world.run(plan_of("up", tiny(), world.observe()))
    assert world.docker.processes == {}
    assert (world.chat("tiny"), world.chat("a")) == (200, 200)

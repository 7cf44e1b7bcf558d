"""Where nobody has said where an engine is to run, the plan says why it is not in a container."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.asks import CPU, DAEMON, MadeUpOrchestrator, gpu, nothing_but, tiny

from orchestrator.app.deploy import Options, plan_for, plan_up
from orchestrator.app.intent import MoveTo, Serve
from orchestrator.core.deployment import DeploymentSpec, Desired
from orchestrator.core.docker import DockerFacts
from orchestrator.core.host import Host
from orchestrator.core.launch import LOCAL
from orchestrator.core.plan import Plan, Remark
from orchestrator.errors import HostError

RTX_5090 = replace(CPU, gpus=(gpu("GeForce RTX 5090", (12, 0), 32),))
DOWN = DockerFacts(problem="This user may not use the Docker daemon at /x.", hint="Add the user to the group docker.")


def planned(engine: str, host: Host, docker: DockerFacts, target: str | None = None, said: str | None = None) -> Plan:
    """`up ENGINE`, with ORCH_TARGET as it is `said`."""
    orch = MadeUpOrchestrator(host, docker)
    orch.settings = replace(orch.settings, target=said)
    return plan_up(orch, Serve(engine, tiny(), target), nothing_but(host), Options())


def why(plan: Plan) -> list[str]:
    return [item.why for item in plan.items if isinstance(item, Remark) and item.what == "use Docker"]


def test_a_daemon_that_cannot_be_used_is_told_before_anything_is_installed() -> None:
    plan = planned("vllm", RTX_5090, DOWN)
    assert plan.items[0] == Remark("use Docker", DOWN.problem)
    assert any("install vllm-cuda" in action.step.what for action in plan.actions)


def test_without_an_image_for_this_machine_that_is_told() -> None:
    assert why(planned("vllm", CPU, DAEMON)) == ["no image of vllm is pinned for what this machine computes on"]


@pytest.mark.parametrize(("target", "said"), [("local", None), (None, "local")])
def test_where_somebody_has_said_so_nothing_is_told(target: str | None, said: str | None) -> None:
    assert why(planned("vllm", RTX_5090, DOWN, target, said)) == []


def test_what_is_moved_from_an_engine_that_is_never_in_a_container_is_told_that_it_stays_a_process() -> None:
    def moved(docker: DockerFacts, present: str, target: str | None = None) -> list[str]:
        orch = MadeUpOrchestrator(RTX_5090, docker)
        orch.settings = replace(orch.settings, target=None)
        spec = DeploymentSpec(profile=tiny(), engine=present, target=LOCAL)
        observed = replace(nothing_but(RTX_5090), desired={"tiny": Desired(spec=spec)})
        return why(plan_for(orch, "migrate", MoveTo("vllm", "tiny", target), observed, Options()))

    assert moved(DAEMON, "llamacpp") == ["tiny is served by processes, and stays so; --target docker moves it"]
    assert moved(DOWN, "llamacpp") == [DOWN.problem]
    assert moved(DAEMON, "llamacpp", "docker") == moved(DAEMON, "llamacpp", "local") == moved(DAEMON, "ollama") == []


def test_an_engine_that_is_never_in_a_container_needs_no_reason() -> None:
    assert why(planned("llamacpp", CPU, DOWN)) == []


def test_a_program_that_is_missing_is_told_with_why_no_container() -> None:
    with pytest.raises(HostError) as refused:
        planned("ollama", CPU, DOWN)
    assert refused.value.message == (
        "There is no ollama binary on PATH. Nor is Docker used: This user may not use the Docker daemon at /x."
    )
    assert refused.value.hint == (f"{DOWN.hint} Or without Docker: install Ollama, or serve with another engine.")

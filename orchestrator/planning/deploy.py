"""Deciding: a wanted Deployment and an Observed world make a Plan. Pure.

`plan_deploy` serves up, migrate, rollback and lora alike: bring the wanted generation up beside what serves, switch,
drain, stop the rest. What is already so becomes a Skip with its reason; `status` is this plan, not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orchestrator.core.deployment import Deployment, Desired
from orchestrator.core.form import Form
from orchestrator.core.gateway import GatewaySpec
from orchestrator.core.observed import EngineObserved, Observed
from orchestrator.core.plan import Action, Plan, Remark, Skip
from orchestrator.core.resolved import Resolved
from orchestrator.core.routes import FIRST_WITH_DIGESTS, PROTOCOL, Backend
from orchestrator.core.steps import EnsureEngine, LoadAdapter, SetRoute, Step, StopEngine
from orchestrator.planning.forms.base import Change
from orchestrator.planning.forms.choice import Choice, begun_before, chosen_form, fit_of, share_to_raise, was_begun
from orchestrator.planning.forms.handover import handover
from orchestrator.planning.forms.overlap import overlap
from orchestrator.planning.keys import dropped_items, kept_items, read_items
from orchestrator.planning.parts import (
    Limits,
    adapters_to_load,
    adapters_to_unload,
    cannot_sleep,
    chosen_generation,
    engine_files,
    engine_imports,
    engine_ready_item,
    engine_start_items,
    gateway_items,
    gateway_ready_items,
    matching_generation,
    names_to_verify,
    proof_items,
    record_item,
    replaced_gateways,
    spare_in_store,
    standby_remarks,
    switch_items,
    verify_item,
)
from orchestrator.planning.preconditions import (
    refuse_damaged,
    refuse_foreign_names,
    refuse_small_disk,
    refuse_unreachable,
    unknown_room,
)
from orchestrator.planning.prerequisites import prerequisite_items


def plan_deploy(
    verb: str,
    resolved: Resolved,
    desired: Desired,
    observed: Observed,
    gateway: GatewaySpec,
    limits: Limits,
    fresh: bool = False,
    form: Form | None = None,
) -> Plan:
    """Make the profile be served as resolved, and only so; `fresh`: by a new generation, whatever runs; in this form,
    where one is asked for.

    Refuses (PlanRefused) what cannot be done.
    """
    wanted = resolved.deployment
    refuse_unreachable(observed)
    refuse_damaged(wanted.profile, observed)
    refuse_foreign_names(resolved, observed)
    mine = observed.engines_of(wanted.profile)
    serving = next((one for one in mine if one.deployment.instance == observed.serving(wanted.profile)), None)
    match = None if fresh else matching_generation(wanted, mine, observed.serving(wanted.profile))
    raises, of_share = share_to_raise(verb, resolved, match, mine)
    if raises:
        # A handover that was killed may have begun it.
        whole = tuple(engine for engine in mine if engine.deployment.share is None)
        match = matching_generation(wanted, whole, observed.serving(wanted.profile))
    end_of_hanging: list[Action] = []
    if match is not None and match.hangs:
        # In place: nobody is answered now, and there may be no room for another one beside it.
        end = StopEngine(match.deployment.target, match.instance.name)
        end_of_hanging.append(Action(end, (EnsureEngine(match.deployment),)))
        match = match.stopped
    chosen = chosen_generation(wanted, mine, match)
    others = tuple(engine for engine in mine if engine.deployment.instance != chosen.instance)
    choice = Choice(Form.OVERLAP, fit_of(resolved, match))
    asleep = match is not None and match.rests and match is not serving
    if observed.holds(wanted.profile) and was_begun(serving, others):
        choice = begun_before(resolved)
    elif match is None or asleep or not (match.running or end_of_hanging):
        choice = chosen_form(form, resolved, match, others, observed, limits.longest_hold_s)
    if choice.share is not None:
        share_args = (resolved.share_option, f"{choice.share:g}")
        memory = choice.fit.requested if choice.fit is not None else 0
        chosen = chosen.model_copy({"share": choice.share, "share_args": share_args, "memory": memory})
    memory_fit = choice.fit if choice.share is not None else fit_of(resolved, match)
    if match is None:
        refuse_small_disk(resolved, observed)
    prepare: list[Action | Skip] = [
        *resolved.passed_over,
        *_other_weights(wanted, serving),
        *((choice.why,) if choice.why is not None else ()),
        *((of_share,) if of_share is not None else ()),
        *prerequisite_items(resolved.prerequisites, observed),
        *(unknown_room(resolved, observed) if match is None else ()),
    ]
    routes = tuple(route.led_to(Backend(chosen.instance, "", chosen.target)) for route in resolved.routes)
    files = list(engine_files(chosen, match))
    starts = [*end_of_hanging, *engine_start_items(chosen, match, memory_fit, limits, serving)]
    imports = list(engine_imports(resolved, chosen, match))
    ready = engine_ready_item(chosen, match, serving, limits, asleep=asleep)
    loads = list(adapters_to_load(chosen, match)) if match is not None else []
    proved = _has_proved(match, serving, observed)
    before, proofs = proof_items(verb, chosen, proved, serving, observed.routes_of(wanted.profile), limits)
    spoken = observed.gateway.status.protocol if observed.gateway.status is not None else PROTOCOL
    switch = list(switch_items(chosen, routes, match, observed, spoken))
    recorded = record_item(desired, observed, spoken)
    held = observed.holds(wanted.profile)
    changed = (*prepare, *starts, *imports, ready, *loads, recorded, *switch)
    changes = held or any(isinstance(item, Action) for item in changed)
    # It is told and asked in this program's protocol: where nothing changes, an older gateway may stay. One that does
    # not go by the digests that are kept was to be replaced by somebody who was killed.
    least = FIRST_WITH_DIGESTS if gateway.keys.written else 1
    protocol = PROTOCOL if changes or not observed.gateway.well else least
    for_gateway = list(gateway_items(gateway, observed, protocol, limits))
    gateway_starts = any(isinstance(item, Action) for item in for_gateway)
    if gateway_starts:
        # It knows of routes what the one before could not.
        switch = list(switch_items(chosen, routes, match, observed, PROTOCOL))
        recorded = record_item(desired, observed, PROTOCOL)
    of_gateway = [
        *kept_items(gateway.keys, taken_over=gateway_starts),
        *for_gateway,
        *(() if gateway_starts else read_items(gateway.keys, observed)),
    ]
    done = (*prepare, *of_gateway, *files, *starts, *imports, ready, *loads, recorded, *switch)
    if any(isinstance(item, Action) and not _only_tells(item.step) for item in done):
        steps = (item.step for item in loads if isinstance(item, Action))
        loading = {step.adapter.name for step in steps if isinstance(step, LoadAdapter)}
        names = names_to_verify(chosen, routes, match, loading, observed)
        verify: Action | Skip = verify_item(chosen, names, limits)
    else:
        verify = Skip(f"ask {wanted.served_name} through the gateway", "nothing changed")
    standby = _standby(desired, others)
    change = Change(
        chosen=chosen,
        fit=memory_fit,
        others=others,
        standby=standby,
        may_rest=standby is None or not cannot_sleep(standby, observed.host),
        prepare=(*prepare, *standby_remarks(standby, observed.host), *before),
        gateway=tuple(of_gateway),
        files=tuple(files),
        start=tuple(starts),
        gateway_ready=tuple(gateway_ready_items(for_gateway)),
        imports=tuple(imports),
        ready=(ready, *proofs),
        loads=tuple(loads),
        record=(recorded,),
        switch=tuple(switch),
        verify=(verify,),
        tidy=(*adapters_to_unload(chosen, match), *spare_in_store(chosen, match)) if match is not None else (),
        last=(
            *replaced_gateways(for_gateway, observed),
            *(dropped_items(gateway.keys) if gateway_starts or gateway.keys.written else ()),
        ),
    )
    hands_over = choice.form is Form.HANDOVER
    runs = match is not None and match.running and not asleep
    arranged = handover(change, serving, runs, limits) if hands_over else overlap(change, held, limits)
    plan = Plan(verb, (*arranged.before, *arranged.after), len(arranged.before))
    return plan if match is not None else replace(plan, memory_fit=choice.fit, sampling=resolved.sampling)


def _standby(desired: Desired, others: tuple[EngineObserved, ...]) -> EngineObserved | None:
    """The one of them that is to be kept: the newest that `rollback` can start again."""
    return next((one for one in reversed(others) if desired.stands_by(one.deployment)), None)


def _has_proved(match: EngineObserved | None, serving: EngineObserved | None, observed: Observed) -> bool:
    """Whether what matches has met clients. What somebody who was killed has started has not."""
    recorded = None if match is None else observed.desired.get(match.deployment.profile)
    return match is not None and (match is serving or (recorded is not None and recorded.stands_by(match.deployment)))


def _only_tells(step: Step) -> bool:
    """Whether it changes no answer of a model."""
    return isinstance(step, SetRoute) and step.only_tells


def _other_weights(wanted: Deployment, serving: EngineObserved | None) -> Iterator[Skip]:
    """Whether whoever moves to another engine may expect the same answers, by what the two serve."""
    if serving is None or serving.deployment.engine == wanted.engine:
        return
    was, now = serving.deployment.recipe, wanted.recipe
    if not was.same_weights(now):
        yield Remark("note", f"the weights change from {was.value} to {now.value}: some answers will differ")
    elif was is not now:
        yield Remark("note", f"the weights stay the same: {was.value} and {now.value} hold one set")

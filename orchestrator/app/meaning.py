"""What a model means that is not here yet: told by what was made of it, or by the small files of its repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from orchestrator.core.builders import BuiltBy
from orchestrator.core.meaning import DEFAULT, Meaning, deviations
from orchestrator.core.prerequisites import BuildArtifact, FetchArtifact, Prerequisite
from orchestrator.core.resolved import Resolved
from orchestrator.core.weights import HubSnapshot, HubSource, WeightsFacts

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

HUB_TIMEOUT_S = 30.0
# A list of tokens can have 20 MB, and what it would tell can wait until the weights are here.
_LARGEST = 2_000_000


def learnt(orch: Orchestrator, weights: WeightsFacts, resolved: Resolved, ask_hub: bool) -> WeightsFacts:
    """The same facts with the meaning of what is served: by the weights where they are here, by the artifact, or by the
    small files of the hub's repository, if it may be asked.

    What sampling, template and ends a model asks for decides how its engine is started, and that is planned before
    anything is pulled. SourceError where files contradict each other, HostError where the hub does not answer.
    """
    served = Path(resolved.deployment.model_path)
    foreign = any(map(_is_foreign, resolved.prerequisites))
    if not served.exists():
        served = next((Path(place) for place in map(_here, resolved.prerequisites) if place), served)
    theirs = _own(orch, weights)
    if foreign and served.exists():
        own = orch.catalog.meaning(served)
        if theirs is None:
            return replace(weights, meaning=own)
        sampling = own.sampling or theirs.sampling
        return replace(weights, meaning=own.model_copy({"sampling": sampling}), deviations=deviations(own, theirs))
    if theirs is None and served.exists():
        theirs = orch.catalog.meaning(served)
    if theirs is None and weights.fetch is not None and ask_hub:
        theirs = _of_hub(orch, weights.fetch)
    return replace(weights, meaning=_as_wanted(weights, theirs))


def meaning_of_weights(orch: Orchestrator, weights: WeightsFacts) -> Meaning | None:
    """What the weights mean that are here, with the profile's template; None where they are not."""
    return _as_wanted(weights, _own(orch, weights))


def meaning_to_be(orch: Orchestrator, weights: WeightsFacts) -> Meaning | None:
    """What weights mean that may not be here yet: then the small files of the hub's repository say it. HostError where
    it does not answer."""
    return _own(orch, weights) or (_of_hub(orch, weights.fetch) if weights.fetch is not None else None)


def _own(orch: Orchestrator, weights: WeightsFacts) -> Meaning | None:
    return orch.catalog.meaning(Path(weights.path)) if weights.size else None


def _as_wanted(weights: WeightsFacts, meaning: Meaning | None) -> Meaning | None:
    """With the profile's template, where it has one."""
    if meaning is None or not weights.template:
        return meaning
    # Few profiles have a template, and Jinja is loaded for it.
    from orchestrator.artifacts.meaning import takes_tools, thinks_by_itself

    template = weights.template
    return meaning.with_template(template, thinks_by_itself(template), takes_tools({DEFAULT: template}))


def _is_foreign(step: Prerequisite) -> bool:
    """Whether it has what others have built, or their tools."""
    return isinstance(step, FetchArtifact) or (isinstance(step, BuildArtifact) and step.by is BuiltBy.LLAMA_CPP)


def _here(step: Prerequisite) -> str:
    """Where that lies which others have built, as long as it is not in the store; empty: not on this machine."""
    return step.path if isinstance(step, FetchArtifact) else ""


def _of_hub(orch: Orchestrator, source: HubSource) -> Meaning:
    snapshot = orch.hub.snapshot(source, HUB_TIMEOUT_S, progress=orch.progress)
    small = tuple(file for file in snapshot.files if not file.path.endswith(".safetensors") and file.size <= _LARGEST)
    with TemporaryDirectory(prefix="orch-") as place:
        orch.hub.fetch(HubSnapshot(snapshot.source, small), Path(place), orch.progress)
        return orch.builder.meaning(Path(place))

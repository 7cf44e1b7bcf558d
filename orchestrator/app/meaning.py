"""What a model means that is not here yet: told by what was made of it, or by the small files of its repository."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from orchestrator.core.deployment import Deployment
from orchestrator.core.meaning import Meaning
from orchestrator.core.weights import HubSnapshot, HubSource, WeightsFacts

if TYPE_CHECKING:
    from orchestrator.app.orchestrator import Orchestrator

HUB_TIMEOUT_S = 30.0
# A list of tokens can have 20 MB, and what it would tell can wait until the weights are here.
_LARGEST = 2_000_000


def learnt(orch: Orchestrator, weights: WeightsFacts, deployment: Deployment) -> WeightsFacts:
    """The same facts with their meaning: of the artifact that is served, where it is here, else of the hub's small
    files.

    What sampling, template and ends a model asks for decides how its engine is started, and that is planned before
    anything is pulled. HostError or SourceError where the hub does not tell.
    """
    served = Path(deployment.model_path)
    if served.exists():
        meaning = orch.catalog.meaning(served)
    elif weights.fetch is not None:
        meaning = _of_hub(orch, weights.fetch)
    else:
        return weights
    return replace(weights, meaning=meaning.with_template(weights.template) if weights.template else meaning)


def _of_hub(orch: Orchestrator, source: HubSource) -> Meaning:
    snapshot = orch.hub.snapshot(source, HUB_TIMEOUT_S, progress=orch.progress)
    small = tuple(file for file in snapshot.files if not file.path.endswith(".safetensors") and file.size <= _LARGEST)
    with TemporaryDirectory(prefix="orch-") as place:
        orch.hub.fetch(HubSnapshot(snapshot.source, small), Path(place), orch.progress)
        return orch.builder.meaning(Path(place))

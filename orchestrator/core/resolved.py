"""What resolving a DeploymentSpec gives: a Deployment, and what it takes to have it."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.deployment import Deployment, Resolution
from orchestrator.core.environment import EnvironmentSpec
from orchestrator.core.meaning import SamplingDefault
from orchestrator.core.memory import MemoryFit
from orchestrator.core.pins import ImagePin
from orchestrator.core.plan import Skip
from orchestrator.core.prerequisites import Prerequisite
from orchestrator.core.routes import Route


@dataclass(frozen=True)
class Resolved:
    """A Deployment with what it takes to have its files, and the recipes that were passed over.

    `prerequisites` are ordered; `routes` name public name, upstream and patch, their url is not known before the engine
    runs; `image` is what its container is of, `environment` what its process is started from; `memory_fit` sets the
    memory that one more such engine needs against what there is; None when nothing is known of the weights yet.
    `sampling` is what is taken where requests do not say. `import_size` are the bytes of disk that the artifact takes
    in the engine's own store, `import_peak` those while it is imported; 0 where it has none, or nothing is known yet.
    `share_option` is how its program is told which share of a GPU to take; empty where it takes none.
    It is assumed to answer `start_s` seconds after its start.
    """

    deployment: Deployment
    prerequisites: tuple[Prerequisite, ...]
    passed_over: tuple[Skip, ...]
    routes: tuple[Route, ...]
    memory_fit: MemoryFit | None = None
    import_size: int = 0
    import_peak: int = 0
    image: ImagePin | None = None
    environment: EnvironmentSpec | None = None
    sampling: tuple[SamplingDefault, ...] = ()
    start_s: float = 0.0
    share_option: str = ""

    @property
    def resolution(self) -> Resolution:
        """What is recorded of it: not what it takes, which is known better once its artifact is there."""
        deployment = self.deployment.model_copy({"memory": 0, "asleep": None})
        return Resolution(deployment=deployment, image=self.image, environment=self.environment)

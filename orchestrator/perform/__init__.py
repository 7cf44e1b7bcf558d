"""How steps are done, by kind: what only prepares, engines, the gateway, records. `perform` does any of them.

A new step is a class in core and a function here; the interpreter (run.py) does not change.
"""

from orchestrator.perform import engines, gateway, prepare, records  # noqa: F401  each adds the steps of its kind
from orchestrator.perform.dispatch import perform

__all__ = ["perform"]

"""How steps are done, by kind: what only prepares, engines, what they prove, the gateway, what it holds, records.

`perform` does any of them. A new step is a class in core and a function here; the interpreter (run.py) does not change.
"""

from orchestrator.perform import engines, gateway, prepare, proof, records  # noqa: F401  each adds the steps of its kind
from orchestrator.perform.dispatch import perform
from orchestrator.perform.holds import keeping_hold

__all__ = ["keeping_hold", "perform"]

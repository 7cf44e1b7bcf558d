"""What of the store a wish or a whole profile may need, whatever this host is. Pure."""

from __future__ import annotations

from orchestrator.core.deployment import Adapter, Wish
from orchestrator.core.launch import LOCAL
from orchestrator.core.profile import Profile
from orchestrator.core.resolved import Supply
from orchestrator.core.weights import WeightsFacts
from orchestrator.engines import ENGINES
from orchestrator.engines.resolve import Shipped, engine_sheet, supply_of


def needed(wish: Wish, weights: WeightsFacts, adapters: tuple[Adapter, ...], shipped: Shipped) -> tuple[Supply, ...]:
    """What it takes to have all that a wish may be served with, whatever this host would choose of it."""
    sheet = engine_sheet(wish.engine)
    recipes = (wish.recipe,) if wish.recipe is not None else getattr(wish.profile.engines, sheet.name).recipes
    steps = (supply_of(sheet, recipe, weights, None, adapters, shipped) for recipe in recipes)
    return tuple(dict.fromkeys(step for supply in steps for step in supply))


def materials(
    profile: Profile, weights: WeightsFacts, adapters: tuple[Adapter, ...], shipped: Shipped
) -> tuple[Supply, ...]:
    """The same for all engines, which is all that a profile may be served with."""
    wishes = (Wish(profile=profile, engine=name, target=LOCAL) for name in ENGINES)
    steps = (needed(wish, weights, adapters, shipped) for wish in wishes)
    return tuple(dict.fromkeys(step for supply in steps for step in supply))

"""The values that ``quantize.search`` tries, and which group sizes the shapes of a model allow."""

from __future__ import annotations

from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.models.ranks import Side, sides
from pipeline.recipe.schema import Recipe

# SmoothQuant's own paper takes 0.5 and up to 0.9 for models with more outliers (section 4.3 of
# arXiv 2211.10438); 1.0 is ModelOpt's default.
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def misfits(recipe: Recipe, facts: ModelFacts, group_size: int) -> list[Side]:
    """Lists the sides of linears that the recipe's format cannot cut into such groups."""
    tp = recipe.compile.tensor_parallel
    unit = FORMATS[recipe.quantize.format].unit(group_size)
    if unit == 1:
        return []
    return [side for side in sides(facts, tp) if side.size % (unit * tp)]


def candidates(recipe: Recipe, facts: ModelFacts) -> tuple[float, ...]:
    """Returns the values that a recipe's ``quantize.search`` tries, ascending.

    Group sizes are whole numbers. It is empty where the model's shapes allow none of them.
    """
    search, row = recipe.quantize.search, FORMATS[recipe.quantize.format]
    assert search is not None
    in_groups = row.searched == "group_size"
    if search.candidates is not None:
        given = sorted(search.candidates)
        return tuple(map(int, given)) if in_groups else tuple(given)
    if in_groups:
        return tuple(size for size in row.group_sizes if not misfits(recipe, facts, size))
    return ALPHAS

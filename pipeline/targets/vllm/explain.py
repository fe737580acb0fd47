"""What ``plan`` says about a folder for vLLM."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.formats import FORMATS
from pipeline.recipe.schema import Recipe
from pipeline.targets.base import Explanation
from pipeline.targets.vllm.commands import Served
from pipeline.targets.vllm.readme import notes
from pipeline.targets.vllm.refusals import layout_of


def explain(recipe: Recipe) -> Explanation:
    """Describes the folder, how it is served, and what vLLM makes of its format.

    Args:
        recipe: A recipe that the pre-flight has passed.
    """
    said = notes(FORMATS[recipe.quantize.format].quant_algo)
    values = {
        "format": recipe.quantize.format,
        "layout": layout_of(recipe),
        "engine_arguments": Served.of(recipe).arguments(),
        "notes": said,
    }
    return Explanation(list(_lines(recipe, said)), values)


def _lines(recipe: Recipe, said: list[str]) -> Iterator[str]:
    layout = layout_of(recipe)
    stored = "" if layout is None else f", stored as {layout}"
    yield f"folder for vLLM: {recipe.quantize.format}{stored}"
    arguments = Served.of(recipe).arguments()
    # The command line itself is for copying, and a terminal would break it.
    yield f"  {', '.join(f'{name} {value}' for name, value in arguments.items())}"
    for note in said:
        yield f"  {note}."

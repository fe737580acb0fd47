"""Whether the server that a recipe describes takes the load that is to be put on it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import RecipeError, UsageError
from pipeline.recipe.schema import Recipe
from pipeline.triton.parameters import most_requests


def check_bench(recipe: Recipe) -> None:
    """Refuses a load test of which the server would refuse requests, hours before it is reached.

    Raises:
        RecipeError: ``bench.concurrency`` has more streams than the server takes at a time.
    """
    streams, most = max(recipe.bench.concurrency), most_requests(recipe)
    if streams > most:
        raise RecipeError(
            f"{streams} streams are more than the server takes",
            where=recipe.place("bench.concurrency"),
            why=_why(most),
            fix="Ask for fewer, or raise serve.max_queue_size",
        )


def check_levels(levels: Sequence[int], recipe: Recipe, where: str) -> None:
    """Refuses levels of a load of which the server would refuse requests.

    Args:
        levels: Numbers of streams.
        recipe: Describes the server.
        where: What the levels were given by.

    Raises:
        UsageError: One is more than the server takes at a time.
    """
    streams, most = max(levels), most_requests(recipe)
    if streams > most:
        raise UsageError(
            f"{streams} streams are more than the server takes",
            where=where,
            why=_why(most),
            fix="Ask for fewer, or raise serve.max_queue_size in the recipe",
        )


def _why(most: int) -> str:
    return (
        f"It takes {most} requests at a time, which compile.max_batch_size and "
        "serve.max_queue_size decide, and refuses the others"
    )

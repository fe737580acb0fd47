"""A model that lies in a directory of this machine, told apart from one on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.recipe.schema import Recipe

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def local_directory(recipe: Recipe) -> Path | None:
    """Finds the model's directory; None when the recipe names a Hub id.

    Raises:
        RecipeError: It is neither.
    """
    source = recipe.model.source
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if HUB_ID.match(source) and "/" in source and not path.exists():
        return None
    raise RecipeError(
        f"there is no model directory {source}",
        where=recipe.place("model.source"),
        why=f"{path.absolute()} is a file" if path.exists() else "The path does not exist",
        fix="Name a directory with config.json and *.safetensors, or a Hub id such as "
        "Qwen/Qwen2.5-7B-Instruct",
    )

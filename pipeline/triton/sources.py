"""The Python files of the Triton models: where they are, and how one is tried outside Triton."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from pipeline.errors import RepositoryError


def model_sources() -> Path:
    """Finds the folder with the Python files of the Triton models.

    In a checkout it is ``model_repo/`` beside the package, in an installed wheel it is inside it.

    Raises:
        RepositoryError: Neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package.parent / "model_repo", package / "_model_repo")
    for place in places:
        if any(place.glob("*/model.py")):
            return place
    raise RepositoryError(
        "the Triton models' own files are missing",
        where=str(places[0]),
        why="The installation is incomplete",
        fix="Install the package again",
    )


def load_module(models: Path, model: str, name: str) -> ModuleType:
    """Imports a module of a Triton model with those beside it, which it imports by a dot.

    Args:
        models: The folder of :func:`model_sources`.
        model: The model's folder there.
        name: The module.
    """
    package = f"_served_{model}"
    if (loaded := sys.modules.get(package)) is None or loaded.__path__ != [str(models / model)]:
        for stale in [key for key in sys.modules if key.partition(".")[0] == package]:
            del sys.modules[stale]  # of another folder
        root = ModuleType(package)
        root.__path__ = [str(models / model)]
        sys.modules[package] = root
    return importlib.import_module(f"{package}.{name}")

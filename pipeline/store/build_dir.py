"""The build directory: the store of all recipes, and a folder for the results of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.recipe.schema import Recipe
from pipeline.store.store import Store


@dataclass(frozen=True)
class BuildDir:
    """Where outputs go: ``<root>/store`` for artifacts, ``<root>/<recipe name>`` for results."""

    root: Path

    @property
    def store(self) -> Store:
        """The artifact store shared by all recipes."""
        return Store(self.store_root)

    @property
    def store_root(self) -> Path:
        """The directory of that store."""
        return self.root / "store"

    def outputs(self, recipe: Recipe) -> Path:
        """Returns the recipe's own folder."""
        return self.root / recipe.name

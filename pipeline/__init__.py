"""From a Hugging Face checkpoint to a quantized, compiled and tested Triton model repository.

``load_recipe``, ``plan``, ``run`` and ``serve`` do what the commands do; :mod:`pipeline.api` has
them. They are imported when they are asked for: the client lives in this package too and needs
none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pipeline._version import __version__

if TYPE_CHECKING:
    from pipeline.api import load_recipe, plan, run, serve

__all__ = ["__version__", "load_recipe", "plan", "run", "serve"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in __all__:
            return getattr(import_module("pipeline.api"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return list(__all__)

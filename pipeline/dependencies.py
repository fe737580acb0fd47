"""Imports of optional packages that name the extra which brings them."""

from __future__ import annotations

import importlib
from types import ModuleType

from pipeline.errors import MissingDependencyError


def require(module: str, extra: str) -> ModuleType:
    """Imports a module of an optional package.

    Args:
        module: Dotted name, such as ``modelopt.torch.quantization``.
        extra: The extra of this project that installs it.

    Raises:
        MissingDependencyError: It, or something it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the Python package {(error.name or module).partition('.')[0]} is not installed",
            why=f"{module} needs it",
            fix=f"Install it: pip install 'trtllm-pipeline[{extra}]'",
        ) from error

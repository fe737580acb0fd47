"""Compile targets, by the name the recipe gives them."""

from __future__ import annotations

from pipeline.errors import UnsupportedError
from pipeline.targets.base import Target

__all__ = ["Target", "get_target"]


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UnsupportedError: There is no such target in this version.
    """
    if name == "openvino":
        from pipeline.targets.openvino import OpenVinoTarget

        return OpenVinoTarget()
    raise UnsupportedError(
        f"target {name} is not available in this version",
        why="Only the CPU target compiles so far",
        fix="Set compile.target to openvino",
    )

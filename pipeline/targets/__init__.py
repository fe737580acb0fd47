"""Compile targets, by the name the recipe gives them."""

from __future__ import annotations

from pipeline.errors import UnsupportedError
from pipeline.targets.base import Target

__all__ = ["TARGETS", "Target", "get_target"]

TARGETS = ("openvino", "tensorrt")


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UnsupportedError: There is no such target.
    """
    if name == "openvino":
        from pipeline.targets.openvino import OpenVinoTarget

        return OpenVinoTarget()
    if name == "tensorrt":
        from pipeline.targets.tensorrt import TensorRtTarget

        return TensorRtTarget()
    raise UnsupportedError(
        f"there is no compile target {name}", fix=f"Targets: {', '.join(TARGETS)}"
    )

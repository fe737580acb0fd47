"""``compile.edgellm`` of the recipe: the options that TensorRT Edge-LLM alone reads."""

from __future__ import annotations

from typing import Literal

from pipeline.recipe.section import Section

DeviceName = Literal["jetson-orin", "thor", "dgx-spark", "a100", "a10", "b200", "rtx-5090"]


class EdgeLlmSection(Section):
    """Options of TensorRT Edge-LLM.

    Attributes:
        device: The row of its hardware table (docs/edgellm.md) that the engine is for, so that a
            format which it does not compute in is refused; None is any.
    """

    device: DeviceName | None = None

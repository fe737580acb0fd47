"""``compile.openvino`` of the recipe: the options that the CPU target alone reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pipeline.recipe.section import Section, Unit, Whole


class OpenVinoSection(Section):
    """Execution options of the CPU target; the defaults keep the checkpoint's exact numerics.

    Attributes:
        inference_precision: Arithmetic of the non-quantized operations.
        dynamic_quantization_group_size: Input features that share one INT8 scale of the activations
            in weight-only layers; 0 keeps the activations in floating point.
        kv_cache_precision: Storage of keys and values; None is that of ``inference_precision``.
    """

    inference_precision: Literal["f32", "bf16"] = "f32"
    dynamic_quantization_group_size: Annotated[
        Literal[0, 32, 64, 128], Whole, Unit("input features")
    ] = 0
    kv_cache_precision: Literal["f32", "f16", "bf16", "u8"] | None = None

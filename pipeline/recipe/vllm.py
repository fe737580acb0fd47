"""``compile.vllm`` of the recipe: the options that the vLLM target alone reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pipeline.recipe.section import FileName, Fraction, Section, Unit

LayoutName = Literal["compressed-tensors", "gptq", "modelopt"]


class VllmSection(Section):
    """How the folder for vLLM is written, and what measures it.

    Attributes:
        layout: How quantized weights are stored, by the ``quant_method`` of Hugging Face's
            ``config.json``; None takes the one that reads the format best.
        gpu_memory_utilization: The share of a GPU's memory that the commands beside the folder
            give to vLLM, weights and KV cache together.
        python: The Python of an environment that has vLLM; the folder is then measured with it.
            None measures the checkpoint only.
    """

    layout: LayoutName | None = None
    gpu_memory_utilization: Annotated[Fraction, Unit("share of GPU memory")] = 0.9
    python: FileName | None = None

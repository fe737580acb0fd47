"""``compile.llamacpp`` of the recipe: what the GGUF file of llama.cpp and Ollama is made of."""

from __future__ import annotations

from typing import Literal

from pipeline.recipe.section import Section

GgufType = Literal[
    "stored",
    "f32",
    "f16",
    "bf16",
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q5_k_s",
    "q5_1",
    "q5_0",
    "q4_k_m",
    "q4_k_s",
    "q4_1",
    "q4_0",
]

TYPE_BITS: dict[GgufType, int | None] = {
    "stored": None,
    "f32": None,
    "f16": None,
    "bf16": None,
    "q8_0": 8,
    "q6_k": 6,
    "q5_k_m": 5,
    "q5_k_s": 5,
    "q5_1": 5,
    "q5_0": 5,
    "q4_k_m": 4,
    "q4_k_s": 4,
    "q4_1": 4,
    "q4_0": 4,
}
"""Bits of most weights of a type that rounds a checkpoint; None where none are rounded so."""


class LlamaCppSection(Section):
    """How the weights of linears are stored in the GGUF file.

    Attributes:
        type: ``stored`` keeps the checkpoint's own codes, as F16, BF16 or Q4_0. The others are
            llama.cpp's names of file types, which convert a checkpoint of ``float16`` or
            ``bfloat16`` as its ``llama-quantize`` does; a quantized one would be rounded twice, and
            is refused.
    """

    type: GgufType = "stored"

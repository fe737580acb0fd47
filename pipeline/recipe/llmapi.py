"""``compile.llmapi`` of the recipe: the options that TensorRT-LLM's LLM API alone reads."""

from __future__ import annotations

from typing import Literal

from pipeline.recipe.section import Section


class LlmApiSection(Section):
    """Options of TensorRT-LLM's LLM API; names are those of its arguments where they exist.

    Attributes:
        sampler: ``sampler_type``. ``TRTLLMSampler`` is the decoder of TensorRT engines, so each
            sampling parameter means what it means there. ``TorchSampler`` is upstream's default
            and, in 1.2, ignores penalties and a request's seed: the server refuses them then.
    """

    sampler: Literal["TRTLLMSampler", "TorchSampler"] = "TRTLLMSampler"

"""Rope scaling as llama.cpp has it: keys of the file, or a tensor of divisors."""

from __future__ import annotations

import math
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from pipeline.models.facts import ORIGINAL_POSITIONS, ModelFacts


def rope_factors(facts: ModelFacts) -> npt.NDArray[np.float32] | None:
    """Computes the divisors of the frequencies, which Llama 3 scales one by one.

    The formula is ``_compute_llama3_parameters`` of transformers: wavelengths longer than the
    original context over ``low_freq_factor`` are divided by ``factor``, those shorter than it over
    ``high_freq_factor`` stay, and between the two it is interpolated.

    Returns:
        float32 [head size / 2] of ``rope_freqs.weight``; None where frequencies are not scaled so.
    """
    scaling = facts.rotary_scaling
    if not scaling or scaling["rope_type"] != "llama3":
        return None
    half = facts.head_size // 2
    wavelength = 2 * math.pi * facts.rotary_base ** (np.arange(half) / half)
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original = float(scaling[ORIGINAL_POSITIONS])
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    factors: npt.NDArray[np.float32] = 1 / ((1 - smooth) / float(scaling["factor"]) + smooth)
    return factors.astype(np.float32)


def add_rope(writer: Any, facts: ModelFacts) -> None:
    """Adds the keys of rope to a file.

    Args:
        writer: A ``gguf.GGUFWriter``.
        facts: Of the model.
    """
    writer.add_rope_dimension_count(facts.head_size)
    writer.add_rope_freq_base(facts.rotary_base)
    scaling = facts.rotary_scaling
    if scaling and scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))

"""Inverse frequencies of the rotary embedding, from a model's facts alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pipeline.models.facts import ModelFacts


def inverse_frequencies(facts: ModelFacts) -> npt.NDArray[np.float32]:
    """Computes the radians per position of each rotated pair.

    Plain rope is base^(-2i/d) (Su et al. 2021, arXiv 2104.09864). ``linear`` divides it by the
    factor (Chen et al. 2023, arXiv 2306.15595). ``llama3`` divides only the long wavelengths and
    blends in between (Llama 3.1 model code, ``apply_scaling``).

    Args:
        facts: Gives head size, base and scaling.

    Returns:
        float32 [head_size / 2], computed in double precision and rounded once.
    """
    exponents = np.arange(0, facts.head_size, 2, dtype=np.float64) / facts.head_size
    plain = facts.rotary_base**-exponents
    scaling = facts.rotary_scaling
    if scaling is None:
        return plain.astype(np.float32)
    stretched = plain / float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return stretched.astype(np.float32)
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * plain / (2 * math.pi)
    share_plain = np.clip((turns - low) / (high - low), 0.0, 1.0)
    blended: npt.NDArray[np.float32] = (
        share_plain * plain + (1.0 - share_plain) * stretched
    ).astype(np.float32)
    return blended

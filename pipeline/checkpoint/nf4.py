"""NF4: 4-bit codes of 16 levels, which are quantiles of a normal distribution.

Levels, and how a weight finds its own, are those of bitsandbytes (``create_normal_map`` and
``quantize_4bit`` of its ``functional.py``; appendix E of QLoRA, arXiv 2305.14314): a block of
weights is divided by its largest magnitude, and each takes the level that is nearest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.checkpoint.layout import Array

LEVELS: tuple[float, ...] = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""What each code stands for, in float32."""


def unpack_rows(packed: Array) -> npt.NDArray[np.uint8]:
    """Undoes :func:`pipeline.checkpoint.cut.packed_rows` for codes without a sign.

    Args:
        packed: uint8 [N/2, K].

    Returns:
        uint8 [N, K], 0 to 15.
    """
    half, columns = packed.shape
    codes = np.empty((half, 2, columns), np.uint8)
    codes[:, 0], codes[:, 1] = packed & 0xF, packed >> 4
    return codes.reshape(2 * half, columns)


def values_of(packed: Array) -> npt.NDArray[np.float32]:
    """Looks up the levels of packed codes.

    Args:
        packed: uint8 [N/2, K], row 2i in the low nibble.

    Returns:
        float32 [N, K], from -1 to 1.
    """
    return np.array(LEVELS, np.float32)[unpack_rows(packed)]

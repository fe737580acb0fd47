"""One linear of a quantized folder, whatever library wrote it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.checkpoint.layout import Array

# Codes of four bits in a word of 32, and what makes signed ones of them.
PER_WORD, MIDDLE = 8, 8
FIRST_LOWEST = tuple(range(PER_WORD))


@dataclass(frozen=True)
class SourceLinear:
    """Codes and what turns them into weights, y = (x * smoothing) @ W.T + bias.

    Attributes:
        codes: [N, K]. INT4: int8 from -8 to 7. INT8: int8. NF4: uint8, 0 to 15. FP8: float8_e4m3fn.
        scales: [N, K/g] by group, [N] by row or [1], in the dtype that they are stored in.
        levels: float32 [16], what NF4's codes stand for; None where a code is a number.
        offsets: int8 [N, K/g], added to the codes of a group before they are scaled; None is 0.
        groups: int32 [K], the group of each input; None where they follow each other.
        smoothing: [K], multiplied onto x; None is 1.
        step: amax / 127 (INT8) or amax / 448 (FP8) of x; None where it is not rounded.
    """

    codes: Array
    scales: Array
    levels: npt.NDArray[np.float32] | None = None
    offsets: npt.NDArray[np.int8] | None = None
    groups: npt.NDArray[np.int32] | None = None
    smoothing: Array | None = None
    step: float | None = None

    def weight(self) -> npt.NDArray[np.float32]:
        """Computes W in float32, [N, K]: each product is rounded once."""
        scales = self.scales.astype(np.float32)
        if self.levels is not None:
            return self.levels[self.codes] * self._spread(scales)
        if scales.ndim == 1:
            return self.codes.astype(np.float32) * scales.reshape(-1, 1)
        codes = self.codes.astype(np.int16)
        if self.offsets is not None:
            codes += self._spread(self.offsets)
        return codes.astype(np.float32) * self._spread(scales)

    def _spread(self, values: Array) -> Array:
        """Repeats what groups have for each input, [N, K]."""
        if self.groups is not None:
            return values[:, self.groups]
        return np.repeat(values, self.codes.shape[1] // values.shape[1], axis=1)


def nibbles(words: Array, order: tuple[int, ...] = FIRST_LOWEST) -> npt.NDArray[np.uint8]:
    """Unpacks words of eight codes along the last axis.

    Args:
        words: int32 [..., n].
        order: ``order[i]`` is the nibble that code i is in, counted from the lowest.

    Returns:
        uint8 [..., 8 n], 0 to 15.
    """
    shifts = np.array(order, np.uint32) * 4
    unpacked = (words.view(np.uint32)[..., None] >> shifts) & 0xF
    return unpacked.astype(np.uint8).reshape(*words.shape[:-1], -1)


def signed(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Counts codes of 0 to 15 from -8 to 7."""
    return codes.astype(np.int8) - np.int8(MIDDLE)

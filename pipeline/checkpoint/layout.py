"""A TensorRT-LLM checkpoint in memory, all ranks merged, weights still as stored.

NumPy holds every array; bfloat16 and float8 use the dtypes of ``ml_dtypes``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from pipeline.formats import ALGOS

Array = npt.NDArray[Any]

PACKED_ALGOS = frozenset(algo for algo, row in ALGOS.items() if row.packed)
"""Those whose weights hold two rows in one."""


@dataclass(frozen=True)
class Linear:
    """One linear, y = x @ W.T + bias, in the quantization it was written in.

    Attributes:
        name: ``transformer.layers.3.attention.qkv`` (layer numbers count over all pipeline ranks).
        algo: The checkpoint's ``quant_algo``; ``NO_QUANT`` for a floating-point linear.
        weight: ``NO_QUANT``: float [N, K]. ``W8A8_SQ_PER_CHANNEL``: int8 [N, K].
            ``W4A16_AWQ`` and ``W4A8_AWQ``: int8 [N/2, K], row 2i in the low nibble; ``NF4``: uint8
            of the same order. ``INT8_WO``: int8 [N, K].
            ``FP8``: float8_e4m3fn [N, K].
        weights_scaling_factor: W8A8: float32 [N]. AWQ and NF4: float [N, K/g].
            FP8: float32 [1]. INT8_WO: float32 [N].
        prequant_scaling_factor: [K], multiplied onto x; W8A8 and AWQ.
        activation_scaling_factor: amax / 127 (W8A8) or amax / 448 (FP8, W4A8) of x after pre-quant.
        weights_scaling_factor_2: W4A8: float32 [1], the scale of the float8 stage.
        bias: [N].
        zero: ``W4A16_AWQ`` with zero points: float [K/g, N], (8 - zero point) * scale, which is
            added to each product of code and scale. :func:`pipeline.checkpoint.dequantize.offsets`
            makes integers of it.
        input_order: ``W4A16_AWQ`` with groups out of order (GPTQ's act-order): int32 [K], the input
            that each column of the weight belongs to; None is the ordinary order.
    """

    name: str
    algo: str
    weight: Array
    weights_scaling_factor: Array | None = None
    prequant_scaling_factor: Array | None = None
    activation_scaling_factor: float | None = None
    weights_scaling_factor_2: float | None = None
    bias: Array | None = None
    zero: Array | None = None
    input_order: Array | None = None

    @property
    def out_features(self) -> int:
        """N."""
        rows = int(self.weight.shape[0])
        return rows * 2 if self.algo in PACKED_ALGOS else rows

    @property
    def in_features(self) -> int:
        """K."""
        return int(self.weight.shape[1])


@dataclass(frozen=True)
class Layer:
    """One decoder layer; ``qkv`` has the rows of q, then k, then v."""

    input_layernorm: Array
    qkv: Linear
    dense: Linear
    post_layernorm: Array
    fc: Linear
    gate: Linear
    proj: Linear
    q_layernorm: Array | None = None
    k_layernorm: Array | None = None
    kv_cache_scaling_factor: float | None = None

    def linear(self, name: str) -> Linear:
        """Returns a linear by its name in TensorRT-LLM's layer, such as ``attention.qkv``."""
        found: Linear = getattr(self, name.rpartition(".")[2])
        return found

    def norm(self, name: str) -> Array:
        """Returns the weight of a norm by its name in TensorRT-LLM's layer.

        Args:
            name: Such as ``attention.q_layernorm``, of a model that has it.
        """
        found: Array = getattr(self, name.rpartition(".")[2])
        return found


@dataclass(frozen=True)
class Weights:
    """A whole decoder; ``lm_head`` may share its array with ``vocab_embedding``.

    The layers of a checkpoint are read one at a time: keep none of them.
    """

    vocab_embedding: Array
    layers: Sequence[Layer]
    ln_f: Array
    lm_head: Linear

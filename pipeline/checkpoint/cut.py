"""Cuts a decoder into what each tensor-parallel rank holds; :mod:`.shards` is the way back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.checkpoint.layout import PACKED_ALGOS, Array
from pipeline.models.architectures import QKV
from pipeline.models.facts import LinearShape, ModelFacts
from pipeline.models.ranks import RankShare


class RankCut:
    """What one rank gets of each tensor.

    Args:
        facts: The whole model.
        ranks: Tensor-parallel ranks.
        rank: Which of them, from 0.
    """

    def __init__(self, facts: ModelFacts, ranks: int, rank: int) -> None:
        self._facts, self._ranks, self._rank = facts, ranks, rank
        self._share = RankShare(facts, ranks)

    def vocabulary(self, table: Array) -> Array:
        """Returns the rank's tokens of an embedding or a head [V, H]; zero rows pad the last."""
        count = self._share.vocabulary_rows
        part = table[self._rank * count : (self._rank + 1) * count]
        return np.pad(part, ((0, count - part.shape[0]), (0, 0)))

    def rows(self, whole: Array, linear: LinearShape) -> Array:
        """Returns the rank's rows of a tensor that has one entry, or row, for each output."""
        if linear.split != "column":
            return whole
        if linear.name != QKV:
            size = linear.out_features // self._ranks
            return whole[self._rank * size : (self._rank + 1) * size]
        q, kv = (self._facts.width(name) for name in ("q", "kv"))
        share = self._share
        own = self._rank // share.kv_copies * share.kv_rows
        queries = self._rank * share.q_rows
        return np.concatenate(
            [
                whole[queries : queries + share.q_rows],
                whole[q + own : q + own + share.kv_rows],
                whole[q + kv + own : q + kv + own + share.kv_rows],
            ]
        )

    def columns(self, whole: Array, linear: LinearShape) -> Array:
        """Returns the rank's part of the last axis, which has inputs or groups of inputs."""
        if linear.split != "row":
            return whole
        size = whole.shape[-1] // self._ranks
        return whole[..., self._rank * size : (self._rank + 1) * size]

    def rows_and_columns(self, whole: Array, linear: LinearShape) -> Array:
        """Returns the rank's part of a matrix [N, K] or [N, K/g]."""
        return self.columns(self.rows(whole, linear), linear)

    def quantized(
        self, whole: Mapping[str, Array], linear: LinearShape, algo: str
    ) -> dict[str, Array]:
        """Returns the rank's part of a quantized linear as its file has it.

        Args:
            whole: By the ends of their names; ``weight`` not packed, ``zero`` [N, K/g].
            linear: Its shape over all ranks.
            algo: Its ``quant_algo``.
        """
        found = {}
        for name, array in whole.items():
            if name in ("activation_scaling_factor", "input_order") or array.shape == (1,):
                found[name] = array
            elif name == "prequant_scaling_factor":
                found[name] = self.columns(array, linear)
            elif array.ndim == 1:
                found[name] = self.rows(array, linear)
            else:
                found[name] = self.rows_and_columns(array, linear)
        if algo in PACKED_ALGOS:
            found["weight"] = packed_rows(found["weight"])
        if "zero" in found:
            found["zero"] = found["zero"].T
        return found


def packed_rows(codes: Array) -> Array:
    """Packs codes of four bits, row 2i into the low nibble and row 2i + 1 into the high one.

    Args:
        codes: int8 from -8 to 7, or uint8 from 0 to 15, [N, K]; N is even.

    Returns:
        [N/2, K] of the same dtype.
    """
    bits = codes.view(np.uint8)
    packed: Array = ((bits[0::2] & 0xF) | (bits[1::2] << 4)).view(codes.dtype)
    return packed

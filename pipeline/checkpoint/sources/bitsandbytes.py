"""bitsandbytes: NF4 with plain or doubly quantized block scales, and LLM.int8.

The layouts are those of ``QuantState.as_dict(packed=True)`` and ``Linear8bitLt`` in 0.50.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.nf4 import LEVELS
from pipeline.checkpoint.sources.linear import SourceLinear
from pipeline.errors import SourceError, cause
from pipeline.formats import NF4
from pipeline.models.quantized import StoredQuantization
from pipeline.source.quantized import NESTED_BLOCK, NF4_BLOCK, NF4_STATE

# Its own constant, 1 / 127 in float32: int8_vectorwise_dequant of bitsandbytes.
STEP = np.float32(0.007874015718698502)


def read(stored: StoredQuantization, tensor: Callable[[str], Array | None]) -> SourceLinear:
    """Reads one linear; see :func:`pipeline.checkpoint.sources.gptq.read`.

    Raises:
        SourceError: The description beside the codes cannot be read or contradicts them.
    """
    return _nf4(tensor) if stored.quant_algo == NF4 else _int8(tensor)


def _nf4(tensor: Callable[[str], Array | None]) -> SourceLinear:
    packed, absmax, levels = tensor("weight"), tensor("weight.absmax"), tensor("weight.quant_map")
    raw = tensor(f"weight.{NF4_STATE}")
    assert packed is not None
    assert absmax is not None
    assert levels is not None
    assert raw is not None
    state = _state(raw)
    if not np.array_equal(levels.astype(np.float32), np.array(LEVELS, np.float32)):
        raise SourceError(
            "quant_map has other levels than nf4",
            why="A checkpoint has codes alone, whose levels every target knows",
            fix="Quantize the model again with the quant_type nf4",
        )
    flat = packed.reshape(-1)
    # The first of two values is in the high half.
    codes = np.stack([flat >> 4, flat & 0xF], axis=1).reshape(-1)
    rows, columns = (int(size) for size in state["shape"])
    if rows * columns != codes.size:
        raise SourceError(
            f"{NF4_STATE} says {rows} x {columns}, and there are {codes.size} codes",
            fix="Use the directory that bitsandbytes wrote, unchanged",
        )
    nested, table = tensor("weight.nested_absmax"), tensor("weight.nested_quant_map")
    scales = absmax.astype(np.float32)
    if nested is not None and table is not None:
        spread = np.repeat(nested, NESTED_BLOCK)[: absmax.size]
        scales = table[absmax] * spread + np.float32(state["nested_offset"])
    return SourceLinear(
        codes.reshape(rows, columns),
        scales.reshape(rows, columns // NF4_BLOCK),
        levels=levels.astype(np.float32),
    )


def _state(raw: Array) -> dict[str, Any]:
    try:
        state = json.loads(raw.tobytes())
        sizes = [int(size) for size in state["shape"]]
        if len(sizes) != 2 or state["blocksize"] != NF4_BLOCK or state["quant_type"] != "nf4":
            raise ValueError("it is not nf4 of two dimensions in blocks of 64")
        if "nested_blocksize" in state:
            if state["nested_blocksize"] != NESTED_BLOCK:
                raise ValueError("its block scales are not in blocks of 256")
            float(state["nested_offset"])
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{NF4_STATE} cannot be used",
            why=cause(error),
            fix="Use the directory that bitsandbytes wrote, unchanged",
        ) from error
    return {**state, "shape": sizes}


def _int8(tensor: Callable[[str], Array | None]) -> SourceLinear:
    weight, largest = tensor("weight"), tensor("SCB")
    assert weight is not None
    assert largest is not None
    form = tensor("weight_format")
    if form is not None and int(form.reshape(-1)[0]) != 0:
        raise SourceError(
            "weight_format is not row, the order of rows that a file has",
            fix="Save the model again with bitsandbytes",
        )
    return SourceLinear(weight, largest.astype(np.float32) * STEP)

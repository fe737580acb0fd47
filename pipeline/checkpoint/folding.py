"""Decoder layers without pre-quant scales, for files that have no place for them.

A linear of a checkpoint is y = W (x * s). GGUF, GPTQ, AutoAWQ and compressed-tensors know no s. It
can be moved into what makes x: the weight of the norm before it, or the rows of the linear before
it. Where nothing before it has room, it stays, and the caller is told: such a linear has no exact
place in those formats but as a dequantized one. A checkpoint of ``quantize.portable`` has scales of
one everywhere, so that nothing is moved and nothing stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.checkpoint.dequantize import offsets, unpack_int4
from pipeline.checkpoint.layout import PACKED_ALGOS, Array, Layer, Linear
from pipeline.checkpoint.loading import as_loaded
from pipeline.errors import UnsupportedError
from pipeline.formats import ALGOS, NO_QUANT
from pipeline.models.architectures import PRE_NORMS
from pipeline.models.facts import ModelFacts

Floats = npt.NDArray[np.float32]

ATTENTION_INPUT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
VALUES, OUTPUT = "self_attn.v_proj", "self_attn.o_proj"
GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"


@dataclass(frozen=True)
class Matrix:
    """One linear of transformers' layer, y = ((weight + offsets) * scale) @ (x * prequant) + bias.

    Attributes:
        name: Its name in transformers' layer, such as ``self_attn.q_proj``.
        algo: The checkpoint's ``quant_algo`` of it.
        weight: [N, K]. Floating point as stored, or one code for each weight: int8, from -8 to 7
            for INT4; float8 for FP8.
        scale: float32 [N, groups] as TensorRT-LLM loads it, the groups of equal length along the
            inputs; one group for scales per row or per tensor. None for floating point.
        prequant: float32 [K], what could not be moved; None where nothing is left.
        activation_scale: The step of x * prequant for formats that quantize it.
        bias: [N] as stored, or float32 where a scale went into it.
        offsets: int8 [N, groups], 8 minus the zero point of INT4 codes that have one, from -8 to 8;
            None where every one is 0.
        order: int32 [K], the input that each column of the weight belongs to (GPTQ's act-order);
            None is the ordinary order.
    """

    name: str
    algo: str
    weight: Array
    scale: Floats | None = None
    prequant: Floats | None = None
    activation_scale: float | None = None
    bias: Array | None = None
    offsets: npt.NDArray[np.int8] | None = None
    order: npt.NDArray[np.int32] | None = None

    def values(self) -> Floats:
        """Computes the float32 [N, K] that acts on x, what is left of the scales included."""
        values = self.weight.astype(np.float32)
        if self.scale is not None:
            columns = values.shape[1] // self.scale.shape[1]
            if self.offsets is not None:
                values += np.repeat(self.offsets, columns, axis=1)
            values *= np.repeat(self.scale, columns, axis=1)
        if self.order is not None:
            ordered = np.empty_like(values)
            ordered[:, self.order] = values
            values = ordered
        return values if self.prequant is None else values * self.prequant


@dataclass(frozen=True)
class FoldedLayer:
    """A decoder layer by transformers' names.

    Attributes:
        linears: In the order of transformers' layer: q, k, v, o, gate, up, down.
        norms: By transformers' name; float32 where a scale went into it, else as stored. A norm and
            a scale of 16 bits have an exact product in float32.
        left: The linears whose pre-quant scale is not moved, and why, as a sentence without its
            full stop.
    """

    linears: Mapping[str, Matrix]
    norms: Mapping[str, Array]
    left: Mapping[str, str]


def fold(layer: Layer, facts: ModelFacts, *, codes_alone: bool = True) -> FoldedLayer:
    """Splits the fused linears of a layer and moves their pre-quant scales to what is before them.

    Products are float32, so that codes stay and no scale is rounded to 16 bits; whether the float32
    scales fit a file's own type is for its writer to judge.

    Args:
        layer: Of a merged checkpoint.
        facts: The model it is of.
        codes_alone: Refuses zero points and groups out of order, for whoever looks at codes and
            scales only; otherwise matrices have them as ``offsets`` and ``order``.

    Raises:
        UnsupportedError: The format divides its pre-quant scales, so that they belong to the FP8
            codes of activations and to nothing else; or see ``codes_alone``.
    """
    linears = {
        matrix.name: matrix
        for shape in facts.linears
        for matrix in _split(layer.linear(shape.name), shape.source, codes_alone=codes_alone)
    }
    norms = {norm.source: layer.norm(norm.checkpoint) for norm in facts.family.norms}
    left: dict[str, str] = {}
    for norm, readers in zip(PRE_NORMS, (ATTENTION_INPUT, (GATE, UP)), strict=True):
        _into_norm(norms, norm.source, linears, readers, left)
    _into_rows(linears, UP, DOWN)
    if linears[OUTPUT].prequant is not None:
        reason = _no_rows_of_values(layer, facts)
        if reason:
            left[OUTPUT] = reason
        else:
            _into_rows(linears, VALUES, OUTPUT)
    return FoldedLayer(linears, norms, left)


def _split(
    linear: Linear, source: tuple[tuple[str, int], ...], *, codes_alone: bool
) -> list[Matrix]:
    algo = ALGOS[linear.algo]
    if algo.divides_prequant:
        raise UnsupportedError(
            f"pre-quant scales of {linear.algo} cannot be moved",
            where=linear.name,
            why="They are divided by the activation scale, as one factor of the FP8 codes",
            fix="Quantize to a format without FP8 activations",
        )
    if codes_alone and (linear.zero is not None or linear.input_order is not None):
        what = "zero points" if linear.zero is not None else "groups out of order"
        raise UnsupportedError(
            f"{what} are not folded",
            where=linear.name,
            why="The code of a weight alone would then be another number",
            fix="Compile for a target that has them; trtllm-pipeline plan names those",
        )
    weight = unpack_int4(linear.weight) if linear.algo in PACKED_ALGOS else linear.weight
    scale, prequant = _scale(linear), linear.prequant_scaling_factor
    added = None if linear.zero is None else offsets(linear)
    smoothing = None if prequant is None else prequant.astype(np.float32)
    if smoothing is not None and (smoothing == 1).all():
        smoothing = None
    parts, start = [], 0
    for name, rows in source:
        part = slice(start, start + rows)
        parts.append(
            Matrix(
                name=name,
                algo=linear.algo,
                weight=weight[part],
                scale=None if scale is None else scale[part],
                prequant=smoothing,
                activation_scale=linear.activation_scaling_factor,
                bias=None if linear.bias is None else linear.bias[part],
                offsets=None if added is None else added[part],
                order=linear.input_order,
            )
        )
        start += rows
    return parts


def _scale(linear: Linear) -> Floats | None:
    stored, rows = linear.weights_scaling_factor, linear.out_features
    if linear.algo == NO_QUANT or stored is None:
        return None
    if ALGOS[linear.algo].scales == "group":
        # TensorRT-LLM loads them in the model's dtype, which pre-quant scales are stored in.
        assert linear.prequant_scaling_factor is not None
        return as_loaded(stored, linear.prequant_scaling_factor.dtype.name)
    return np.broadcast_to(stored.astype(np.float32).reshape(-1, 1), (rows, 1))


def _into_norm(
    norms: dict[str, Array],
    norm: str,
    linears: dict[str, Matrix],
    names: tuple[str, ...],
    left: dict[str, str],
) -> None:
    """Moves the scale of the first of the linears that read a norm, and that of those like it."""
    moved = linears[names[0]].prequant
    if moved is not None:
        norms[norm] = norms[norm].astype(np.float32) * moved
    for name in names:
        own = linears[name].prequant
        if _same(own, moved):
            linears[name] = replace(linears[name], prequant=None)
            continue
        # The norm now gives x times the first one's scale.
        ones = np.ones(norms[norm].shape, np.float32)
        rest = (ones if own is None else own) / (ones if moved is None else moved)
        linears[name] = replace(linears[name], prequant=rest)
        left[name] = f"It reads what {names[0]} does, and has a pre-quant scale of its own"


def _same(one: Floats | None, other: Floats | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _into_rows(linears: dict[str, Matrix], before: str, after: str) -> None:
    """Moves a scale into the rows of the linear whose outputs are multiplied by it."""
    moved, source = linears[after].prequant, linears[before]
    if moved is None:
        return
    if source.scale is None:
        scaled = replace(source, weight=source.weight.astype(np.float32) * moved[:, None])
    else:
        scaled = replace(source, scale=source.scale * moved[:, None])
    if source.bias is not None:
        scaled = replace(scaled, bias=source.bias.astype(np.float32) * moved)
    linears[before] = scaled
    linears[after] = replace(linears[after], prequant=None)


def _no_rows_of_values(layer: Layer, facts: ModelFacts) -> str:
    """Says why the rows of v cannot take the scale of o; empty where they can."""
    if facts.num_key_value_heads != facts.num_attention_heads:
        return (
            f"A KV head serves {facts.num_attention_heads // facts.num_key_value_heads} query "
            "heads, whose pre-quant scales differ, so the rows of v have no room for them"
        )
    if layer.kv_cache_scaling_factor is not None:
        return "The scale of the quantized KV cache was measured on values without it"
    return ""

"""The tensors of a GGUF file, one after the other, from a checkpoint in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from pipeline.checkpoint.dequantize import dequantize
from pipeline.checkpoint.folding import FoldedLayer, Matrix, fold
from pipeline.checkpoint.layout import Layer, Linear, Weights
from pipeline.errors import CompileError
from pipeline.formats import ALGOS, NO_QUANT
from pipeline.models.facts import ModelFacts
from pipeline.targets.llamacpp.names import (
    EMBEDDING,
    HEAD,
    LAST_NORM,
    LINEARS,
    NORMS,
    ROPE_FACTORS,
    ROTATED,
    block,
    family_of,
    is_seventy,
    to_pairs,
)
from pipeline.targets.llamacpp.rope import rope_factors
from pipeline.targets.llamacpp.types import (
    BLOCK,
    MIXTURES,
    Mixture,
    encode,
    half_scales,
    is_float,
    q4_0,
    q8_0,
)

_FLOATS = {"float32": Type.F32, "float16": Type.F16, "bfloat16": Type.BF16}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    Attributes:
        name: llama.cpp's.
        kind: Its number type.
        shape: Of its values, as Hugging Face has it.
        data: Computes its bytes, in the rows of ``shape``.
        change: How it differs from what the checkpoint says; empty where it is exact.
    """

    name: str
    kind: Type
    shape: tuple[int, ...]
    data: Callable[[], npt.NDArray[Any]]
    change: str = ""


def tensors(weights: Weights, facts: ModelFacts, dtype: str, wanted: str) -> Iterator[Tensor]:
    """Yields all tensors of a model in the order of the file.

    Only the layer that is asked for is unpacked, so that little more than the file itself is read.

    Args:
        weights: A merged checkpoint.
        facts: The model it is of.
        dtype: The checkpoint's, such as ``float16``.
        wanted: ``compile.llamacpp.type``.

    Raises:
        CompileError: A tensor has no place in the file.
    """
    mixture = MIXTURES.get(wanted)
    wide = _FLOATS[dtype]
    hidden = facts.hidden_size
    embedding = mixture.embedding(hidden) if mixture else wide
    head = mixture.head(hidden) if mixture else wide
    tied = facts.tie_word_embeddings
    yield _floats(EMBEDDING, weights.vocab_embedding, head if tied else embedding)
    yield _floats(LAST_NORM, weights.ln_f, Type.F32)
    if not tied:
        yield _floats(HEAD, _head(weights.lm_head), head)
    factors = rope_factors(facts)
    if factors is not None:
        yield _floats(ROPE_FACTORS, factors, Type.F32)
    for number, layer in enumerate(weights.layers):
        yield from _layer(number, layer, facts, wide, mixture)


def _layer(
    number: int, layer: Layer, facts: ModelFacts, wide: Type, mixture: Mixture | None
) -> Iterator[Tensor]:
    folded: FoldedLayer = fold(layer, facts)
    seventy = is_seventy(facts)
    for norm, values in folded.norms.items():
        yield _floats(block(number, NORMS[norm]), values, Type.F32)
    for name, ours in LINEARS.items():
        matrix = folded.linears[name]
        place = block(number, ours)
        ordered = _order(ours, facts)
        if mixture:
            kind = mixture.linear(
                ours, number, facts.num_hidden_layers, matrix.weight.shape[1], seventy=seventy
            )
            yield _floats(place, matrix.weight, kind, partial(_values, matrix, ordered))
        else:
            yield _stored(place, matrix, ordered, wide, folded.left.get(name, ""))
        if matrix.bias is not None:
            bias = ordered(np.asarray(matrix.bias))
            yield _floats(block(number, ours, "bias"), bias, Type.F32)


def _values(
    matrix: Matrix, ordered: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    return ordered(matrix.values())


def _order(name: str, facts: ModelFacts) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    if name in ROTATED and family_of(facts).in_pairs:
        return partial(to_pairs, heads=getattr(facts, ROTATED[name]))
    return lambda rows: rows


def _head(head: Linear) -> npt.NDArray[Any]:
    return head.weight if head.algo == NO_QUANT else dequantize(head)


def _floats(
    name: str,
    values: npt.NDArray[Any],
    kind: Type,
    made: Callable[[], npt.NDArray[Any]] | None = None,
) -> Tensor:
    """A tensor of numbers, rounded to a type unless it is a vector.

    Args:
        name: llama.cpp's.
        values: The numbers, or an array of their shape.
        kind: Of a matrix.
        made: Computes the numbers when they are written; None takes ``values``.
    """
    if values.ndim == 1:
        kind = Type.F32
    if not is_float(kind) and values.shape[-1] % BLOCK:
        raise CompileError(
            f"{name} has {values.shape[-1]} input features, which are no multiple of {BLOCK}",
            why=f"{kind.name} has blocks of {BLOCK} along them",
            fix="Set compile.llamacpp.type to f16",
        )

    def data() -> npt.NDArray[Any]:
        return encode((values if made is None else made()).astype(np.float32), kind)

    return Tensor(name, kind, values.shape, data)


def _stored(
    name: str,
    matrix: Matrix,
    ordered: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    wide: Type,
    why_left: str,
) -> Tensor:
    """A linear with its own codes, where GGUF has a type of them."""
    codes = matrix.weight

    values = partial(_values, matrix, ordered)
    if matrix.scale is None:
        return _floats(name, codes, wide, values)
    halves = half_scales(matrix.scale)
    group = codes.shape[1] // matrix.scale.shape[1]
    if matrix.prequant is not None or halves is None or group % BLOCK:
        # Nothing holds such a linear but its values, to eight bits.
        change = f"{why_left or 'Its scales do not fit float16'}: values as Q8_0"
        return replace(_floats(name, codes, Type.Q8_0, values), change=change)
    scales, exact = halves
    change = "" if exact else "Scales rounded to float16, by 2^-11 at most"
    four = ALGOS[matrix.algo].weight_bits == 4
    pack = q4_0 if four else q8_0
    return Tensor(
        name,
        Type.Q4_0 if four else Type.Q8_0,
        codes.shape,
        lambda: pack(ordered(codes), ordered(scales)),
        change,
    )

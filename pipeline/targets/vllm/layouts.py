"""How quantized linears are stored for vLLM: tensors and ``quantization_config`` of each layout.

The layouts are those of compressed-tensors 0.20 (``pack-quantized``, ``int-quantized``,
``float-quantized``), of AutoGPTQ's first format, whose zero points are stored less one, and of
ModelOpt's unified checkpoint for FP8, which vLLM 0.32 reads by ``LINEAR_ALGOS`` of its modelopt.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import CompileError
from pipeline.formats import FP8, INT8_WO, W4A16_AWQ, W8A8_SQ_PER_CHANNEL

if TYPE_CHECKING:
    from pipeline.checkpoint.folding import Matrix
    from pipeline.checkpoint.layout import Array

HEAD = "lm_head"
_WORD = 32
PORTABLE = "Set quantize.portable to true, which leaves no scale to move, and quantize again"
COMPRESSED = (
    "Set compile.vllm.layout to compressed-tensors, whose scales have the model's own dtype"
)
_INT4_PER_WORD = _WORD // 4
_ZERO = 8
"""What is added to a code from -8 to 7 where it is stored without a sign."""


@dataclass(frozen=True)
class Whole:
    """What is the same for all quantized linears of a folder.

    Attributes:
        group_size: Input features that share a scale; None without groups.
        zero_points: Whether codes are counted from zero points of their own.
        ordered: Whether groups take inputs out of order (GPTQ's act-order).
        plain: Linears in floating point among them, by transformers' names.
    """

    group_size: int | None = None
    zero_points: bool = False
    ordered: bool = False
    plain: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One way to store a quantized linear.

    Attributes:
        tensors: Makes the tensors of a linear by their last names, from it and the model's dtype.
        configuration: Makes ``quantization_config``.
        mixed: Whether some linears may be in floating point.
    """

    tensors: Callable[[Matrix, str], dict[str, Array]]
    configuration: Callable[[Whole], dict[str, Any]]
    mixed: bool = True


def pack_int32(codes: Array, axis: int, bits: int = 4) -> Array:
    """Packs codes along an axis into int32, the first in the lowest bits.

    Args:
        codes: Whole numbers from 0 to 2^bits - 1, a multiple of what a word holds along the axis.
        axis: 0 or 1.
        bits: 4 or 8, so that a word holds eight or four.
    """
    import numpy as np

    count = _WORD // bits
    last = np.moveaxis(codes.astype(np.uint32), axis, -1)
    parts = last.reshape(*last.shape[:-1], -1, count)
    words = np.bitwise_or.reduce(parts << (bits * np.arange(count, dtype=np.uint32)), axis=-1)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis)).view(np.int32)


def exactly(values: Array, dtype: str, name: str, fix: str) -> Array:
    """Casts numbers to a dtype that has every one of them.

    Args:
        values: Floating point.
        dtype: NumPy's name, such as ``float16``.
        name: Of the tensor, for the error.
        fix: What to do where the dtype lacks one.

    Raises:
        CompileError: A value would be rounded.
    """
    import numpy as np

    from pipeline.checkpoint.reader import numpy_dtype

    with np.errstate(all="ignore"):
        cast = values.astype(numpy_dtype(dtype))
    if not np.array_equal(cast.astype(np.float32), values.astype(np.float32)):
        raise CompileError(
            f"{name} has numbers that {dtype} has not",
            why="The folder would round them, and no longer be the checkpoint that was measured",
            fix=fix,
        )
    return cast


def _group_scales(matrix: Matrix, dtype: str, fix: str) -> Array:
    assert matrix.scale is not None
    return exactly(matrix.scale, dtype, f"{matrix.name}.weight_scale", fix)


def _by_input(matrix: Matrix) -> tuple[Array, Array]:
    """The codes with their columns in the order of the inputs, and the group of each input.

    Returns:
        int8 [N, K] from 0 to 15, and int32 [K].
    """
    import numpy as np

    assert matrix.scale is not None
    codes, columns = matrix.weight + _ZERO, matrix.weight.shape[1]
    groups = (np.arange(columns) // (columns // matrix.scale.shape[1])).astype(np.int32)
    if matrix.order is None:
        return codes, groups
    by_input, group_of = np.empty_like(codes), np.empty_like(groups)
    by_input[:, matrix.order], group_of[matrix.order] = codes, groups
    return by_input, group_of


def _zero_points(matrix: Matrix, *, lowest: int, fix: str) -> Array:
    """The zero point of each group, int64 [N, groups], from ``lowest`` to ``lowest`` + 15.

    Raises:
        CompileError: One is no number of four bits where the layout counts like this.
    """
    import numpy as np

    assert matrix.scale is not None
    if matrix.offsets is None:
        return np.full(matrix.scale.shape, _ZERO)
    zeros: Array = _ZERO - matrix.offsets.astype(np.int64)
    if zeros.min() < lowest or zeros.max() > lowest + 15:
        raise CompileError(
            f"{matrix.name} has zero points that this layout has not",
            where="compile.vllm.layout",
            why=f"It has those from {lowest} to {lowest + 15}, and the checkpoint {zeros.min()} "
            f"to {zeros.max()}",
            fix=fix,
        )
    return zeros


def _pack_quantized(matrix: Matrix, dtype: str) -> dict[str, Array]:
    import numpy as np

    codes, group_of = _by_input(matrix)
    tensors = {
        "weight_packed": pack_int32(codes, 1),
        "weight_scale": _group_scales(matrix, dtype, PORTABLE),
        "weight_shape": np.array(codes.shape, np.int64),
    }
    if matrix.offsets is not None:
        fix = "Set compile.vllm.layout to gptq, which has a zero point of 16"
        zeros = _zero_points(matrix, lowest=0, fix=fix)
        tensors["weight_zero_point"] = pack_int32(_padded(zeros), 0)
    if matrix.order is not None:
        tensors["weight_g_idx"] = group_of
    return tensors


def _padded(rows: Array) -> Array:
    """Adds rows of zeros up to a multiple of what a word holds."""
    import numpy as np

    return np.pad(rows, ((0, -rows.shape[0] % _INT4_PER_WORD), (0, 0)))


def _packed_rows(matrix: Matrix, dtype: str) -> dict[str, Array]:  # noqa: ARG001
    import numpy as np

    assert matrix.scale is not None
    return {
        "weight_packed": pack_int32(matrix.weight.astype(np.int16) + 128, 1, bits=8),
        # vLLM casts them to the model's dtype as it loads them; here they are what they are.
        "weight_scale": matrix.scale.astype(np.float32),
        "weight_shape": np.array(matrix.weight.shape, np.int64),
    }


def _int_quantized(matrix: Matrix, dtype: str) -> dict[str, Array]:  # noqa: ARG001
    import numpy as np

    assert matrix.scale is not None
    return {
        "weight": matrix.weight,
        "weight_scale": matrix.scale,
        "input_scale": np.array([matrix.activation_scale], np.float32),
    }


def _float_quantized(matrix: Matrix, dtype: str) -> dict[str, Array]:  # noqa: ARG001
    return _fp8(matrix, (1,))


def _modelopt_fp8(matrix: Matrix, dtype: str) -> dict[str, Array]:  # noqa: ARG001
    return _fp8(matrix, ())


def _fp8(matrix: Matrix, shape: tuple[int, ...]) -> dict[str, Array]:
    import numpy as np

    from pipeline.checkpoint.reader import numpy_dtype

    assert matrix.scale is not None
    return {
        # A rank file may have the same bytes as int8.
        "weight": matrix.weight.view(numpy_dtype("float8_e4m3fn")),
        # One for the whole matrix, which every row has.
        "weight_scale": matrix.scale[:1, 0].reshape(shape),
        "input_scale": np.array(matrix.activation_scale, np.float32).reshape(shape),
    }


def _gptq(matrix: Matrix, dtype: str) -> dict[str, Array]:  # noqa: ARG001
    # Codes, zero points and groups: all along the inputs, which come first here.
    codes, group_of = _by_input(matrix)
    # No code is counted from 0 in this layout, which stores zero points less one.
    zeros = _zero_points(matrix, lowest=1, fix=COMPRESSED)
    return {
        "qweight": pack_int32(codes.T, 0),
        "qzeros": pack_int32(_padded(zeros - 1).T, 1),
        "scales": _group_scales(matrix, "float16", COMPRESSED).T,
        "g_idx": group_of,
    }


def _scheme(weights: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    static = {"symmetric": True, "dynamic": False}
    return {
        "targets": ["Linear"],
        "weights": {**static, **weights},
        "input_activations": None if inputs is None else {**static, **inputs},
        "output_activations": None,
    }


def _compressed(
    form: str, whole: Whole, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [HEAD, *whole.plain],
        "config_groups": {"group_0": _scheme(weights, inputs)},
    }


def _int4_groups(whole: Whole) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": whole.group_size}
    weights["symmetric"] = not whole.zero_points
    if whole.ordered:
        weights["actorder"] = "group"
    return _compressed("pack-quantized", whole, weights, None)


def _int8_rows(whole: Whole) -> dict[str, Any]:
    eight = {"num_bits": 8, "type": "int"}
    return _compressed(
        "int-quantized", whole, {**eight, "strategy": "channel"}, {**eight, "strategy": "tensor"}
    )


def _int8_rows_alone(whole: Whole) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "int", "strategy": "channel"}
    return _compressed("pack-quantized", whole, weights, None)


def _fp8_tensors(whole: Whole) -> dict[str, Any]:
    eight = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    return _compressed("float-quantized", whole, eight, eight)


def _gptq_configuration(whole: Whole) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": whole.group_size,
        "desc_act": whole.ordered,
        "sym": not whole.zero_points,
        "checkpoint_format": "gptq",
        HEAD: False,
    }


def _modelopt_configuration(whole: Whole) -> dict[str, Any]:
    eight = {"num_bits": 8, "type": "float", "dynamic": False}
    return {
        "quant_method": "modelopt",
        "quant_algo": FP8,
        "ignore": [HEAD, *whole.plain],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": eight, "input_activations": eight}
        },
    }


LAYOUTS: Mapping[str, Mapping[str, Layout]] = {
    W4A16_AWQ: {
        "compressed-tensors": Layout(_pack_quantized, _int4_groups),
        "gptq": Layout(_gptq, _gptq_configuration, mixed=False),
    },
    W8A8_SQ_PER_CHANNEL: {"compressed-tensors": Layout(_int_quantized, _int8_rows)},
    INT8_WO: {"compressed-tensors": Layout(_packed_rows, _int8_rows_alone)},
    FP8: {
        "modelopt": Layout(_modelopt_fp8, _modelopt_configuration),
        "compressed-tensors": Layout(_float_quantized, _fp8_tensors),
    },
}
"""By ``quant_algo`` and name; the first of each is taken where the recipe names none."""

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
from pipeline.formats import FP8, W4A16_AWQ, W8A8_SQ_PER_CHANNEL

if TYPE_CHECKING:
    from pipeline.checkpoint.folding import Matrix
    from pipeline.checkpoint.layout import Array

HEAD = "lm_head"
PER_WORD = 8
"""Codes of four bits in an int32."""
PORTABLE = "Set quantize.portable to true, which leaves no scale to move, and quantize again"
COMPRESSED = (
    "Set compile.vllm.layout to compressed-tensors, whose scales have the model's own dtype"
)
_ZERO = 8
"""What is added to a code from -8 to 7 where it is stored without a sign."""


@dataclass(frozen=True)
class Layout:
    """One way to store a quantized linear.

    Attributes:
        tensors: Makes the tensors of a linear by their last names, from it and the model's dtype.
        configuration: Makes ``quantization_config``, from the group size, None without groups.
    """

    tensors: Callable[[Matrix, str], dict[str, Array]]
    configuration: Callable[[int | None], dict[str, Any]]


def pack_int32(codes: Array, axis: int) -> Array:
    """Packs eight codes along an axis into each int32, the first in the lowest bits.

    Args:
        codes: Whole numbers from 0 to 15, a multiple of eight of them along the axis.
        axis: 0 or 1.
    """
    import numpy as np

    last = np.moveaxis(codes.astype(np.uint32), axis, -1)
    parts = last.reshape(*last.shape[:-1], -1, PER_WORD)
    words = np.bitwise_or.reduce(parts << (4 * np.arange(PER_WORD, dtype=np.uint32)), axis=-1)
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


def _pack_quantized(matrix: Matrix, dtype: str) -> dict[str, Array]:
    import numpy as np

    return {
        "weight_packed": pack_int32(matrix.weight + _ZERO, 1),
        "weight_scale": _group_scales(matrix, dtype, PORTABLE),
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
    import numpy as np

    # Codes, zero points and groups: all along the inputs, which come first here.
    scales = _group_scales(matrix, "float16", COMPRESSED).T
    groups, rows = scales.shape
    columns = matrix.weight.shape[1]
    return {
        "qweight": pack_int32((matrix.weight + _ZERO).T, 0),
        # The zero point of every symmetric code, stored less one.
        "qzeros": pack_int32(np.full((groups, rows), _ZERO - 1), 1),
        "scales": scales,
        "g_idx": (np.arange(columns) // (columns // groups)).astype(np.int32),
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
    form: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": [HEAD],
        "config_groups": {"group_0": _scheme(weights, inputs)},
    }


def _int4_groups(group_size: int | None) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group_size}
    return _compressed("pack-quantized", weights, None)


def _int8_rows(group_size: int | None) -> dict[str, Any]:  # noqa: ARG001
    eight = {"num_bits": 8, "type": "int"}
    return _compressed(
        "int-quantized", {**eight, "strategy": "channel"}, {**eight, "strategy": "tensor"}
    )


def _fp8_tensors(group_size: int | None) -> dict[str, Any]:  # noqa: ARG001
    whole = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    return _compressed("float-quantized", whole, whole)


def _gptq_configuration(group_size: int | None) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": group_size,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
        HEAD: False,
    }


def _modelopt_configuration(group_size: int | None) -> dict[str, Any]:  # noqa: ARG001
    whole = {"num_bits": 8, "type": "float", "dynamic": False}
    return {
        "quant_method": "modelopt",
        "quant_algo": FP8,
        "ignore": [HEAD],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": whole, "input_activations": whole}
        },
    }


LAYOUTS: Mapping[str, Mapping[str, Layout]] = {
    W4A16_AWQ: {
        "compressed-tensors": Layout(_pack_quantized, _int4_groups),
        "gptq": Layout(_gptq, _gptq_configuration),
    },
    W8A8_SQ_PER_CHANNEL: {"compressed-tensors": Layout(_int_quantized, _int8_rows)},
    FP8: {
        "modelopt": Layout(_modelopt_fp8, _modelopt_configuration),
        "compressed-tensors": Layout(_float_quantized, _fp8_tensors),
    },
}
"""By ``quant_algo`` and name; the first of each is taken where the recipe names none."""

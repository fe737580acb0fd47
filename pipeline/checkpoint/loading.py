"""What TensorRT-LLM makes of the scales of a checkpoint when it loads them.

The steps are those of ``preprocess_perlayer_weights`` in ``tensorrt_llm/models/modeling_utils.py``:
INT4 group scales are cast to the model's dtype. For W4A8 they are then divided by
``weights_scaling_factor_2`` in place, so rounded to that dtype again, and cast to float16, whatever
the dtype; pre-quant scales are divided by ``activation_scaling_factor``, in place as well. A
quotient is computed in float32, the wider of its two sides.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.reader import numpy_dtype

DIVIDED_SCALES = "float16"
"""What group scales are in the end where they are divided."""


def as_loaded(
    values: Array, dtype: str, *, divisor: float | None = None, last: str | None = None
) -> npt.NDArray[np.float32]:
    """Turns stored scales into what a kernel gets.

    Args:
        values: As stored.
        dtype: The model's, to which they are cast first and after the division.
        divisor: What they are divided by; None leaves them.
        last: The dtype that they are cast to in the end; None is ``dtype``.

    Returns:
        float32, of the same shape; infinite where a value does not fit one of the dtypes.
    """
    # What overflows is infinite there too, and for the caller to judge.
    with np.errstate(all="ignore"):
        loaded = _cast(values, dtype)
        if divisor is not None:
            loaded = _cast(loaded / np.float32(divisor), dtype)
        return loaded if last is None else _cast(loaded, last)


def largest_loadable(dtype: str, divisor: float) -> float:
    """Finds the largest value of a dtype whose quotient by ``divisor`` is finite in that dtype.

    A divisor that is not positive is no scale, which is for the caller to judge: the answer is then
    the largest finite value of the dtype.
    """
    number = numpy_dtype(dtype).type
    most = np.nextafter(number(np.inf), number(0))
    if not divisor > 0:
        return float(most)
    with np.errstate(over="ignore"):
        limit = number(np.float32(most) * np.float32(divisor))
    if not np.isfinite(np.float32(limit)):
        limit = most
    while not np.isfinite(as_loaded(np.asarray(limit), dtype, divisor=divisor)):
        limit = np.nextafter(limit, number(0))
    return float(limit)


def _cast(values: Array, dtype: str) -> npt.NDArray[np.float32]:
    return values.astype(numpy_dtype(dtype)).astype(np.float32)

"""Products and sums that have the same bits on any number of threads."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pipeline.processor import CPUINFO, is_intel

# Read by MKL with its first product of the process: it then adds up in an order that depends on
# neither threads nor addresses (oneMKL's "strict conditional numerical reproducibility"). Else two
# threads share the sums of a product where rows are few and features many, such as 237 rows of
# 4,864 features, and three do not; and MKL by itself takes no more threads than there are cores.
MKL_ORDER = {"MKL_CBWR": "AUTO,STRICT"}
# What limits MKL and oneDNN to instructions of older processors, which round otherwise.
_INSTRUCTIONS = ("MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# MKL_CBWR_STRICT of MKL's headers, a bit of the order that it follows.
_STRICT = 0x10000

# Each thread adds up its share of the elements, and then there are as many sums as threads.
_SUMS = (
    *("sum", "mean", "nansum", "nanmean", "var", "std", "prod", "norm"),
    *("dot", "vdot", "inner", "mv", "logsumexp"),
)
# Each thread takes a share of the sums here as well, or of the blocks of a matrix, which LAPACK
# cuts by their number.
_ALGEBRA = ("norm", "vector_norm", "matrix_norm", "vecdot", "cholesky", "cholesky_ex")
_INVERSES = ("cholesky_inverse",)
# Computed by vectors of the processor, but the last few elements of each thread's share by the C
# library, which rounds otherwise. Products, quotients and square roots are exact in both.
_CURVES = (
    *("exp", "exp2", "log", "pow", "__pow__", "__rpow__"),
    *("sin", "cos", "tanh", "erf", "sigmoid"),
)
_ACTIVATIONS = ("silu", "gelu", "softplus", "mish", "elu")
_LOSSES = ("mse_loss", "l1_loss", "kl_div", "cosine_similarity")


def mkl_order(cpuinfo: Path = CPUINFO) -> dict[str, str]:
    """Returns the environment that makes MKL's products independent of threads.

    It is empty where the user has chosen MKL's order, and on processors that are not Intel's, for
    which MKL documents no such order.
    """
    return {} if "MKL_CBWR" in os.environ or not is_intel(cpuinfo) else dict(MKL_ORDER)


def keeps_another_order() -> bool:
    """Says whether MKL goes on in an order that it had before :data:`MKL_ORDER` was set.

    It does in a process that has multiplied already; a build without MKL keeps no order.
    """
    order = order_in_use()
    return order is not None and not order & _STRICT


def order_in_use() -> int | None:
    """Asks MKL in torch's library, in whose process it is, for the order in which it adds up.

    Returns:
        A value of MKL's ``mkl_cbwr_get``; None in a build without it.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return int(library.mkl_serv_cbwr_get(-1))
    except (OSError, AttributeError):
        return None


def chosen_instructions() -> dict[str, str]:
    """Returns what the environment says of the instructions that products are computed by."""
    return {name: os.environ[name] for name in _INSTRUCTIONS if name in os.environ}


class OnOneThread(TorchFunctionMode):
    """Runs the functions on one thread whose results depend on how many share the elements.

    They are cheap beside the products of a model, which keep all threads.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls a function of torch."""
        threads = torch.get_num_threads()
        if threads == 1 or func not in _SHARED or _is_square(func, args):
            return func(*args, **(kwargs or {}))
        torch.set_num_threads(1)
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch.set_num_threads(threads)


def _is_square(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    # torch multiplies for it.
    return (
        getattr(func, "__name__", "") in ("pow", "__pow__")
        and len(args) > 1
        and args[1] in (2, 2.0)
    )


def _functions() -> set[Any]:
    names = {place for name in _SUMS + _CURVES + _INVERSES for place in (name, f"{name}_")}
    found = {getattr(torch, name, None) for name in names}
    found |= {getattr(torch.Tensor, name, None) for name in names}
    found |= {getattr(torch.linalg, name) for name in _ALGEBRA}
    found |= {getattr(torch.nn.functional, name) for name in _ACTIVATIONS + _LOSSES}
    return found - {None}


_SHARED = _functions()

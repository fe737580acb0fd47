"""Products and sums that have the same bits on any number of threads."""

from __future__ import annotations

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

# Each thread adds up its share of the elements, and then there are as many sums as threads.
_SUMS = ("sum", "mean", "var", "std", "prod", "norm", "dot", "logsumexp")
# Computed by vectors of the processor, but the last few elements of each thread's share by the C
# library, which rounds otherwise. Products, quotients and square roots are exact in both.
_CURVES = ("exp", "log", "pow", "sin", "cos", "tanh", "erf", "sigmoid")
_ACTIVATIONS = ("silu", "gelu", "softplus", "mse_loss")


def mkl_order(cpuinfo: Path = CPUINFO) -> dict[str, str]:
    """Returns the environment that makes MKL's products independent of threads.

    It is empty where the user has chosen MKL's order, and on processors that are not Intel's, for
    which MKL documents no such order.
    """
    return {} if "MKL_CBWR" in os.environ or not is_intel(cpuinfo) else dict(MKL_ORDER)


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
    return getattr(func, "__name__", "") == "pow" and len(args) > 1 and args[1] in (2, 2.0)


def _functions() -> set[Any]:
    names = {place for name in _SUMS + _CURVES for place in (name, f"{name}_")}
    found = {getattr(torch, name, None) for name in names}
    found |= {getattr(torch.Tensor, name, None) for name in names}
    found |= {getattr(torch.nn.functional, name) for name in _ACTIVATIONS}
    return found - {None}


_SHARED = _functions()

"""The largest activations of a model while it is scored, and what its dtype makes of them.

A reference computes in float32, which holds values that the GPU's dtype does not: beyond 65504 a
float16 is infinite, and soon everything is NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from pipeline.reference.linear import CheckpointLinear

# Their inputs are no other module's output: the values mixed by attention, and gate times up.
_WATCHED_INPUTS = ("o_proj", "down_proj")
# The engine's logits are float32.
_HEAD = "lm_head"


@dataclass(frozen=True)
class Activations:
    """What was seen.

    Attributes:
        dtype: The checkpoint's, such as ``float16``.
        limit: The largest finite number of it.
        largest: The largest magnitude; not finite where an activation was not.
        where: The module it was seen at, as in ``named_modules``.
        beyond: Values larger than the limit, or not finite.
        rounded: Whether every one was rounded to the dtype, as on a GPU.
    """

    dtype: str
    limit: float
    largest: float
    where: str
    beyond: int
    rounded: bool

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as JSON values; what is not finite is None."""
        largest = self.largest if math.isfinite(self.largest) else None
        return {**self.__dict__, "largest": largest}


class ActivationWatch:
    """Sees the outputs of a reference's embedding, norms, linears and layers while it is open.

    Padding counts, as it is text of the model too.

    Args:
        model: A model of :func:`pipeline.reference.load_reference`.
        dtype: ``float16`` or ``bfloat16``.
        rounded: Rounds each of them, and each input of a linear, to the dtype. Sums within a module
            stay float32, as in a GPU's matrix units.
    """

    def __init__(self, model: torch.nn.Module, dtype: str, *, rounded: bool = False) -> None:
        self._model, self._dtype, self._rounded = model, dtype, rounded
        self._torch_dtype: torch.dtype = getattr(torch, dtype)
        self._limit = float(torch.finfo(self._torch_dtype).max)
        self._largest, self._where, self._beyond = 0.0, "", 0
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> ActivationWatch:
        """Sets the hooks."""
        for name, module in self._model.named_modules():
            if not _is_watched(module):
                continue
            last = name.rpartition(".")[2]
            if isinstance(module, CheckpointLinear) and (self._rounded or last in _WATCHED_INPUTS):
                self._handles.append(module.register_forward_pre_hook(self._input_hook(name)))
            self._handles.append(module.register_forward_hook(self._output_hook(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()

    def found(self) -> Activations:
        """Returns what was seen so far."""
        return Activations(
            dtype=self._dtype,
            limit=self._limit,
            largest=self._largest,
            where=self._where,
            beyond=self._beyond,
            rounded=self._rounded,
        )

    def _input_hook(self, name: str) -> Any:
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
            return (self._see(inputs[0], name), *inputs[1:])

        return hook

    def _output_hook(self, name: str) -> Any:
        rounds = self._rounded and name != _HEAD

        def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (self._see(output[0], name, rounds=rounds), *output[1:])
            return self._see(output, name, rounds=rounds)

        return hook

    def _see(self, x: torch.Tensor, name: str, *, rounds: bool | None = None) -> torch.Tensor:
        low, high = (float(value) for value in torch.aminmax(x))
        magnitude = max(-low, high)
        # A NaN makes both of them NaN.
        if not magnitude <= self._limit:
            self._beyond += int((~(x.abs() <= self._limit)).sum())
        if not magnitude <= self._largest and math.isfinite(self._largest):
            self._largest, self._where = magnitude, name
        if self._rounded if rounds is None else rounds:
            return x.to(self._torch_dtype).to(x.dtype)
        return x


def _is_watched(module: torch.nn.Module) -> bool:
    kind = type(module).__name__
    return isinstance(module, CheckpointLinear | torch.nn.Embedding) or kind.endswith(
        ("RMSNorm", "DecoderLayer")
    )

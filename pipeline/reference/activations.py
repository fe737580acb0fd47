"""The largest activations of a model while it is scored, and what its dtype makes of them.

A reference computes in float32, which holds values that the GPU's dtype does not: beyond 65504 a
float16 is infinite, and soon everything is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from pipeline.layers.parts import EmbeddingByRows, HeadInBlocks, Part
from pipeline.reference.linear import CheckpointLinear

Seen = tuple[str, float, int]
"""A module, the largest magnitude there, and how many values were beyond the limit."""

# Their inputs are no other module's output: the values mixed by attention, and gate times up.
_WATCHED_INPUTS = ("o_proj", "down_proj")
# The engine's logits are float32.
_HEAD = "lm_head"
# The last one is a head that is read while it is multiplied; no other linear is torch's own.
_LINEARS = (CheckpointLinear, HeadInBlocks, torch.nn.Linear)
_WATCHED = (*_LINEARS, torch.nn.Embedding, EmbeddingByRows)


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
    """Sees the outputs of a reference's embedding, norms, linears, layers and head.

    Padding counts, as it is text of the model too. In a walk through the parts of a model a layer
    sees all batches before the next layer sees one; what was seen is put into the order of a whole
    model, which sees one batch after another, since the first of equals is named.

    Args:
        dtype: ``float16`` or ``bfloat16``.
        rounded: Rounds each of them, and each input of a linear, to the dtype. Sums within a module
            stay float32, as in a GPU's matrix units.
    """

    def __init__(self, dtype: str, *, rounded: bool = False) -> None:
        self._dtype, self._rounded = dtype, rounded
        self._torch_dtype: torch.dtype = getattr(torch, dtype)
        self._limit = float(torch.finfo(self._torch_dtype).max)
        self._largest, self._where, self._beyond = 0.0, "", 0
        # Of the batches of a walk that are not through yet.
        self._waiting: dict[int, list[Seen]] = {}
        self._batch: int | None = None

    @contextmanager
    def watching(self, part: Part) -> Iterator[None]:
        """Returns a context manager in which the part's modules are seen."""
        handles: list[RemovableHandle] = []
        for name, module in part.modules.items():
            if not _is_watched(module):
                continue
            last, linear = name.rpartition(".")[2], isinstance(module, _LINEARS)
            if linear and (self._rounded or last in _WATCHED_INPUTS):
                handles.append(module.register_forward_pre_hook(self._input_hook(name)))
            handles.append(module.register_forward_hook(self._output_hook(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, batch: int) -> None:
        """Notes which batch of a walk comes next."""
        self._batch = batch

    def end(self, batch: int) -> None:
        """Counts what was seen of a batch that is through."""
        for seen in self._waiting.pop(batch, []):
            self._count(*seen)
        self._batch = None

    def seen(self) -> list[tuple[int, list[Seen]]]:
        """Returns what was seen of the batches that are not through yet."""
        return list(self._waiting.items())

    def restore(self, seen: list[tuple[int, list[Seen]]]) -> None:
        """Takes what :meth:`seen` returned, as JSON gives it back."""
        self._waiting = dict(seen)

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
        magnitude, beyond = max(-low, high), 0
        # A NaN makes both of them NaN.
        if not magnitude <= self._limit:
            beyond = int((~(x.abs() <= self._limit)).sum())
        if self._batch is None:
            self._count(name, magnitude, beyond)
        else:
            self._waiting.setdefault(self._batch, []).append((name, magnitude, beyond))
        if self._rounded if rounds is None else rounds:
            return x.to(self._torch_dtype).to(x.dtype)
        return x

    def _count(self, name: str, magnitude: float, beyond: int) -> None:
        self._beyond += beyond
        if not magnitude <= self._largest and math.isfinite(self._largest):
            self._largest, self._where = magnitude, name


def _is_watched(module: torch.nn.Module) -> bool:
    kind = type(module).__name__
    return isinstance(module, _WATCHED) or kind.endswith(("RMSNorm", "DecoderLayer"))

"""AWQ's search for scales on few rows that stand for the whole calibration text.

For each of eleven exponents ModelOpt 0.37 rounds the scaled weight of a linear and takes the mean
square of what that changes in its outputs (``torch/quantization/model_calib.py``: ``awq_lite``).
With inputs X [tokens, features] and an error D of the weight that is the square norm of X D^T, and
of R D^T for any R with R^T R = X^T X. The triangular factor of the second moments is such an R,
with as many rows as there are features, however long the text is. So ModelOpt's search is given R:
it tries, rounds and compares as ever, and the scales are made of statistics of the text itself.

Where two exponents are so close that rounding could decide between them, where the moments have no
factor, and where the text is not much longer than R, ModelOpt searches on the text. In 16 bit it
does so for all linears: products are rounded there, and behind a large bias other ones than those
of the text.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from pipeline.quantize.formats import is_condensed
from pipeline.quantize.moments import add_moments, new_moments
from pipeline.quantize.statistics import awq_linears

# Of each feature's own second moment, added to it: far above the rounding of float64, and far below
# what the search can see.
_RIDGE = 1e-11
# Relative distance of two losses that float32 does not bridge: with large biases and features that
# are nearly constant, losses on few rows were 8e-5 away from those on the text.
_APART = 3e-4


class AwqSearch:
    """AWQ's two passes over a layer that is a model of its own.

    Args:
        look: Runs the layer over what its next pass will see, and keeps nothing of it.
        tokens: Of the text.
        live: Whether something is rounded in the second pass that was not in the first, such as
            keys and values, so that inputs differ.
    """

    def __init__(self, look: Callable[[Any], None], tokens: int, *, live: bool) -> None:
        self._look, self._tokens, self._live = look, tokens, live
        self._inputs: list[_Inputs] = []

    @contextlib.contextmanager
    def measuring(self, model: Any) -> Iterator[None]:
        """Looks on while ModelOpt's first pass runs.

        Args:
            model: Within ``mtq.quantize``.
        """
        with contextlib.nullcontext() if self._live else self._gathering(model):
            yield

    @contextlib.contextmanager
    def searching(self, model: Any) -> Iterator[None]:
        """Searches before ModelOpt's second pass runs, which is left what is undecided then.

        Args:
            model: Within ``mtq.quantize``.
        """
        if not self._inputs and self._condensed(model):
            linears = (linear for _, linear in awq_linears(model))
            with _plain(linears), self._gathering(model):
                self._look(model)
        with _plain(self._decided()):
            yield

    @contextlib.contextmanager
    def _gathering(self, model: Any) -> Iterator[None]:
        """Takes what the linears are given meanwhile."""
        owns: dict[Any, _Inputs] = {}

        def take(linear: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            (given,) = (*inputs, *named.values())
            own = owns.get(linear)
            if own is None:
                own = self._inputs[-1] if self._inputs else None
                if own is None or own.last is not given:
                    own = _Inputs(given.shape[-1], given.device)
                    self._inputs.append(own)
                owns[linear] = own
            own.take(linear, given)

        with contextlib.ExitStack() as hooks:
            for linear in self._condensed(model):
                hook = linear.register_forward_pre_hook(take, with_kwargs=True)
                hooks.callback(hook.remove)
            yield

    def _condensed(self, model: Any) -> list[Any]:
        """The linears that are searched for on few rows."""
        return [
            linear
            for _, linear in awq_linears(model)
            if is_condensed(self._tokens, linear.weight.shape[-1])
        ]

    def _decided(self) -> list[Any]:
        """Lets ModelOpt search on few rows, and returns the linears where that decided."""
        found = []
        while self._inputs:
            inputs = self._inputs.pop()
            rows = inputs.rows()
            if rows is None:
                continue
            for linear in inputs.readers():
                linear(rows.to(linear.weight.dtype))
                helper = linear.awq_lite
                if _is_clear(helper.loss.values()):
                    found.append(linear)
                else:
                    helper.loss, helper.num_search_steps = dict.fromkeys(helper.loss, 0.0), 0
        return found


@contextlib.contextmanager
def _plain(linears: Iterable[Any]) -> Iterator[None]:
    """Lets linears within AWQ's search do nothing but multiply, unrounded."""
    with contextlib.ExitStack() as undo:
        for linear in linears:
            undo.callback(setattr, linear, "forward", linear.forward)
            undo.callback(linear.weight_quantizer.enable)
            for quantizer in (linear.input_quantizer, linear.weight_quantizer):
                # Of the last exponent that was tried.
                if hasattr(quantizer, "_pre_quant_scale"):
                    delattr(quantizer, "_pre_quant_scale")
            linear.weight_quantizer.disable()
            linear.forward = linear._forward_no_awq
        yield


def _is_clear(losses: Iterable[float]) -> bool:
    """Says whether one loss is less than all others by more than rounding could make it."""
    values = sorted(losses)
    return all(map(math.isfinite, values)) and values[1] > values[0] * (1 + _APART)


class _Inputs:
    """What one linear is given, or several that have the same inputs.

    Args:
        features: Of a row.
        device: Where they are.

    Attributes:
        last: The batch that came last.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.last: torch.Tensor | None = None
        self._features, self._count = features, 0
        self._readers: dict[Any, float] = {}
        self._moments = new_moments(features, device)

    def take(self, linear: Any, inputs: torch.Tensor) -> None:
        """Takes what a linear is given; the first one's batches are counted."""
        seen = self._readers.setdefault(linear, 0)
        if self.last is not inputs and linear is next(iter(self._readers)):
            self.add(inputs)
        # What has read something else, or something twice, has another count in the end.
        self._readers[linear] = seen + 1 if self.last is inputs else math.inf

    def readers(self) -> list[Any]:
        """Returns the linears that were given every batch once, and nothing else."""
        return [linear for linear, seen in self._readers.items() if seen == self._count]

    def add(self, inputs: torch.Tensor) -> None:
        """Takes a batch, [..., features], which counts as much as each of the others.

        That is what ModelOpt's sum of means makes of them.
        """
        self.last = inputs
        self._count += 1
        add_moments(self._moments, inputs, self._features / inputs.numel())

    def rows(self) -> torch.Tensor | None:
        """Returns rows with their second moments, or None where these have no factor."""
        # In units of each feature, so that what is added for large ones is nothing beside small
        # ones.
        sizes = self._moments.diagonal().sqrt()
        units = torch.where(sizes > 0, 1 / sizes, 0)
        correlations = self._moments.mul_(units[:, None]).mul_(units)
        correlations.diagonal().fill_(1 + _RIDGE)
        factor, failed = torch.linalg.cholesky_ex(correlations, upper=True)
        # As large as rows of the text, so that a bias hides no more of what a product with them is;
        # and by a power of two, which rounds nothing.
        scale = 2.0 ** round(math.log2(self._features / self._count) / 2)
        return None if failed.item() else factor.mul_(sizes * scale)

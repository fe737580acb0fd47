"""What the first pass over the calibration text measures, kept for other settings of a format.

SmoothQuant's alpha and AWQ's group size are applied to statistics of the activations that depend on
neither: the largest absolute value of each input channel (SmoothQuant) or its mean (AWQ). ModelOpt
0.37 collects them in its first call of ``forward_loop`` and computes everything else from them
(``torch/quantization/model_calib.py``: ``smoothquant``, ``awq_lite``). A later calibration may
therefore be given them instead of running the model, and all arithmetic stays ModelOpt's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.errors import StageError

if TYPE_CHECKING:
    import torch

    from pipeline.layers.state import State


class Statistics:
    """Activation statistics of one model on one calibration text.

    It serves formats whose weights alone are searched for by AWQ: for quantized activations
    ModelOpt also keeps ranges in the quantizers themselves.
    """

    def __init__(self) -> None:
        self._largest: dict[str, Any] = {}
        self._awq: dict[str, tuple[Any, int, float]] = {}
        self._layers: dict[int, Statistics] = {}

    def of_layer(self, index: int) -> Statistics:
        """Returns the statistics of a layer that is calibrated as a model of its own."""
        return self._layers.setdefault(index, Statistics())

    @property
    def collected(self) -> bool:
        """Whether there is anything to give, of the model or of a layer."""
        own = bool(self._largest or self._awq)
        return own or any(layer.collected for layer in self._layers.values())

    def covers(self, layers: int) -> bool:
        """Says whether there is something to give of the model, or of so many layers."""
        of_layers = [layer.collected for layer in self._layers.values()]
        return bool(self._largest or self._awq) or (len(of_layers) == layers and all(of_layers))

    def to_tensors(self) -> list[torch.Tensor]:
        """Returns what was collected of layers, so that it can be saved."""
        from pipeline.layers.state import as_tensor

        names: list[tuple[int, str, tuple[int, float] | None]] = []
        tensors = []
        for index, layer in self._layers.items():
            for name, largest in layer._largest.items():
                names.append((index, name, None))
                tensors.append(largest.cpu())
            for name, (scale, steps, tokens) in layer._awq.items():
                names.append((index, name, (steps, tokens)))
                tensors.append(scale.cpu())
        return [as_tensor(names), *tensors]

    @classmethod
    def from_tensors(cls, saved: Sequence[torch.Tensor], device: torch.device) -> Statistics:
        """Returns the statistics that :meth:`to_tensors` was asked of, on a device."""
        from pipeline.layers.state import from_tensor

        found, (names, *tensors) = cls(), saved
        for (index, name, counted), tensor in zip(from_tensor(names), tensors, strict=True):
            layer, there = found.of_layer(index), tensor.to(device)
            if counted is None:
                layer._largest[name] = there
            else:
                layer._awq[name] = (there, *counted)
        return found

    def take_from(self, model: Any) -> None:
        """Copies what ModelOpt holds of a model at the end of its first pass."""
        for name, calibrator in _calibrators(model):
            if calibrator.compute_amax() is not None:
                self._largest[name] = calibrator.compute_amax().clone()
        for name, module in awq_linears(model):
            helper = module.awq_lite
            if helper.num_cache_steps:
                scale = helper.act_scale.clone()
                self._awq[name] = (scale, helper.num_cache_steps, helper.num_tokens)

    def give_to(self, model: Any) -> None:
        """Puts it where the first pass over a fresh copy of the model would have.

        Raises:
            StageError: The model has other linears than the one it was taken from.
        """
        calibrators, linears = dict(_calibrators(model)), dict(awq_linears(model))
        if not (self._largest.keys() <= calibrators.keys() and self._awq.keys() <= linears.keys()):
            raise StageError(
                "calibration statistics do not fit the model",
                why="They were taken from a model with other quantizers",
            )
        for name, largest in self._largest.items():
            calibrators[name]._calib_amax = largest.clone()
        for name, (scale, steps, tokens) in self._awq.items():
            helper = linears[name].awq_lite
            # ModelOpt adds to the tensor in place.
            helper.act_scale, helper.num_cache_steps = scale.clone(), steps
            helper.num_tokens = tokens


class Shared:
    """The statistics that the candidates of a search share: of all layers, or none yet.

    Part of them would do for the bytes, but not for the states with which a killed run goes on.

    Args:
        layers: Of the model.
        device: What is calibrated on.
        state: Keeps them for another run; None keeps nothing.
    """

    def __init__(self, layers: int, device: torch.device, state: State | None = None) -> None:
        self._layers, self._device, self._state = layers, device, state
        self._found = Statistics()

    def begin(self) -> Statistics:
        """Returns what a candidate is given, and collects into where it is empty."""
        saved = self._state.load() if self._state else None
        if saved:
            self._found = Statistics.from_tensors(saved.tensors, self._device)
            self._state = None
        return self._found

    def end(self) -> None:
        """Keeps what a candidate has collected."""
        if not self._found.covers(self._layers):
            # A candidate that an earlier run began passes only over the rest of the layers.
            self._found = Statistics()
        elif self._state:
            # Nothing that is computed needs it.
            with suppress(OSError):
                self._state.save(self._layers, self._found.to_tensors())
            self._state = None


def _calibrators(model: Any) -> Iterator[tuple[str, Any]]:
    """Yields the calibrators that collect something, by the name of their quantizer."""
    for name, module in model.named_modules():
        calibrator = getattr(module, "_calibrator", None)
        if calibrator is not None and not module._disabled:
            yield name, calibrator


def awq_linears(model: Any) -> Iterator[tuple[str, Any]]:
    """Yields the linears that ModelOpt searches for just now, by name."""
    for name, module in model.named_modules():
        if hasattr(module, "awq_lite"):
            yield name, module

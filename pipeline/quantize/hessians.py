"""Rounds a decoder layer by layer, each linear by the second moments of its inputs.

A layer's inputs are those that the layers before it give when they are already rounded, and within
a layer those of o_proj come from rounded q, k and v, and so on: what one linear loses, the next one
is calibrated with. One layer's Hessian is in memory at a time, and the hidden states of the text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pipeline.errors import StageError, UnsupportedError
from pipeline.models.architectures import SHARED_INPUTS
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress, Task
from pipeline.quantize.calibrate import bounded
from pipeline.quantize.formats import checkpoint_dtype
from pipeline.quantize.gptq import Spread, round_weight, spread
from pipeline.recipe.schema import Recipe
from pipeline.source.tokens import Rows

# Rows of inputs that are turned to float64 at a time.
CHUNK = 4096
Scales = dict[str, torch.Tensor]
"""float32 [N, K / group] by the linear's name in transformers' model."""


def round_decoder(
    model: Any, facts: ModelFacts, recipe: Recipe, batches: Sequence[Rows], progress: Progress
) -> Scales:
    """Replaces the weight of each linear of the decoder by values of its INT4 codes.

    Args:
        model: A transformers ``*ForCausalLM``; it is changed in place.
        facts: Of the model.
        recipe: ``quantize.group_size``, ``quantize.act_order`` and ``model.dtype`` count.
        batches: Token ids [batch][length]; rows of one batch have equal length.
        progress: Gets one task over all passes.

    Returns:
        The scales of the groups. A weight is a whole number from -8 to 7 times its scale.

    Raises:
        StageError: Activations or weights are not finite.
        UnsupportedError: Part of the model is not in the memory of the device.
    """
    quantize = recipe.quantize
    _refuse_offloaded(model, recipe)
    layers = model.model.layers
    rows = sum(len(batch) for batch in batches)
    passes = 1 + len(layers) * (len(SHARED_INPUTS) + 1)
    names = {shape.name: [name for name, _ in shape.source] for shape in facts.linears}
    dtype = getattr(torch, checkpoint_dtype(recipe))
    scales: Scales = {}
    task_name = f"rounding {quantize.format}"
    with bounded(), progress.task(task_name, rows * passes) as task, torch.inference_mode():
        walk = _Walk(model, batches, task)
        for number, layer in enumerate(layers):
            for fused in SHARED_INPUTS:
                readers = [name for one in fused for name in names[one]]
                with _naming(number, readers[0]):
                    first = layer.get_submodule(readers[0])
                    by = walk.spread_of(number, first, quantize.act_order)
                    for name in readers:
                        linear = layer.get_submodule(name)
                        rounded = round_weight(linear.weight, by, quantize.group_size, dtype)
                        linear.weight.copy_(rounded.values())
                        scales[f"model.layers.{number}.{name}"] = rounded.scales
                    del by
            walk.go_on(number)
    return scales


def keep_scales(model: Any, scales: Scales) -> None:
    """Makes ModelOpt export the scales that weights were rounded with, and no pre-quant scale.

    Args:
        model: The model of :func:`round_decoder` after ``mtq.quantize``, which has measured groups
            of its own on the rounded weights.
        scales: What :func:`round_decoder` returned.
    """
    with torch.inference_mode():
        for name, own in scales.items():
            linear = model.get_submodule(name)
            quantizer, device = linear.weight_quantizer, linear.weight.device
            # The export divides by 7 what is seven times a number of 11 bits: nothing is rounded.
            quantizer.reset_amax()
            quantizer.amax = (own * quantizer.maxbound).reshape(-1, 1).to(device)
            linear.input_quantizer.pre_quant_scale = torch.ones(
                linear.in_features, dtype=linear.weight.dtype, device=device
            )


class _Walk:
    """The hidden states of the text in front of a layer, and what else the model gives each."""

    def __init__(self, model: Any, batches: Sequence[Rows], task: Task) -> None:
        self._layers, self._task = model.model.layers, task
        self._sizes = [len(batch) for batch in batches]
        self._hidden: list[torch.Tensor] = []
        # Masks differ between the layers of models with some sliding windows, so each is asked for.
        self._keywords: list[list[dict[str, Any]]] = []
        for batch in batches:
            self._begin(model, batch)

    def _begin(self, model: Any, batch: Rows) -> None:
        given: list[dict[str, Any]] = []

        def take(layer: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if layer is self._layers[0]:
                self._hidden.append(inputs[0] if inputs else keywords["hidden_states"])
            given.append({name: value for name, value in keywords.items() if name not in _STATES})

        hooks = [layer.register_forward_pre_hook(take, with_kwargs=True) for layer in self._layers]
        try:
            tokens = torch.tensor(batch, dtype=torch.long, device=model.device)
            model(input_ids=tokens, use_cache=False, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        self._keywords.append(given)
        self._task.advance(len(batch))

    def spread_of(self, number: int, linear: Any, act_order: bool) -> Spread:
        """Measures the inputs of one linear of a layer; what comes after it is not computed."""
        columns = linear.in_features
        hessian = torch.zeros(columns, columns, dtype=torch.float64, device=linear.weight.device)

        def gather(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, columns)
            for start in range(0, len(rows), CHUNK):
                values = rows[start : start + CHUNK].double()
                hessian.addmm_(values.T, values)
            raise _Reached

        hook = linear.register_forward_pre_hook(gather)
        try:
            for index, size in enumerate(self._sizes):
                with contextlib.suppress(_Reached):
                    self._forward(number, index)
                self._task.advance(size)
        finally:
            hook.remove()
        return spread(hessian, act_order=act_order)

    def go_on(self, number: int) -> None:
        """Turns the states in front of a layer into those behind it."""
        for index, size in enumerate(self._sizes):
            self._hidden[index] = self._forward(number, index)
            self._task.advance(size)

    def _forward(self, number: int, index: int) -> torch.Tensor:
        given = self._layers[number](self._hidden[index], **self._keywords[index][number])
        states: torch.Tensor = given[0] if isinstance(given, tuple) else given
        return states


class _Reached(Exception):  # noqa: N818  it ends a pass that has seen enough, and is no error
    """The linear whose inputs are wanted has got them."""


_STATES = frozenset(("hidden_states",))


@contextlib.contextmanager
def _naming(number: int, name: str) -> Iterator[None]:
    try:
        yield
    except StageError as error:
        where = f"model.layers.{number}.{name}"
        raise StageError(error.what, where=where, why=error.why, fix=error.fix) from error


def _refuse_offloaded(model: Any, recipe: Recipe) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UnsupportedError(
            f"{recipe.quantize.format} needs the whole model in the memory of the device",
            where=recipe.place("quantize.device"),
            why="The model does not fit the GPUs, and weights that are kept elsewhere until they "
            "are used cannot be rounded in place",
            fix="Set quantize.device to cpu, or use larger GPUs",
        )

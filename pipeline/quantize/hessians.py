"""Rounds a decoder layer by layer, each linear by the second moments of its inputs.

A layer's inputs are those that the layers before it give when they are already rounded, and within
a layer those of o_proj come from rounded q, k and v, and so on: what one linear loses, the next one
is calibrated with. One layer's Hessian is in memory at a time, and the hidden states of the text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from pipeline.errors import StageError, UnsupportedError
from pipeline.models.architectures import SHARED_INPUTS
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.quantize.calibrate import bounded
from pipeline.quantize.formats import checkpoint_dtype
from pipeline.quantize.gptq import Spread, round_weight, spread
from pipeline.quantize.moments import add_moments, new_moments
from pipeline.recipe.schema import Recipe
from pipeline.source.tokens import Rows

# Passes over the text in which a layer is rounded, and one more behind it.
PASSES = len(SHARED_INPUTS) + 1
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
    _refuse_offloaded(model, recipe)
    rows = sum(len(batch) for batch in batches)
    layers = range(len(model.model.layers))
    task_name = f"rounding {recipe.quantize.format}"
    scales: Scales = {}
    with (
        bounded(),
        progress.task(task_name, rows * len(layers) * PASSES) as task,
        torch.inference_mode(),
    ):
        tokens = (torch.tensor(batch, dtype=torch.long, device=model.device) for batch in batches)
        walk = _Walk(model, ({"input_ids": one} for one in tokens), task.advance)
        for number in layers:
            scales |= _round(walk, number, facts, recipe, f"model.layers.{number}")
            walk.go_on(number)
    return scales


def round_layer(
    model: Any,
    number: int,
    facts: ModelFacts,
    recipe: Recipe,
    states: Iterable[torch.Tensor],
) -> tuple[Scales, list[torch.Tensor]]:
    """Rounds one layer that is a model of its own, as :func:`round_decoder` does all.

    Args:
        model: Of :func:`pipeline.layers.one_layer.one_layer`; it is changed in place.
        number: The layer's in the whole model, for messages.
        facts: Of the whole model.
        recipe: As above.
        states: Hidden states in front of the layer, of each batch.

    Returns:
        The scales, and the hidden states behind the rounded layer.

    Raises:
        StageError: Activations or weights are not finite.
    """
    with bounded(), torch.inference_mode():
        walk = _Walk(model, ({"inputs_embeds": one} for one in states))
        scales = _round(walk, 0, facts, recipe, f"model.layers.{number}")
        walk.go_on(0)
        return scales, walk.hidden


def _round(walk: _Walk, number: int, facts: ModelFacts, recipe: Recipe, place: str) -> Scales:
    """Rounds one layer of a walk's model."""
    quantize, layer = recipe.quantize, walk.layers[number]
    names = {shape.name: [name for name, _ in shape.source] for shape in facts.linears}
    dtype = getattr(torch, checkpoint_dtype(recipe))
    scales: Scales = {}
    for fused in SHARED_INPUTS:
        readers = [name for one in fused for name in names[one]]
        with _naming(f"{place}.{readers[0]}"):
            first = layer.get_submodule(readers[0])
            by = walk.spread_of(number, first, quantize.act_order)
            for name in readers:
                linear = layer.get_submodule(name)
                rounded = round_weight(linear.weight, by, quantize.group_size, dtype)
                linear.weight.copy_(rounded.values())
                scales[f"model.layers.{number}.{name}"] = rounded.scales
            del by
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

    def __init__(
        self,
        model: Any,
        inputs: Iterable[dict[str, torch.Tensor]],
        advance: Callable[[float], None] = lambda _rows: None,
    ) -> None:
        self.layers, self.advance = model.model.layers, advance
        self.hidden: list[torch.Tensor] = []
        # Masks differ between the layers of models with some sliding windows, so each is asked for.
        self._keywords: list[list[dict[str, Any]]] = []
        for one in inputs:
            self._begin(model, one)

    def _begin(self, model: Any, inputs: dict[str, torch.Tensor]) -> None:
        given: list[dict[str, Any]] = []

        def take(layer: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if layer is self.layers[0]:
                self.hidden.append(inputs[0] if inputs else keywords["hidden_states"])
            given.append({name: value for name, value in keywords.items() if name not in _STATES})
            if layer is self.layers[-1]:
                raise _Reached

        hooks = [layer.register_forward_pre_hook(take, with_kwargs=True) for layer in self.layers]
        try:
            with contextlib.suppress(_Reached):
                model.model(**inputs, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        self._keywords.append(given)

    def spread_of(self, number: int, linear: Any, act_order: bool) -> Spread:
        """Measures the inputs of one linear of a layer; what comes after it is not computed."""
        hessian = new_moments(linear.in_features, linear.weight.device)

        def gather(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            add_moments(hessian, inputs[0])
            raise _Reached

        hook = linear.register_forward_pre_hook(gather)
        try:
            for index, states in enumerate(self.hidden):
                with contextlib.suppress(_Reached):
                    self._forward(number, index)
                self.advance(len(states))
        finally:
            hook.remove()
        return spread(hessian, act_order=act_order)

    def go_on(self, number: int) -> None:
        """Turns the states in front of a layer into those behind it."""
        for index, states in enumerate(self.hidden):
            self.hidden[index] = self._forward(number, index)
            self.advance(len(states))

    def _forward(self, number: int, index: int) -> torch.Tensor:
        given = self.layers[number](self.hidden[index], **self._keywords[index][number])
        states: torch.Tensor = given[0] if isinstance(given, tuple) else given
        return states


class _Reached(Exception):  # noqa: N818  it ends a pass that has seen enough, and is no error
    """The linear whose inputs are wanted has got them."""


_STATES = frozenset(("hidden_states",))


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except StageError as error:
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

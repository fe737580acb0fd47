"""The most memory that each stage takes at a time.

Of every stage there are two figures: what must be there at once whatever the software does, and the
peak that is to be expected, with factors that were measured (docs/sizes.md). Only the first is a
reason to refuse. All sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.effort.work import HEAD, Shape, Texts, searches_on_few_rows, sets, states_bytes
from pipeline.formats import FORMATS
from pipeline.quantize.formats import is_condensed
from pipeline.recipe.schema import Recipe

MB, GB = 10**6, 10**9
# torch, transformers and ModelOpt, once they are imported; the first is less than was ever seen.
IMPORTS_AT_LEAST, IMPORTS = 300 * MB, 420 * MB
# What allocator, threads and small tensors add.
FIXED = 150 * MB
# Writing an engine, where nothing before it in the process has imported torch: the libraries, and
# pieces of a matrix. 110 to 150 MB were measured, whatever the model's sizes are.
COMPILING = 140 * MB
COPYING = 120 * MB
# Copies of the largest linear that AWQ's search has at a time, in the dtype of the model: the
# weight, scaled, in groups, rounded, and twice their difference to it.
SEARCH_COPIES = 8.5
# Copies that the other calibrations make of it.
CALIBRATION_COPIES = 3.0
# Layers that ModelOpt's export holds beside the one it exports, by what a weight is packed to.
EXPORT_OF_GROUPS, EXPORT = 1.9, 1.4
# Outputs of a batch that are as wide as the MLP: gate, up, what the activation makes of the one,
# and the product of both.
WIDE_OUTPUTS, WIDE_AT_LEAST = 4, 2
# Beside them: residual, normalized, q, k, v and output, as wide as a hidden state.
NARROW_OUTPUTS = 6
# Bytes for each parameter of a model that is whole in memory: quantizing in float32 and in 16 bit,
# and scoring, with source and checkpoint in float32.
WHOLE_FLOAT32, WHOLE_16_BIT, WHOLE_SCORING = 11.0, 5.5, 8.8
# What a group of batches may keep of each model; more batches have walks of their own
# (pipeline.layers.walk).
STATES = 512 << 20
# Logits of a batch are there of both models, and of one while the next batch is computed; of whole
# models they are copied too.
LOGITS, LOGITS_OF_WHOLE = 3.0, 4.0
# Those of questions are there of one model at a time, which a few numbers are taken of: 1.0 was
# measured, and 1.5 with a head of two blocks, whose own logits are beside them. Of whole models
# they are taken to be copied as well.
ANSWERED, ANSWERED_OF_WHOLE = 1.0, 2.0
# The tokens that are compared at once, and what is computed of them.
PIECES = 120 * MB
# Layers in float32 that are there at a time, as the one before is let go of when the next is read:
# of one model, and of both while their linears are compared.
WALKING, NOISE = 2, 3
# float32 copies of the largest linear while its codes are turned back.
TURNED_BACK = 2.0
# What the CPU's engine takes in memory for each byte of its file, once it has run: 3.2, 2.2 and 3.8
# for INT4, INT8 and float16 of 490 million parameters.
OPENED, OPENED_16_BIT = 3.0, 3.9
# A linear is rounded by two float64 matrices of its inputs, and their inverse is a third.
HESSIANS, HESSIANS_AT_LEAST = 3, 2


@dataclass(frozen=True)
class Memory:
    """The memory of a stage, in bytes.

    Attributes:
        least: What must be there at once.
        likely: The peak to be expected.
    """

    least: int
    likely: int

    def beside(self, other: Memory) -> Memory:
        """Returns that of two pieces of work of which one follows the other."""
        return Memory(max(self.least, other.least), max(self.likely, other.likely))

    def with_open(self, engine: int) -> Memory:
        """Returns that of the same work while so many bytes of an engine are likely to be there."""
        return Memory(self.least, self.likely + engine)


def copying() -> Memory:
    """Returns the memory of copying a snapshot, whose files are read piece by piece."""
    return Memory(0, COPYING)


def quantizing(recipe: Recipe, shape: Shape, texts: Texts, *, on_gpu: bool) -> Memory:
    """Computes the peak of calibrating, rounding and exporting.

    Args:
        recipe: The recipe.
        shape: The model's sizes.
        texts: What is calibrated on.
        on_gpu: Whether a GPU may compute, whose memory then has layers and batches.
    """
    row = FORMATS[recipe.quantize.format]
    item, layer = shape.item, shape.layer * shape.item
    hidden = texts.tokens * shape.hidden * item
    batch = texts.batch_tokens * item
    in_groups = row.scales == "group" and not row.own
    copies = SEARCH_COPIES if row.calibration == "awq_lite" else CALIBRATION_COPIES
    work = shape.largest * copies * item
    work += batch * (WIDE_OUTPUTS * shape.inner + NARROW_OUTPUTS * shape.hidden)
    if searches_on_few_rows(recipe, shape):
        work += _searched(shape, texts.tokens)
    inverted = 0
    if row.rounds_by_hessian:
        inverted = 8 * max(shape.inner, shape.hidden, shape.attention) ** 2
    work += HESSIANS * inverted
    # Without a calibration linears are rounded and written one by one; ModelOpt exports nothing.
    by_linear = not recipe.quantize.needs_calibration
    export = 0.0 if by_linear else layer * (EXPORT_OF_GROUPS if in_groups else EXPORT)
    # Where nothing is calibrated a linear has to be there; and of hidden states those of one set.
    sure = shape.parameters * item
    if recipe.model.by_layer:
        sure = shape.largest * item if by_linear else layer
    sure += HESSIANS_AT_LEAST * inverted + texts.sure_batch * item * WIDE_AT_LEAST * shape.inner
    least = IMPORTS_AT_LEAST + (0 if on_gpu else sure)
    if recipe.model.by_layer:
        least += texts.sure * shape.hidden * item
        held = layer + sets(recipe) * hidden
        return Memory(least, round(IMPORTS + FIXED + held + max(work, export)))
    each = WHOLE_FLOAT32 if item == 4 else WHOLE_16_BIT
    whole = IMPORTS + shape.parameters * each + batch * WIDE_OUTPUTS * shape.inner
    return Memory(least, round(whole + HESSIANS * inverted))


def _searched(shape: Shape, tokens: int) -> int:
    """Bytes of the second moments that AWQ searches on, in float64."""
    read = (shape.hidden, shape.attention, shape.hidden, shape.inner)
    return sum(8 * features**2 for features in read if is_condensed(tokens, features))


def scoring(
    recipe: Recipe,
    shape: Shape,
    texts: Texts,
    tasks: Sequence[Texts] = (),
    *,
    joined: int,
    on_gpu: bool,
) -> Memory:
    """Computes the peak of scoring source and checkpoint, both in float32.

    Args:
        recipe: The recipe.
        shape: The model's sizes.
        texts: What is scored.
        tasks: What is computed of each task, one behind the other.
        joined: Of :func:`.work.joined_bytes`.
        on_gpu: Whether a GPU may compute.
    """
    layer = shape.layer * 4
    seen = max(one.sure_batch for one in (texts, *tasks)) * shape.vocabulary * 4
    weights = layer if recipe.model.by_layer else 2 * shape.parameters * 4
    together = max(weights, seen) if recipe.model.by_layer else weights + seen
    least = IMPORTS_AT_LEAST + (0 if on_gpu else together)
    if not recipe.model.by_layer:
        # What is joined goes before anything is scored.
        copies = [ANSWERED_OF_WHOLE * _logits(shape, task) for task in tasks]
        copies.append(LOGITS_OF_WHOLE * _logits(shape, texts))
        return Memory(least, round(IMPORTS + shape.parameters * WHOLE_SCORING + max(copies)))
    head = 4 * shape.vocabulary * shape.hidden
    answered = ANSWERED + (HEAD / head if head > HEAD else 0.0)
    # Texts and tasks; then what stays of one model for completions beside the other's last layer;
    # and linear by linear through both, without states.
    peak = max(
        _walked(shape, texts, LOGITS, PIECES),
        *(_walked(shape, task, answered) for task in tasks),
        shape.kept + layer,
        NOISE * layer + TURNED_BACK * shape.largest * 4,
    )
    return Memory(least, round(IMPORTS + FIXED + joined + peak))


def _logits(shape: Shape, texts: Texts) -> int:
    """Bytes of the logits of the largest batch."""
    return texts.batch_tokens * shape.vocabulary * 4


def _walked(shape: Shape, texts: Texts, copies: float, beside: int = 0) -> float:
    """Bytes of texts through the layers of one model, then of the other; then heads and logits."""
    states = 2 * min(states_bytes(shape, texts), STATES)
    batch = texts.batch_tokens * 4 * (WIDE_OUTPUTS * shape.inner + NARROW_OUTPUTS * shape.hidden)
    heads = 2 * min(4 * shape.vocabulary * shape.hidden, HEAD)
    layers = WALKING * shape.layer * 4 + TURNED_BACK * shape.largest * 4
    return states + max(layers + batch, heads + copies * _logits(shape, texts) + beside)


def compiling(*, alone: bool, joined: int) -> Memory:
    """Returns the peak of writing an engine from a checkpoint, a piece of a matrix at a time.

    Args:
        alone: Whether nothing before it in the process has imported torch.
        joined: Of :func:`.work.joined_bytes`.
    """
    return Memory(0, (COMPILING if alone else IMPORTS) + joined)


def opened(recipe: Recipe, engine: int) -> int:
    """Computes the memory of the CPU's engine once it is open, without keys and values.

    Args:
        recipe: Its format counts.
        engine: Bytes of its weights.
    """
    row = FORMATS[recipe.quantize.format]
    return round(engine * (OPENED if row.quantizes else OPENED_16_BIT))


def alone(engine: int) -> Memory:
    """Returns that of an engine which is measured when both models are gone.

    Args:
        engine: Bytes that it takes, keys and values included.
    """
    return Memory(0, IMPORTS + FIXED + engine)

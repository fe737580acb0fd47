"""How long each stage computes, reads and writes, at the rates of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.economics.roofline import OPERATIONS
from pipeline.effort.memory import STATES
from pipeline.effort.rates import FLOAT32, Rates
from pipeline.effort.work import (
    Shape,
    Texts,
    passes,
    search_inputs,
    searches_on_few_rows,
    sets,
    states_bytes,
    trials,
)
from pipeline.evaluation.lengths import COUNT, PROMPT_TOKENS, new_tokens
from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.models.sizes import attention_multiplications
from pipeline.quantize.formats import is_condensed
from pipeline.recipe.schema import Recipe

# Of a process that imports torch, transformers and ModelOpt, and of one that compiles.
STARTING_S, COMPILING_S = 8.0, 3.0
# AWQ's search tries so many values on every batch, each of which rounds the weights anew, in
# float32 whatever they are stored in: 3.6 ns of a weight where memory has 25 GB/s, which is so many
# readings and writings of it.
SEARCH_VALUES, ROUNDING_TRAFFIC = 11, 23
# Packing, checking and merging the weights of a checkpoint, on one thread.
EXPORT_S = 6e-9
# Rounding by second moments: a triangular solve by blocks costs about as much as the products of
# so many rows of text.
HESSIAN_ROWS = 2
# Turning a weight back to float32 from its codes, and reading the source's into float32: 1.4 and
# 0.9 ns were measured on two threads, with INT4 and layers of 25 million weights.
TURNING_BACK_S = 1.5e-9
# Readings and writings of a logit while two models are compared.
LOGIT_TRAFFIC = 14
# The windows whose linears are compared one by one, once in each of three ways.
NOISE_TOKENS, NOISE_RUNS = 512, 3
# Digests and copies of files that are in memory already.
DIGEST_RATE = 0.8e9
# Turning codes into constants of a graph, packing them for another layout.
ENGINE_S = 3e-9


@dataclass(frozen=True)
class Seconds:
    """The time of a stage.

    Attributes:
        computing: At the measured rates of products and memory.
        disk: For reading and writing; None where the disk was not measured.
    """

    computing: float
    disk: float | None

    @property
    def all(self) -> float:
        """The sum, as far as it is known."""
        return self.computing + (self.disk or 0.0)


class Clock:
    """Tells how long the stages of one recipe take.

    Args:
        recipe: The recipe.
        facts: The model's facts.
        shape: Its sizes.
        rates: The machine's.
    """

    def __init__(self, recipe: Recipe, facts: ModelFacts, shape: Shape, rates: Rates) -> None:
        self._recipe, self._facts, self._shape, self._rates = recipe, facts, shape, rates
        self._device = rates.device(recipe.quantize.device)

    def copying(self, size: int, copied: int) -> Seconds:
        """Returns the time of taking a snapshot in: every file is read for its digest.

        Args:
            size: Bytes of the snapshot.
            copied: Bytes of it that are written again.
        """
        return Seconds(1.0 + size / DIGEST_RATE, self._rates.disk(size, copied))

    def quantizing(self, texts: Texts, checkpoint: int, done: float = 0.0) -> Seconds:
        """Returns the time of calibrating, rounding and exporting.

        Args:
            texts: What is calibrated on.
            checkpoint: Bytes of the checkpoint.
            done: The share of layers that an earlier run finished.
        """
        recipe, shape = self._recipe, self._shape
        count = trials(recipe, self._facts)
        each = self._calibrating(texts) + shape.layers * shape.layer * EXPORT_S
        # The layers go to the device, and hidden states there and back for each.
        states = 2 * sets(recipe) * texts.tokens * shape.hidden if recipe.model.by_layer else 0
        each += self._to_device(shape.layers * (shape.layer + states) * shape.item)
        read = shape.parameters * 2
        if recipe.quantize.search:
            each += 2 * self._forward(recipe.quantize.search.tokens, texts.longest)
            each += 2 * shape.parameters * TURNING_BACK_S
            read += shape.parameters * 2 + checkpoint
        left = count * (1.0 - done)
        disk = self._rates.disk(round(left * read), round(left * checkpoint))
        return Seconds(STARTING_S + left * each, disk)

    def scoring(
        self, texts: Texts, tasks: Sequence[Texts], checkpoint: int, done: float = 0.0
    ) -> Seconds:
        """Returns the time of scoring both models, with completions and signal to noise.

        Args:
            texts: What is scored.
            tasks: What is computed of each task.
            checkpoint: Bytes of the checkpoint.
            done: Tokens that an earlier run took through all layers, of both models; their logits
                are computed again.
        """
        shape, steps = self._shape, new_tokens(self._shape.parameters)
        # The first token reads everything, and the others what did not stay in memory.
        matrices = shape.layers * shape.layer + shape.vocabulary * shape.hidden
        again = 1 - shape.kept / (4 * matrices)
        walks = 3 + (steps - 1) * again + sum(map(self._walks, tasks))
        walks = walks if self._recipe.model.by_layer else 2
        completed = COUNT * steps * (PROMPT_TOKENS + steps / 2)
        noise = NOISE_RUNS * min(NOISE_TOKENS, texts.tokens)
        computing = self._forward(2 * (texts.tokens + completed) + noise, texts.longest)
        computing += sum(self._forward(2 * task.tokens, task.longest) for task in tasks)
        # Without what attention multiplies, which is little, and most of it behind long contexts.
        layers = shape.layer * shape.layers
        computing -= OPERATIONS * layers * done / self._device.products(FLOAT32)
        computing += 4 * LOGIT_TRAFFIC * texts.tokens * shape.vocabulary / self._device.memory
        computing += 2 * walks * shape.parameters * TURNING_BACK_S
        computing += self._to_device(4 * 2 * walks * shape.parameters)
        if self._recipe.model.by_layer:
            states = sum(states_bytes(shape, some) for some in (texts, *tasks))
            computing += self._to_device(4 * shape.layers * states)
        read = walks * (shape.parameters * 2 + checkpoint)
        return Seconds(STARTING_S + computing, self._rates.disk(read, 0))

    def compiling(self, checkpoint: int, engine: int) -> Seconds:
        """Returns the time of writing an engine from a checkpoint.

        Args:
            checkpoint: Bytes of the checkpoint.
            engine: Bytes of the engine.
        """
        computing = COMPILING_S + self._shape.parameters * ENGINE_S + engine / DIGEST_RATE
        return Seconds(computing, self._rates.disk(checkpoint, engine))

    def _calibrating(self, texts: Texts) -> float:
        """Seconds of all passes over the calibration text."""
        recipe, shape, row = self._recipe, self._shape, FORMATS[self._recipe.quantize.format]
        decoder = shape.layer * shape.layers
        products = self._device.products("float32" if shape.item == 4 else recipe.dtype)
        work = decoder + attention_multiplications(self._facts) * texts.longest / 2
        found = OPERATIONS * work * texts.tokens * passes(recipe, shape) / products
        if row.calibration == "awq_lite":
            found += shape.layers * self._searching(texts, products)
        if row.rounds_by_hessian:
            widest = max(shape.inner, shape.hidden)
            double = self._device.products(FLOAT32) / 2
            found += OPERATIONS * decoder * widest * HESSIAN_ROWS / double
        return found

    def _searching(self, texts: Texts, products: float) -> float:
        """Seconds of AWQ's search in a layer, but for passes over the text."""
        few, tokens = searches_on_few_rows(self._recipe, self._shape), texts.tokens
        double = self._device.products(FLOAT32) / 2
        found, traffic = 0.0, ROUNDING_TRAFFIC * 4 / self._device.memory
        for features, weights in search_inputs(self._facts):
            condensed = few and is_condensed(tokens, features)
            found += SEARCH_VALUES * weights * traffic * (1 if condensed else texts.batches)
            if few:
                rows = features if condensed else tokens
                found += SEARCH_VALUES * OPERATIONS * weights * rows / products
                found += OPERATIONS * tokens * features**2 / double if condensed else 0.0
        return found

    def _walks(self, task: Texts) -> int:
        """Counts the walks through a model: one for as many texts as their states have room."""
        return -(-states_bytes(self._shape, task) // STATES)

    def _to_device(self, size: float) -> float:
        """Seconds of so many bytes between the machine's memory and the device's."""
        return size / self._device.copies if self._device.copies else 0.0

    def _forward(self, tokens: float, context: int) -> float:
        """Seconds of so many tokens through the decoder and the head, in float32."""
        shape = self._shape
        each = shape.layer * shape.layers + shape.vocabulary * shape.hidden
        each += round(attention_multiplications(self._facts) * context / 2)
        return OPERATIONS * each * tokens / self._device.products(FLOAT32)

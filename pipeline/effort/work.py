"""How much there is to compute: texts, passes over them and the sizes of layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.formats import FORMATS
from pipeline.models.architectures import SHARED_INPUTS
from pipeline.models.facts import ModelFacts
from pipeline.models.sizes import layer_bytes, layer_parameters, parameters, table_bytes
from pipeline.preflight.candidates import candidates
from pipeline.quantize.formats import (
    AWQ_MAX_SAMPLES,
    is_awq,
    measures_again,
    pass_costs,
    sets_of,
)
from pipeline.quantize.loading import FLOAT32_LIMIT_BYTES
from pipeline.recipe.schema import Calibration, Recipe
from pipeline.source.lines import Conversation, read_texts

# Larger files are not read for an estimate, and taken to be of long texts.
MOST_TEXT_BYTES = 8 << 20
# The demo's tokenizer of 1,024 tokens makes one of 3.8 bytes of English, and larger ones of more.
BYTES_PER_TOKEN = 3.5
# The demo's is 8 % more than that: by about so much a number of tokens may be off.
UNSURE = 0.1
# No tokenizer makes fewer tokens of a text than one of so many bytes, but for runs of blanks.
MOST_BYTES_PER_TOKEN = 8.0
# The scorer's limits of a batch (pipeline.evaluation.scoring, which imports torch).
BATCH_TOKENS, BATCH_LOGITS = 4096, 1 << 26
# What a model keeps in float32 while completions are written (pipeline.reference.by_layer).
OFTEN_BYTES = 400 << 20
# A head that is larger is read in blocks of that size (pipeline.layers.parts).
HEAD = 256 << 20


Lengths = Callable[[str], Sequence[int] | None]
"""The tokens of each text of a file; None of one of which nothing is known."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that memory and time follow from.

    Attributes:
        parameters: All of them, a tied head once.
        layers: How many decoder layers there are.
        layer: Parameters of one of them.
        largest: Parameters of its largest linear.
        hidden: Features of a hidden state.
        inner: Features within the MLP.
        vocabulary: Rows of the embedding.
        attention: Features of all queries.
        item: Bytes of a value of the model as it is calibrated.
    """

    parameters: int
    layers: int
    layer: int
    largest: int
    hidden: int
    inner: int
    vocabulary: int
    attention: int
    item: int

    @property
    def kept(self) -> int:
        """Bytes of layers and head that stay while completions are written layer by layer."""
        layers = min(self.layers, OFTEN_BYTES // (4 * self.layer)) * 4 * self.layer
        head = 4 * self.vocabulary * self.hidden
        return layers + (head if head <= min(HEAD, OFTEN_BYTES - layers) else 0)


@dataclass(frozen=True)
class Texts:
    """Rows of text that a model is run on.

    Attributes:
        rows: How many there are.
        tokens: Of all of them.
        longest: Tokens of the longest.
        batch: Rows that are run together.
        sure: Tokens that there are at least, whatever the tokenizer is; 0 where nobody knows.
        sure_batch: Tokens that the largest batch has at least, likewise.
        widest: Tokens of the largest batch, where rows differ; 0 takes them to be as long as the
            longest.
    """

    rows: int
    tokens: int
    longest: int
    batch: int
    sure: int = 0
    sure_batch: int = 0
    widest: int = 0

    @property
    def batches(self) -> int:
        """Counts the batches."""
        return -(-self.rows // self.batch) if self.rows else 0

    @property
    def batch_tokens(self) -> int:
        """Counts the tokens of the largest batch."""
        return self.widest or min(self.batch, self.rows) * self.longest


NO_TEXT = Texts(0, 0, 0, 1)


def shape_of(recipe: Recipe, facts: ModelFacts) -> Shape:
    """Reads the sizes off a model's facts, and in what the recipe has it calibrated."""
    total = parameters(facts)
    small = total * 4 <= FLOAT32_LIMIT_BYTES or FORMATS[recipe.quantize.format].dtype == "float32"
    return Shape(
        parameters=total,
        layers=facts.num_hidden_layers,
        layer=layer_parameters(facts),
        largest=max(rows * one.in_features for one in facts.linears for _, rows in one.source),
        hidden=facts.hidden_size,
        inner=facts.intermediate_size,
        vocabulary=facts.vocab_size,
        attention=facts.num_attention_heads * facts.head_size,
        item=4 if small else 2,
    )


def calibrated(recipe: Recipe, facts: ModelFacts, lengths: Sequence[int] | None) -> Texts:
    """Returns what the recipe's format is calibrated on.

    Args:
        recipe: The recipe.
        facts: The model's facts.
        lengths: Of :class:`TextLengths`.
    """
    section = recipe.quantize.calibration
    if section is None or not recipe.quantize.needs_calibration:
        return NO_TEXT
    drawn = min(section.samples, AWQ_MAX_SAMPLES) if is_awq(recipe.quantize) else section.samples
    limit, batch = row_limit(section, facts), section.batch_size
    if not lengths:
        return _joined(drawn * limit, limit, batch)
    drawn = min(drawn, len(lengths))
    tokens = round(drawn * sum(min(length, limit) for length in lengths) / len(lengths))
    # Any of the texts may be drawn. And more tokens may make more rows, of which each is shorter
    # and batches have fewer: whatever number of rows there is, it has no fewer tokens than here.
    least = sum(sorted(min(at_least(length), limit) for length in lengths)[:drawn])
    fewest = max(1, -(-least // limit))
    possible = [
        _joined(max(least, (rows - 1) * limit + 1), limit, batch)
        for rows in range(fewest, drawn + 1)
    ]
    # A row less may make one batch of two, and memory is to be enough.
    near = range(
        max(fewest, math.ceil((1 - UNSURE) * tokens / limit)),
        min(drawn, math.ceil((1 + UNSURE) * tokens / limit)) + 1,
    )
    return replace(
        _joined(tokens, limit, batch),
        widest=max(_together(n, batch) * (min(tokens, n * limit) // n) for n in near),
        sure=min(texts.tokens for texts in possible),
        sure_batch=min(texts.batch_tokens for texts in possible),
    )


def _joined(tokens: int, limit: int, batch: int) -> Texts:
    """Texts that are joined and cut into equal rows, and the rows into batches of nearly as many.

    That is what ``token_rows`` and ``batches`` of :mod:`pipeline.source.tokens` do, whatever the
    format is and whether they are conversations or not.
    """
    rows = -(-tokens // limit)
    width = tokens // rows
    return Texts(rows, rows * width, width, batch, widest=_together(rows, batch) * width)


def _together(rows: int, batch: int) -> int:
    """How many of the rows the largest of as few batches as possible has."""
    return -(-rows // -(-rows // batch))


def tried(recipe: Recipe, facts: ModelFacts, lengths: Sequence[int] | None) -> Texts:
    """Returns what each candidate of a search is scored on: the beginnings of texts, not joined.

    Args:
        recipe: With a section ``quantize.search``.
        facts: The model's facts.
        lengths: Of :class:`TextLengths`.
    """
    search, section = recipe.quantize.search, recipe.quantize.calibration
    assert search is not None
    assert section is not None
    limit = min(row_limit(section, facts), search.tokens + 1)
    longest = min(limit, max(lengths or [limit]))
    rows = -(-search.tokens // max(1, longest - 1))
    return Texts(rows, search.tokens, longest, rows_together(longest, facts.vocab_size))


def row_limit(section: Calibration, facts: ModelFacts) -> int:
    """Returns the tokens that a calibration text has at most, as a model has so many positions."""
    return min(section.sequence_length, facts.max_position_embeddings)


def scored(recipe: Recipe, facts: ModelFacts, lengths: Sequence[int] | None, tokens: int) -> Texts:
    """Returns the windows in which held-out text is scored, the context of each included.

    Args:
        recipe: With a section ``evaluate``.
        facts: The model's facts.
        lengths: Of :class:`TextLengths`.
        tokens: How many are scored, at most.
    """
    section = recipe.evaluate
    assert section is not None
    length = min(section.sequence_length, facts.max_position_embeddings)
    stride = min(section.stride or max(1, length // 2), max(1, length - 1))
    rows = computed = longest = 0
    left = tokens
    # Without the file: one long text, whose windows overlap most.
    for whole in lengths or [tokens + 1]:
        size = min(whole, left + 1)
        if size < 2:
            continue
        windows = 1 + max(0, math.ceil((size - length) / stride))
        rows += windows
        computed += size + (windows - 1) * (length - stride)
        # Tokens may be shorter than they are taken to be, and memory is to be enough.
        longest = max(longest, min(2 * size, length))
        left -= size - 1
        if left <= 0:
            break
    # The first text is scored in any case, and its first window as a whole.
    sure = min(at_least(lengths[0]), length, tokens + 1) if lengths else 0
    return Texts(rows, computed, longest, rows_together(longest, facts.vocab_size), sure, sure)


def at_least(tokens: int) -> int:
    """Returns the tokens that a text has whatever the tokenizer is.

    Args:
        tokens: Of :class:`TextLengths`, which rounds up and counts one that begins the text.
    """
    return max(0, math.floor((tokens - 2) * BYTES_PER_TOKEN / MOST_BYTES_PER_TOKEN))


def rows_together(longest: int, vocabulary: int) -> int:
    """Returns how many rows of a length are scored at a time."""
    return max(1, min(BATCH_TOKENS, BATCH_LOGITS // vocabulary) // max(longest, 1))


def states_bytes(shape: Shape, texts: Texts) -> int:
    """Computes the bytes of hidden states of all texts in float32, as they are scored."""
    return 4 * texts.tokens * shape.hidden


def passes(recipe: Recipe, shape: Shape) -> float:
    """Counts the forward passes over the calibration text, for each checkpoint that is written."""
    section = recipe.quantize
    if not section.needs_calibration:
        return 0.0
    costs = pass_costs(section)
    # A search on few rows leaves each pass what the model computes.
    few = searches_on_few_rows(recipe, shape)
    count = float(len(costs) if few else sum(costs))
    if FORMATS[section.format].rounds_by_hessian:
        # The inputs of the four groups of linears that share them, and the layer's own output.
        count += 5.0
    return count + (1.0 if measures_again(section) else 0.0)


def searches_on_few_rows(recipe: Recipe, shape: Shape) -> bool:
    """Says whether AWQ's search is given rows that stand for the text, as it is in float32."""
    return is_awq(recipe.quantize) and recipe.model.by_layer and shape.item == 4


def search_inputs(facts: ModelFacts) -> list[tuple[int, int]]:
    """Returns the features of each input of a layer's linears, and the weights that read it."""
    linears = {one.name: one for one in facts.linears}
    groups = ([linears[name] for name in names] for names in SHARED_INPUTS)
    return [
        (group[0].in_features, sum(one.in_features * one.out_features for one in group))
        for group in groups
    ]


def sets(recipe: Recipe) -> int:
    """Counts the sets of hidden states between two layers: passes that round have their own."""
    return len(set(sets_of(recipe.quantize)))


def trials(recipe: Recipe, facts: ModelFacts) -> int:
    """Counts the checkpoints that ``quantize`` writes: one, or one for each candidate."""
    return max(1, len(candidates(recipe, facts))) if recipe.quantize.search else 1


def checkpoint_bytes(recipe: Recipe, facts: ModelFacts) -> int:
    """Computes the bytes of the weights of all ranks, as the checkpoint stores them."""
    layers, table, value = _stored(recipe, facts)
    return layers + 2 * table + facts.hidden_size * value


def joined_bytes(recipe: Recipe, facts: ModelFacts) -> int:
    """Computes the bytes of a checkpoint that are joined in memory while it is read.

    Of tensor-parallel ranks, which the export gives parts of embedding and head, both are joined as
    long as the checkpoint is open, and one layer at a time (``pipeline.checkpoint.shards``). A
    single rank's file is mapped, and nothing of it copied.
    """
    if recipe.compile.tensor_parallel == 1:
        return 0
    layers, table, _ = _stored(recipe, facts)
    return 2 * table + layers // facts.num_hidden_layers


def _stored(recipe: Recipe, facts: ModelFacts) -> tuple[int, int, int]:
    """Bytes of all layers, of embedding or head, and of a value, in the checkpoint."""
    section = recipe.quantize
    row = FORMATS[section.format]
    value = 4 if row.dtype == "float32" else 2
    group = section.group_size if row.group_sizes else None
    return layer_bytes(facts, row, value, group), table_bytes(facts, value), value


def tokens_of(text: str) -> int:
    """Estimates the tokens of a text from its bytes, with one that begins it."""
    return 1 + math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


class TextLengths:
    """Estimates the tokens of each text of files from its bytes; a file is read once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, ...] | None] = {}

    def __call__(self, path: str) -> tuple[int, ...] | None:
        """Returns the tokens, in the file's order; None of a file that is not there, or large.

        Args:
            path: As a recipe names it.
        """
        if path not in self._known:
            self._known[path] = self._read(Path(path))
        return self._known[path]

    def _read(self, file: Path) -> tuple[int, ...] | None:
        try:
            if file.stat().st_size > MOST_TEXT_BYTES:
                return None
            texts = read_texts(file)
        except (OSError, UsageError):
            return None
        words = (text.words if isinstance(text, Conversation) else text for text in texts)
        return tuple(map(tokens_of, words))

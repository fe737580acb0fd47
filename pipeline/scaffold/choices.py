"""What a first recipe says of format, precision and sizes, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.errors import UnsupportedError
from pipeline.formats import FORMATS, Dtype, Format, FormatName, Precision
from pipeline.models.facts import ModelFacts
from pipeline.preflight.model_checks import MOST_RANKS, check_model
from pipeline.recipe.compile import CompileSection
from pipeline.recipe.schema import Recipe
from pipeline.targets import get_target
from pipeline.targets.base import Room

LONGEST = 4096
"""Tokens of ``max_seq_len`` where model and memory allow more, which most chats keep within."""
SHORTEST = 256
"""Below it no engine is suggested for want of memory."""
COMFORTABLE = 8
"""Sequences that one more GPU is better than doing without."""
WINDOW = 512
"""Tokens of calibration and evaluation windows."""
RANKS = tuple(2**power for power in range(MOST_RANKS.bit_length()))
# Stands for the texts, which nothing here depends on.
ANY_TEXT = "any.jsonl"


@dataclass(frozen=True)
class Asked:
    """What the user says of a recipe that is not there yet.

    Attributes:
        model: A directory or a Hub id, as ``model.source``.
        format: ``quantize.format``; None chooses it.
        target: ``compile.target``.
        gpu: ``compile.gpu``; None leaves it to the machine that builds.
    """

    model: str
    format: FormatName | None
    target: str
    gpu: str | None


@dataclass
class Choices:
    """Values of a recipe by dotted key, with reasons.

    Attributes:
        values: Every value that is not the key's default.
        reasons: Why it is that, by key, in words to follow "Here:".
    """

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, reason: str = "") -> None:
        """Notes a value, and why it was taken."""
        self.values[key] = value
        if reason:
            self.reasons[key] = reason

    def sort(self, names: Sequence[str]) -> None:
        """Puts values and reasons into the order of the keys' names."""
        for found in (self.values, self.reasons):
            ordered = sorted(found.items(), key=lambda item: names.index(item[0]))
            found.clear()
            found.update(ordered)

    def nested(self) -> dict[str, Any]:
        """Returns the values as a recipe's sections."""
        whole: dict[str, Any] = {}
        for key, value in self.values.items():
            *sections, name = key.split(".")
            place = whole
            for section in sections:
                place = place.setdefault(section, {})
            place[name] = value
        return whole


@dataclass(frozen=True)
class _Sizes:
    """One attempt: a format and an engine.

    Attributes:
        row: The format.
        group_size: Of it; None where it has no groups.
        ranks: ``tensor_parallel``.
        sequence: ``max_seq_len``.
        batch: ``max_batch_size``.
    """

    row: Format
    group_size: int | None
    ranks: int
    sequence: int
    batch: int


def choose(asked: Asked, facts: ModelFacts, directory: Path, stored: str | None) -> Choices:
    """Chooses format, precision and sizes that the target takes and the memory holds.

    The format with the smallest weights wins for which the shapes of the model have a group size
    and the target has kernels everywhere; formats of FP8 arithmetic are only taken when they are
    asked for. Of the engines of a format, the one on the fewest ranks wins that holds several long
    sequences, then one that holds fewer or shorter ones.

    Args:
        asked: What the user says.
        facts: The model's facts.
        directory: Where its ``config.json`` is.
        stored: The dtype of the weights; None where nothing says it.

    Raises:
        UnsupportedError: No format and no size goes with the model.
        RecipeError: There is no such GPU.
    """
    dtype: Dtype = "bfloat16" if stored == "bfloat16" else "float16"
    declined: dict[FormatName, UnsupportedError] = {}
    for row in _rows(asked, dtype, facts):
        for sizes in _attempts(row, facts, asked):
            recipe = _trial(asked, row, dtype, sizes, facts)
            try:
                check_model(recipe, directory)
                room = get_target(asked.target).room(recipe, facts)
            except UnsupportedError as error:
                declined.setdefault(row.name, error)
                continue
            if room is None or room.sequences >= sizes.batch:
                found = _choices(facts, recipe, sizes, room)
                found.set("model.dtype", recipe.dtype, _dtype_reason(recipe.dtype, stored, row))
                if row.weight_bits == 32:
                    del found.values["model.dtype"]  # which it never is
                found.set(
                    "quantize.format", row.name, _format_reason(asked, sizes, declined, facts)
                )
                return found
            declined.setdefault(row.name, _too_small(recipe, row, room))
    raise next(iter(declined.values()))


def longest_sequence(facts: ModelFacts) -> int:
    """Returns the most tokens that positions and window of a model allow without doubt.

    Whether ``max_position_embeddings`` counts a linear rope's factor is not known, so it is taken
    to.
    """
    return min(
        facts.longest_sequence,
        facts.max_position_embeddings,
        facts.sliding_window or facts.longest_sequence,
    )


def _rows(asked: Asked, dtype: Dtype, facts: ModelFacts) -> list[Format]:
    if asked.format is not None:
        return [FORMATS[asked.format]]
    if facts.quantized is not None:
        return [facts.quantized.row]
    rows = sorted(FORMATS.values(), key=lambda row: row.weight_bits)
    return [row for row in rows if not row.needs_fp8 and row.dtype in (None, dtype)]


def _attempts(row: Format, facts: ModelFacts, asked: Asked) -> Iterator[_Sizes]:
    """Yields what to try for a format, best first."""
    groups: Sequence[int | None] = sorted(row.group_sizes, reverse=True) or [None]
    if facts.quantized is not None and facts.quantized.group_size in groups:
        groups = [facts.quantized.group_size]
    longest = min(longest_sequence(facts), LONGEST)
    longest = longest // 32 * 32 or longest
    most = CompileSection().max_batch_size * (2 if asked.gpu else 1)
    batches = _halvings(most, 1)
    comfortable = [(longest, batch) for batch in batches if batch >= COMFORTABLE]
    tight = [
        (sequence, batch)
        for sequence in _halvings(longest, min(SHORTEST, longest))
        for batch in batches
        if batch <= COMFORTABLE
    ]
    for sizes in (comfortable, tight):
        for ranks, (sequence, batch), group in product(RANKS, sizes, groups):
            yield _Sizes(row, group, ranks, sequence, batch)


def _halvings(most: int, least: int) -> list[int]:
    found = []
    while most >= least:
        found.append(most)
        most //= 2
    return found


def _trial(asked: Asked, row: Format, dtype: Dtype, sizes: _Sizes, facts: ModelFacts) -> Recipe:
    trial = Choices()
    if facts.quantized is not None:
        trial.set("quantize.stored", facts.quantized.method)
    trial.set("name", "new")
    trial.set("model.source", asked.model)
    if row.dtype is None:
        trial.set("model.dtype", dtype)
    trial.set("quantize.format", sizes.row.name)
    if sizes.group_size is not None:
        trial.set("quantize.group_size", sizes.group_size)
    if sizes.row.calibration:
        trial.set("quantize.calibration.text", ANY_TEXT)
    trial.set("compile.target", asked.target)
    if asked.gpu:
        trial.set("compile.gpu", asked.gpu)
    prompt = max(sizes.sequence * 3 // 4, 1)
    step = CompileSection().max_num_tokens
    while step < prompt:
        step *= 2
    trial.set("compile.max_batch_size", sizes.batch)
    trial.set("compile.max_input_len", prompt)
    trial.set("compile.max_seq_len", sizes.sequence)
    least = CompileSection().tokens_per_block
    trial.set("compile.max_num_tokens", max(min(step, sizes.batch * sizes.sequence), least))
    trial.set("compile.tensor_parallel", sizes.ranks)
    return Recipe.model_validate(trial.nested())


def _too_small(recipe: Recipe, row: Format, room: Room) -> UnsupportedError:
    return UnsupportedError(
        f"no engine of {row.name} fits {room.words}",
        why=f"{room.sequences} sequences of {recipe.compile.max_seq_len} tokens fit beside the "
        "weights",
        fix="Name a larger GPU with --gpu, or a format with smaller weights with --format",
    )


def _choices(facts: ModelFacts, recipe: Recipe, sizes: _Sizes, room: Room | None) -> Choices:
    row, engine, found = sizes.row, recipe.compile, Choices()
    if sizes.group_size is not None:
        found.set(
            "quantize.group_size",
            sizes.group_size,
            "that of the model's files"
            if facts.quantized
            else "the largest that divides the sides of every linear"
            + (f" on each of {sizes.ranks} ranks" if sizes.ranks > 1 else ""),
        )
    window = min(WINDOW, longest_sequence(facts))
    if facts.quantized is not None:
        found.set("quantize.stored", facts.quantized.method, facts.quantized.words())
    elif row.calibration:
        found.set("quantize.calibration.sequence_length", window)
    found.set("evaluate.sequence_length", max(window, 2))
    found.set("compile.target", engine.target)
    found.set("compile.gpu", engine.gpu)
    fits = "the memory is not known here; plan says what fits once compile.gpu is named"
    if room is not None:
        fits = (
            f"{room.sequences} sequences of {engine.max_seq_len} tokens fit {room.words} beside "
            "the weights"
        )
    found.set("compile.max_batch_size", engine.max_batch_size, fits)
    found.set(
        "compile.max_input_len", engine.max_input_len, "three quarters, which leaves room to answer"
    )
    found.set("compile.max_seq_len", engine.max_seq_len, _length_reason(facts, engine.max_seq_len))
    found.set("compile.max_num_tokens", engine.max_num_tokens)
    found.set("compile.tensor_parallel", engine.tensor_parallel, _ranks_reason(facts, sizes, room))
    return found


def _dtype_reason(dtype: Precision, stored: str | None, row: Format) -> str:
    if row.dtype is not None and dtype != stored:
        return f"the format implies it; the checkpoint is {stored or 'of a dtype it does not say'}"
    if dtype == stored:
        return f"the checkpoint is {stored}"
    said = f"is {stored}" if stored else "does not say its own"
    return f"the checkpoint {said}, and engines are 16 bit"


def _format_reason(
    asked: Asked,
    sizes: _Sizes,
    declined: Mapping[FormatName, UnsupportedError],
    facts: ModelFacts,
) -> str:
    if facts.quantized is not None:
        return "what the model's files are already; their codes are taken over as they are"
    if asked.format is not None:
        return "as asked for"
    row, advice = sizes.row, ""
    if row.quantizes:
        remedy = row.remedy(
            without={f"format {name}" for name in declined}
            | {f"quantize.group_size: {sizes.group_size}"}
        )
        advice = f". If a gate closes: {remedy[:1].lower()}{remedy[1:]}"
    others = [f"{name} does not: {error.what}" for name, error in declined.items()]
    others = [text for text in others if not text.startswith(f"{row.name} ")]
    first = "the smallest weights that go with this model"
    return "; ".join([first, *others]) + advice


def _length_reason(facts: ModelFacts, length: int) -> str:
    window = facts.sliding_window
    limits = f"the model has {facts.max_position_embeddings} positions"
    if window:
        limits += f" and a window of {window} tokens"
    return limits if length < longest_sequence(facts) else f"{limits}, so this is the most"


def _ranks_reason(facts: ModelFacts, sizes: _Sizes, room: Room | None) -> str:
    if sizes.ranks == 1:
        return "one holds it" if room else ""
    return (
        f"the fewest that hold weights and sequences; they divide the model's "
        f"{facts.num_attention_heads} heads"
    )

"""What ``plan`` says of the speed and the price that a machine allows at most, format by format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.economics.cost import cost_per_million
from pipeline.economics.hardware import Setting
from pipeline.economics.roofline import Bound, Load, decode_bound, float32_load, load_of
from pipeline.formats import FORMATS, Format
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import CostSection, Recipe
from pipeline.tables import memory_size, number, streams

FLOAT32 = "float32"


@dataclass(frozen=True)
class FormatBound:
    """What one format allows at most.

    Attributes:
        format: Its name; ``float32`` is there to compare with.
        planned: Whether it is the recipe's.
        weights: Bytes of all weights.
        bytes_per_token: Bytes read for a token of one sequence alone.
        alone: Tokens a second of one sequence.
        kv_tokens: Tokens that the KV cache has room for; None where memory is not known, and
            below zero where not even the weights fit.
        sequences: Sequences of ``max_seq_len`` decoded together: as many as fit, up to
            ``max_batch_size``.
        together: Tokens a second of all of them; None where none fits.
        limited_by: What bounds ``together``: ``memory`` or ``arithmetic``.
        cost_per_million: The price of a million tokens at that rate; None without a price.
    """

    format: str
    planned: bool
    weights: int
    bytes_per_token: float
    alone: float
    kv_tokens: int | None
    sequences: int
    together: float | None
    limited_by: str | None
    cost_per_million: float | None


@dataclass(frozen=True)
class Reached:
    """What a load test reached of the bound.

    Attributes:
        concurrency: Streams.
        tokens_per_second: What was measured.
        bound: The most at that many streams and at the length of their contexts.
        share: The former over the latter.
        by: What bounds it: ``memory`` or ``arithmetic``.
    """

    concurrency: int
    tokens_per_second: float
    bound: float
    share: float
    by: str


@dataclass(frozen=True)
class Roofline:
    """What a machine allows at most for a model.

    Attributes:
        setting: The machine and what the target keeps in it.
        context: Tokens of a sequence that came before, on average, for every figure.
        formats: float32, and each format that the machine computes.
        reached: What the load test of the recipe reached; empty before there is one.
    """

    setting: Setting
    context: float
    formats: tuple[FormatBound, ...]
    reached: tuple[Reached, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as JSON values."""
        return asdict(self)


def roofline(recipe: Recipe, facts: ModelFacts, setting: Setting) -> Roofline:
    """Computes the bounds of every format on a machine.

    Args:
        recipe: ``compile`` has the lengths, ``cost`` the price.
        facts: The model's facts.
        setting: The machine.
    """
    # A sequence is on average half as long as it gets.
    context = recipe.compile.max_seq_len / 2
    unquantized = next(row for row in FORMATS.values() if not row.quantizes)
    loads = {FLOAT32: float32_load(facts, setting.kv_bytes_per_token, unquantized)}
    for name, row in FORMATS.items():
        if row.dtype != FLOAT32 and (setting.own or not row.own):
            loads[name] = _load(recipe, facts, row, setting)
    possible = {
        name: load
        for name, load in loads.items()
        if load.arithmetic in setting.hardware.operations
        # float16 and bfloat16 are alike here; the recipe's is the one that people look for.
        and (name not in FORMATS or FORMATS[name].dtype in (None, FLOAT32, recipe.dtype))
    }
    return Roofline(
        setting,
        context,
        tuple(_bound(name, load, recipe, setting, context) for name, load in possible.items()),
    )


def with_reached(
    found: Roofline, recipe: Recipe, facts: ModelFacts, measurements: Sequence[Mapping[str, Any]]
) -> Roofline:
    """Adds what a load test of the recipe reached.

    Args:
        found: The bounds.
        recipe: The recipe.
        facts: The model's facts.
        measurements: Those of ``bench.json``.
    """
    load = _load(recipe, facts, FORMATS[recipe.quantize.format], found.setting)
    reached = []
    for row in measurements:
        count = row["requests"]
        context = (row["input_tokens"] + row["output_tokens"] / 2) / count
        bound = decode_bound(load, found.setting.hardware, row["concurrency"], context)
        speed = row["tokens_per_second"]["value"]
        most = bound.tokens_per_second
        reached.append(Reached(row["concurrency"], speed, most, speed / most, bound.by))
    return replace(found, reached=tuple(reached))


def lines(found: Roofline, cost: CostSection) -> Iterator[str]:
    """Formats the bounds: a table for a terminal of 80 columns, and lines that may be broken.

    Args:
        found: The bounds.
        cost: The price; without one its column is left out.
    """
    hardware = found.setting.hardware
    devices = f"{hardware.devices} x " if hardware.devices > 1 else ""
    yield f"at most on {devices}{hardware.name}, by memory bandwidth and arithmetic (the roofline):"
    rates = ", ".join(
        f"{number(rate / 1e12, 3)} T{'OP' if name == 'int8' else 'FLOP'}/s {name}"
        for name, rate in hardware.operations.items()
        if rate
    )
    yield f"  {number(hardware.bandwidth / 1e9, 3)} GB/s, {rates} ({hardware.source})"
    priced = cost.price_per_hour is not None
    price = f"  {cost.currency}/million" if priced else ""
    yield f"  {'':<10}{'':>13}{'read for':>12}{'tokens/s of':>13}{'tokens/s':>16}".rstrip()
    yield f"  {'format':<10}{'weights':>13}{'a token':>12}{'1 sequence':>13}{'together':>16}{price}"
    for row in found.formats:
        mark = "*" if row.planned else " "
        together = (
            "does not fit" if row.together is None else f"{_rate(row.together)} of {row.sequences}"
        )
        shown = f"{mark} {row.format:<10}{memory_size(row.weights):>13}"
        shown += f"{memory_size(round(row.bytes_per_token)).strip():>12}{_rate(row.alone):>13}"
        shown += f"{together:>16}"
        if priced:
            shown += f"{number(row.cost_per_million, 3):>{len(price)}}"
        yield shown
    other = any(row.format == FLOAT32 for row in found.formats)
    compared = "; float32 is there to compare with" if other else ""
    yield f"  * is the recipe's{compared}. Real engines are slower than these bounds."
    yield (
        f"  Each sequence has {found.context:g} tokens of context; together are as many sequences "
        "as fit, up to compile.max_batch_size."
    )
    if priced:
        yield (
            f"  Prices are of a million generated tokens, together, at {cost.price_per_hour:g} "
            f"{cost.currency} an hour and busy {cost.utilization * 100:g} % of the time "
            "(cost.utilization)."
        )
    if None in hardware.operations.values():
        unknown = [name for name, rate in hardware.operations.items() if rate is None]
        yield f"  How fast {', '.join(unknown)} is multiplied is not known; memory alone bounds it."
    for level in found.reached:
        yield (
            f"  reached with {streams(level.concurrency)}: {number(level.tokens_per_second)} of "
            f"{number(level.bound)} tokens/s, {level.share * 100:.0f} %"
        )
    if any(level.share > 1.0 for level in found.reached):
        yield (
            "  More was reached than this allows: the rates were measured while the machine was "
            "busy, and are higher."
        )


def _rate(value: float) -> str:
    return number(float(value), 3)


def _load(recipe: Recipe, facts: ModelFacts, row: Format, setting: Setting) -> Load:
    sizes = row.group_sizes
    wanted = recipe.quantize.group_size
    group = (wanted if wanted in sizes else sizes[-1]) if sizes else None
    load = load_of(facts, row, setting.kv_bytes_per_token, group)
    if setting.computes and row.activations == "float":
        return replace(load, arithmetic=setting.computes)
    return load


def _bound(name: str, load: Load, recipe: Recipe, setting: Setting, context: float) -> FormatBound:
    hardware, cost = setting.hardware, recipe.cost
    alone = decode_bound(load, hardware, 1, context)
    tokens = _kv_tokens(load, setting)
    most = recipe.compile.max_batch_size
    fits = most if tokens is None else min(max(tokens, 0) // recipe.compile.max_seq_len, most)
    together: Bound | None = decode_bound(load, hardware, fits, context) if fits else None
    speed = together.tokens_per_second if together else None
    return FormatBound(
        format=name,
        planned=name == recipe.quantize.format,
        weights=load.weights,
        bytes_per_token=alone.bytes,
        alone=alone.tokens_per_second,
        kv_tokens=tokens,
        sequences=fits,
        together=speed,
        limited_by=together.by if together else None,
        cost_per_million=cost_per_million(speed, cost.price_per_hour, cost.utilization)
        if speed and cost.price_per_hour
        else None,
    )


def _kv_tokens(load: Load, setting: Setting) -> int | None:
    hardware = setting.hardware
    if hardware.memory is None:
        return None
    left = hardware.memory * hardware.devices - load.weights - setting.reserved
    return int(left * setting.kv_share // load.kv_bytes)

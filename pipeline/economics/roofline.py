"""The roofline: what memory and arithmetic allow at most, whatever the software.

A step that decodes one token for each of ``batch`` sequences reads every weight once and every key
and value of their contexts, and multiplies each weight once for each sequence. It takes at least
the longer of the two times (Williams, Waterman and Patterson 2009, "Roofline: an insightful visual
performance model"). Everything else is left out: activations, kernels' starts, communication
between devices, the server. So no engine can be faster, and real ones are slower.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.economics.hardware import Arithmetic, Hardware
from pipeline.formats import Format
from pipeline.models.facts import ModelFacts
from pipeline.models.sizes import (
    attention_multiplications,
    layer_bytes,
    multiplications,
    table_bytes,
)

# A multiplication and an addition.
OPERATIONS = 2


@dataclass(frozen=True)
class Load:
    """What a model asks of a machine in one format.

    Attributes:
        weights: Bytes of all weights.
        read: Bytes of the weights that every step reads: all but the embedding, of which a token
            reads one row.
        arithmetic: What is multiplied.
        multiplications: For a token, outside attention.
        attention: Multiplications of a token with each token of its context.
        kv_bytes: Keys and values of one token.
    """

    weights: int
    read: int
    arithmetic: Arithmetic
    multiplications: int
    attention: int
    kv_bytes: int


def load_of(facts: ModelFacts, row: Format, kv_bytes: int, group_size: int | None = None) -> Load:
    """Describes a model in one of the recipe's formats; what is not quantized has 16 bits,
    or 32 in float32.

    Args:
        facts: The model's facts.
        row: The format.
        kv_bytes: Keys and values of one token.
        group_size: Input features that share one scale; None for formats without groups.
    """
    if row.dtype == "float32":
        return float32_load(facts, kv_bytes, row)
    layers = layer_bytes(facts, row, 2, group_size)
    return _load(facts, layers, 2, _arithmetic(row), kv_bytes)


def float32_load(facts: ModelFacts, kv_bytes: int, unquantized: Format) -> Load:
    """Describes a model in float32, with which people compare.

    Args:
        facts: The model's facts.
        kv_bytes: Keys and values of one token.
        unquantized: Any format that does not quantize.
    """
    return _load(facts, layer_bytes(facts, unquantized, 4, None), 4, "float32", kv_bytes)


def _arithmetic(row: Format) -> Arithmetic:
    """What a format multiplies; formats of weights alone are unpacked to 16 bits first."""
    if row.needs_fp8:
        return "float8"
    return "float16" if row.activation_bits == 16 else "int8"


def _load(
    facts: ModelFacts, layers: int, value_bytes: int, arithmetic: Arithmetic, kv_bytes: int
) -> Load:
    table = table_bytes(facts, value_bytes)
    norm = facts.hidden_size * value_bytes
    return Load(
        weights=layers + 2 * table + norm,
        read=layers + table + norm,
        arithmetic=arithmetic,
        multiplications=multiplications(facts),
        attention=attention_multiplications(facts),
        kv_bytes=kv_bytes,
    )


@dataclass(frozen=True)
class Bound:
    """What one step of decoding takes at least.

    Attributes:
        bytes: What it reads.
        memory_seconds: How long that takes.
        compute_seconds: How long its multiplications take; None where the rate is not known.
        batch: Tokens that it makes, one for each sequence.
    """

    bytes: float
    memory_seconds: float
    compute_seconds: float | None
    batch: int

    @property
    def seconds(self) -> float:
        """The longer of the two times."""
        return max(self.memory_seconds, self.compute_seconds or 0.0)

    @property
    def tokens_per_second(self) -> float:
        """The most tokens a second."""
        return self.batch / self.seconds

    @property
    def by(self) -> str:
        """What bounds it: ``memory`` or ``arithmetic``."""
        return "memory" if self.seconds == self.memory_seconds else "arithmetic"


def decode_bound(load: Load, hardware: Hardware, batch: int, context: float) -> Bound:
    """Computes the least time of a step that decodes one token for each sequence.

    Args:
        load: The model in its format.
        hardware: The machine.
        batch: Sequences.
        context: Tokens of each that came before, on average.
    """
    read = load.read + batch * context * load.kv_bytes
    rate = hardware.operations.get(load.arithmetic)
    multiplied = batch * (load.multiplications + context * load.attention)
    return Bound(
        bytes=read,
        memory_seconds=read / (hardware.bandwidth * hardware.devices),
        compute_seconds=OPERATIONS * multiplied / (rate * hardware.devices) if rate else None,
        batch=batch,
    )

"""What a machine can do at most: how fast it reads its memory and how fast it multiplies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Arithmetic = Literal["float32", "float16", "int8", "float8"]
"""What is multiplied; bfloat16 is as fast as float16 on every GPU of the table."""


@dataclass(frozen=True)
class Hardware:
    """One device, or several that share the work.

    Attributes:
        name: As people call it.
        source: Where the figures are from: a data sheet, or a measurement.
        bandwidth: Bytes a second that a device reads from its memory.
        operations: Multiplications and additions a second of a device, by what is multiplied; an
            arithmetic that is not there cannot be done, and None is a rate that nobody knows.
        memory: Bytes of a device that a process can use; None where the system does not say.
        devices: How many there are. Their rates are added up, as if they never waited for each
            other.
    """

    name: str
    source: str
    bandwidth: float
    operations: Mapping[Arithmetic, float | None]
    memory: int | None
    devices: int = 1


@dataclass(frozen=True)
class Setting:
    """An engine's surroundings on a machine.

    Attributes:
        hardware: The machine.
        kv_bytes_per_token: Keys and values of one token, on all devices together.
        reserved: Bytes on all devices that are neither weights nor KV cache.
        kv_share: The share of what is left that the KV cache may take.
        computes: What the target multiplies activations in, where that is not their own format.
        own: Whether the target runs the formats that this project rounds itself.
    """

    hardware: Hardware
    kv_bytes_per_token: int
    reserved: int = 0
    kv_share: float = 1.0
    computes: Arithmetic | None = None
    own: bool = False

"""How a tensor, a Triton model and an ensemble step are described; standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

INT32, INT64, UINT64 = "TYPE_INT32", "TYPE_INT64", "TYPE_UINT64"
FP16, FP32 = "TYPE_FP16", "TYPE_FP32"
STRING, BOOL, UINT8 = "TYPE_STRING", "TYPE_BOOL", "TYPE_UINT8"

PREPROCESSING = "preprocessing"
ENGINE = "tensorrt_llm"
DRAFT = "tensorrt_llm_draft"
"""A smaller engine that guesses tokens for ``tensorrt_llm``, under upstream's name."""
POSTPROCESSING = "postprocessing"
BLS = "tensorrt_llm_bls"
ENSEMBLE = "ensemble"
BLS_UNARY = "tensorrt_llm_bls_unary"
"""``tensorrt_llm_bls`` once more, for calls that take exactly one response."""

TWINS: Mapping[str, tuple[str, ...]] = {BLS: (BLS_UNARY,)}
"""The models that run the files of another one, by that one's name."""


@dataclass(frozen=True)
class Tensor:
    """One input or output of a Triton model.

    Attributes:
        name: Its name on the wire.
        data_type: Triton's name of the element type, such as ``TYPE_INT32``.
        dims: Shape without the batch dimension; -1 is any size.
        optional: Whether a request may leave it out (inputs only).
        reshape: Shape the model sees instead of ``dims``; None keeps ``dims``.
        ragged: Whether requests of different shape may share a batch (inputs only).
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False
    reshape: tuple[int, ...] | None = None
    ragged: bool = False


@dataclass(frozen=True)
class Step:
    """One step of the ensemble; maps go from the model's tensor name to the ensemble's."""

    model: str
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]


@dataclass(frozen=True)
class ModelContract:
    """The inputs and outputs of one Triton model; ``steps`` only for an ensemble.

    Attributes:
        decoupled: Whether one request may have many responses (or, at the end, none).
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    decoupled: bool = False
    steps: tuple[Step, ...] = ()


def one(name: str, data_type: str) -> Tensor:
    """Declares an optional value per request, of shape [1]."""
    return Tensor(name, data_type, (1,), optional=True)


def scalar(name: str, data_type: str) -> Tensor:
    """Declares an optional value per request, of shape [1], that the model sees as a scalar."""
    return Tensor(name, data_type, (1,), optional=True, reshape=())


def ragged(name: str, data_type: str, *dims: int) -> Tensor:
    """Declares an optional array whose shape may differ between the requests of a batch."""
    return Tensor(name, data_type, dims, optional=True, ragged=True)

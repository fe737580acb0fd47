"""A request of several prompts as requests of one prompt each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def count_prompts(inputs: Mapping[str, Array]) -> int:
    """How many prompts a request has."""
    return int(inputs["text_input"].shape[0])


def row_of(arrays: Mapping[str, Array], index: int) -> dict[str, Array]:
    """One prompt's part of each array, with a batch dimension of 1 in front.

    Triton sees to it that all inputs of a request have the same batch size.
    """
    return {name: array[index : index + 1] for name, array in arrays.items()}


def prompt_ids(tokens: Mapping[str, Array]) -> Array:
    """int32 [1, n] token ids of one prompt, without what pads it to the longest of its batch."""
    return tokens["input_ids"][:, : int(tokens["input_lengths"].item())]


def index_of(index: int, prompts: int) -> dict[str, Array]:
    """What says which prompt a response answers, where there are several: int32 [1, 1].

    Upstream's engine leaves it out of the answer to a single prompt, too.
    """
    return {"batch_index": np.array([[index]], np.int32)} if prompts > 1 else {}


def scalar(inputs: Mapping[str, Array], name: str) -> Any:
    """The value of an optional input of one element, or None."""
    return inputs[name].item() if name in inputs else None

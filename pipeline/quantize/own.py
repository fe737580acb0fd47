"""Formats that this project writes itself: every linear is rounded as it is, without a text.

ModelOpt quantizes to none of them on a CPU (NF4), labels one as another format (weight-only INT8),
and exports models in 16 bits alone (float32).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.checkpoint.cut import RankCut
from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.nf4 import LEVELS
from pipeline.checkpoint.reader import numpy_dtype
from pipeline.dependencies import require
from pipeline.formats import FORMATS, Format
from pipeline.models.facts import LinearShape, ModelFacts
from pipeline.progress import Progress
from pipeline.quantize.export import checkpoint_config
from pipeline.quantize.formats import checkpoint_dtype
from pipeline.quantize.resuming import Resume, state_in
from pipeline.quantize.writing import Tensors, Work, head_of, write_checkpoint, write_config
from pipeline.recipe.schema import Recipe

LARGEST_INT8 = np.float32(127)
FLOAT32_BITS = 32
Float32 = npt.NDArray[np.float32]


def writes(row: Format) -> bool:
    """Says whether a checkpoint of the format is written here, and not by ModelOpt."""
    return row.own or row.weight_bits == FLOAT32_BITS


class Weights(Protocol):
    """The tensors of a model by name, as they were loaded or as they would be."""

    def __contains__(self, name: str) -> bool:
        """Says whether the model has a tensor of that name."""

    def __call__(self, name: str, rows: slice = slice(None)) -> Any:
        """Returns a ``torch.Tensor``, or some of its rows."""


class InMemory:
    """The tensors of a model that is in memory.

    Args:
        model: A transformers ``*ForCausalLM``, as it was loaded.
    """

    def __init__(self, model: Any) -> None:
        self._tensors: dict[str, Any] = model.state_dict()

    def __contains__(self, name: str) -> bool:
        """Says whether the model has a tensor of that name."""
        return name in self._tensors

    def __call__(self, name: str, rows: slice = slice(None)) -> Any:
        """Returns a tensor, or some of its rows."""
        return self._tensors[name][rows]


def write(
    weights: Weights,
    facts: ModelFacts,
    recipe: Recipe,
    output: Path,
    progress: Progress,
    *,
    resumed: bool = False,
) -> None:
    """Writes ``config.json`` and one ``rankN.safetensors`` per rank.

    Args:
        weights: The model's.
        facts: The source's facts.
        recipe: ``model.dtype``, ``quantize`` and the parallelism of ``compile`` count.
        output: An existing directory.
        progress: Is told of each layer.
        resumed: Goes on with what an earlier run left in ``output``, and leaves what it has there.

    Raises:
        StageError: The files cannot be written.
    """
    write_checkpoint(
        _Rounded(weights, facts, recipe),
        facts,
        recipe,
        output,
        work=Work("rounding the weights", progress),
        resume=Resume(state_in(output)) if resumed else None,
        kept=resumed,
    )
    config = checkpoint_config(facts, recipe, require("torch", "quantize").__version__)
    config["producer"] = {"name": "trtllm-pipeline", "version": "1"}
    write_config(output, config)


class _Rounded:
    """The tensors of a model that is rounded on its way into the files."""

    def __init__(self, weights: Weights, facts: ModelFacts, recipe: Recipe) -> None:
        self._weights, self._facts = weights, facts
        self._row = FORMATS[recipe.quantize.format]
        self._dtype = numpy_dtype(checkpoint_dtype(recipe))
        ranks = recipe.compile.tensor_parallel
        self._cuts = [RankCut(facts, ranks, rank) for rank in range(ranks)]
        self.head = head_of(facts)

    def kind(self, _: int) -> None:
        """Says that all layers are alike."""

    def plain(self, name: str, rows: slice = slice(None)) -> Array:
        """Reads rows of a tensor that is not rounded to a format."""
        with np.errstate(over="ignore"):  # validation tells of what became infinite
            return self._float32(name, rows).astype(self._dtype)

    def layer(self, index: int) -> list[Tensors]:
        """Rounds a layer, and cuts it for each tensor-parallel rank."""
        source = f"model.layers.{index}."
        norms = {
            f"{norm.checkpoint}.weight": self.plain(f"{source}{norm.source}.weight")
            for norm in self._facts.family.norms
        }
        ranks: list[Tensors] = [dict(norms) for _ in self._cuts]
        for linear in self._facts.linears:
            names = [f"{source}{name}" for name, _ in linear.source]
            for found, part in zip(ranks, self._linear(linear, names), strict=True):
                found |= {f"{linear.name}.{name}": array for name, array in part.items()}
        return ranks

    def _linear(self, linear: LinearShape, names: list[str]) -> Iterator[Tensors]:
        """Yields what each rank gets of a linear, by the ends of their names."""
        whole = np.concatenate([self._float32(f"{name}.weight") for name in names])
        biases = [self.plain(f"{n}.bias") for n in names if f"{n}.bias" in self._weights]
        if self._row.own:
            codes, scales = rounded(whole, self._row)
            both = {"weight": codes, "weights_scaling_factor": scales}
        else:
            plain = whole.astype(self._dtype)
        for cut in self._cuts:
            found = (
                cut.quantized(both, linear, self._row.quant_algo)
                if self._row.own
                else {"weight": cut.rows_and_columns(plain, linear)}
            )
            if biases:
                found["bias"] = cut.rows(np.concatenate(biases), linear)
            yield found

    def _float32(self, name: str, rows: slice = slice(None)) -> Float32:
        found: Float32 = self._weights(name, rows).detach().cpu().float().numpy()
        return found


def rounded(weight: Float32, row: Format) -> tuple[Array, Float32]:
    """Rounds a weight to a format of our own.

    Args:
        weight: float32 [N, K].
        row: The format.

    Returns:
        The codes [N, K], not packed, and the scales.
    """
    return nearest_levels(weight, row.block) if row.block else whole_codes(weight)


def nearest_levels(weight: Float32, block: int) -> tuple[npt.NDArray[np.uint8], Float32]:
    """Rounds a weight to NF4, with the codes that bitsandbytes gives it.

    Args:
        weight: float32 [N, K]; K is a multiple of ``block``.
        block: Consecutive inputs that share one scale.

    Returns:
        uint8 [N, K] from 0 to 15, and the largest magnitude of each block, float32 [N, K / block];
        1 for a block of zeros.
    """
    blocks = weight.reshape(weight.shape[0], -1, block)
    scales = _or_one(np.abs(blocks).max(-1))
    levels = np.array(LEVELS, np.float32)
    between = (levels[1:] + levels[:-1]) / 2
    codes = np.searchsorted(between, blocks / scales[..., None])
    return codes.astype(np.uint8).reshape(weight.shape), scales


def whole_codes(weight: Float32) -> tuple[npt.NDArray[np.int8], Float32]:
    """Rounds a weight to INT8, one scale for each row, with the codes of bitsandbytes' LLM.int8.

    Args:
        weight: float32 [N, K].

    Returns:
        int8 [N, K] from -127 to 127, and the steps, float32 [N]: the largest magnitude of a row
        over 127, or of a row of zeros 1 over 127.
    """
    largest = _or_one(np.abs(weight).max(-1))
    # By way of the reciprocal, as torch divides a number by a tensor: it decides ties.
    codes = np.rint(weight * (np.float32(1) / largest * LARGEST_INT8)[:, None])
    return codes.astype(np.int8), largest / LARGEST_INT8


def _or_one(largest: Float32) -> Float32:
    """Largest magnitudes, but 1 where everything is zero, as ModelOpt has it."""
    return np.where(largest > 0, largest, np.float32(1))

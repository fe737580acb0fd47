"""Formats that this project writes itself: every linear is rounded as it is, without a text.

ModelOpt quantizes to none of them on a CPU (NF4), labels one as another format (weight-only INT8),
and exports models in 16 bits alone (float32).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.checkpoint.cut import RankCut
from pipeline.checkpoint.layout import Array
from pipeline.checkpoint.nf4 import LEVELS
from pipeline.checkpoint.reader import numpy_dtype
from pipeline.checkpoint.validate import rank_path
from pipeline.dependencies import require
from pipeline.formats import FORMATS, Format
from pipeline.models.facts import LinearShape, ModelFacts
from pipeline.progress import Progress
from pipeline.quantize.export import EMBEDDING, HEAD, checkpoint_config, not_written
from pipeline.quantize.formats import checkpoint_dtype
from pipeline.recipe.schema import Recipe

LARGEST_INT8 = np.float32(127)
FLOAT32_BITS = 32
Tensors = dict[str, Array]
Float32 = npt.NDArray[np.float32]


def writes(row: Format) -> bool:
    """Says whether a checkpoint of the format is written here, and not by ModelOpt."""
    return row.own or row.weight_bits == FLOAT32_BITS


def write(model: Any, facts: ModelFacts, recipe: Recipe, output: Path, progress: Progress) -> None:
    """Writes ``config.json`` and one ``rankN.safetensors`` per rank.

    Args:
        model: A transformers ``*ForCausalLM``, as it was loaded.
        facts: The source's facts.
        recipe: ``model.dtype``, ``quantize`` and the parallelism of ``compile`` count.
        output: An existing directory.
        progress: Gets one task over all layers of all ranks.

    Raises:
        StageError: The files cannot be written.
    """
    safetensors = require("safetensors", "quantize")
    save_file = require("safetensors.numpy", "quantize").save_file
    tp, pp = recipe.compile.tensor_parallel, recipe.compile.pipeline_parallel
    per_rank = facts.num_hidden_layers // pp
    try:
        with progress.task("rounding the weights", tp * pp * per_rank) as task:
            for rank in range(tp * pp):
                writer = _Rank(model, facts, recipe, rank)
                save_file(writer.tensors(task.advance), rank_path(output, rank))
        config = checkpoint_config(facts, recipe, require("torch", "quantize").__version__)
        config["producer"] = {"name": "trtllm-pipeline", "version": "1"}
        (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise not_written(output, error) from error


class _Rank:
    """One rank's file of a model."""

    def __init__(self, model: Any, facts: ModelFacts, recipe: Recipe, rank: int) -> None:
        tp, pp = recipe.compile.tensor_parallel, recipe.compile.pipeline_parallel
        self._weights: Mapping[str, Any] = model.state_dict()
        self._facts, self._row = facts, FORMATS[recipe.quantize.format]
        self._dtype = numpy_dtype(checkpoint_dtype(recipe))
        self._cut = RankCut(facts, tp, rank % tp)
        self._stage, self._last = rank // tp, pp - 1
        self._layers = facts.num_hidden_layers // pp

    def tensors(self, layer_done: Callable[[], None]) -> Tensors:
        """All of them by the names of the file."""
        found: Tensors = {}
        if self._stage == 0:
            found[EMBEDDING] = self._cut.vocabulary(self._plain("model.embed_tokens.weight"))
        for local in range(self._layers):
            found |= self._layer(local)
            layer_done()
        if self._stage == self._last:
            found["transformer.ln_f.weight"] = self._plain("model.norm.weight")
            found[HEAD] = self._cut.vocabulary(self._plain("lm_head.weight"))
        # What is not contiguous would be saved in the order that it has in memory.
        return {name: np.ascontiguousarray(array) for name, array in found.items()}

    def _layer(self, local: int) -> Tensors:
        source = f"model.layers.{self._stage * self._layers + local}."
        prefix = f"transformer.layers.{local}."
        found = {
            f"{prefix}{norm.checkpoint}.weight": self._plain(f"{source}{norm.source}.weight")
            for norm in self._facts.family.norms
        }
        for linear in self._facts.linears:
            names = [f"{source}{name}" for name, _ in linear.source]
            for name, array in self._linear(linear, names).items():
                found[f"{prefix}{linear.name}.{name}"] = array
        return found

    def _linear(self, linear: LinearShape, names: list[str]) -> Tensors:
        whole = np.concatenate([self._float32(f"{name}.weight") for name in names])
        if self._row.own:
            codes, scales = rounded(whole, self._row)
            both = {"weight": codes, "weights_scaling_factor": scales}
            found = self._cut.quantized(both, linear, self._row.quant_algo)
        else:
            found = {"weight": self._cut.rows_and_columns(whole.astype(self._dtype), linear)}
        biases = [self._plain(f"{n}.bias") for n in names if f"{n}.bias" in self._weights]
        if biases:
            found["bias"] = self._cut.rows(np.concatenate(biases), linear)
        return found

    def _float32(self, name: str) -> Float32:
        found: Float32 = self._weights[name].detach().cpu().float().numpy()
        return found

    def _plain(self, name: str) -> Array:
        with np.errstate(over="ignore"):  # validation tells of what became infinite
            return self._float32(name).astype(self._dtype)


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

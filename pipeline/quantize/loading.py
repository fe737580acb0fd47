"""Loads the source model for calibration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dependencies import require
from pipeline.errors import UnsupportedError
from pipeline.models.facts import ModelFacts
from pipeline.models.sizes import parameters
from pipeline.quantize.formats import checkpoint_dtype
from pipeline.recipe.schema import Recipe
from pipeline.source.loading import load_causal_lm
from pipeline.source.snapshot import is_unread, read_weights, weight_files

if TYPE_CHECKING:
    from pipeline.layers.weights import SnapshotWeights

# Below this the model is calibrated in float32: search and smoothing then work on unrounded
# products, and it is also the fastest arithmetic of most CPUs. Above it memory decides.
FLOAT32_LIMIT_BYTES = 2 << 30
# Room that calibration needs beside the weights: activations, and the copies AWQ rescales.
WORKING_SHARE = 0.8


def load_model(directory: Path, recipe: Recipe) -> Any:
    """Loads a ``*ForCausalLM`` in evaluation mode onto the recipe's device.

    It is float32, or in the checkpoint's dtype where float32 would exceed
    :data:`FLOAT32_LIMIT_BYTES`.

    Args:
        directory: A Hugging Face snapshot with safetensors.
        recipe: ``model`` and ``quantize.device`` count.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        SourceError: The snapshot cannot be loaded.
        UnsupportedError: CUDA was asked for and there is none.
    """
    device, dtype = choose_device(recipe), calibration_dtype(directory, recipe)
    size = count_parameters(directory) * dtype.itemsize
    return load_causal_lm(
        directory,
        dtype,
        trust_remote_code=recipe.model.trust_remote_code,
        device_map=_device_map(size, device) if device.type == "cuda" else None,
    )


def calibration_dtype(directory: Path, recipe: Recipe) -> Any:
    """Chooses the ``torch.dtype`` that a model is calibrated in, by the size of all of it.

    Args:
        directory: A Hugging Face snapshot with safetensors.
        recipe: ``model.dtype`` counts.

    Raises:
        SourceError: A file is damaged.
    """
    torch = require("torch", "quantize")
    if count_parameters(directory) * 4 > FLOAT32_LIMIT_BYTES:
        return getattr(torch, checkpoint_dtype(recipe))
    return torch.float32


class AsLoaded:
    """A snapshot's tensors by name, in the dtype that a model is loaded into.

    Args:
        weights: The snapshot's tensors as they are stored.
        dtype: That dtype.

    Attributes:
        dtype: That dtype.
    """

    def __init__(self, weights: SnapshotWeights, dtype: Any) -> None:
        self._weights, self.dtype = weights, dtype

    def __contains__(self, name: str) -> bool:
        """Says whether the snapshot has a tensor of that name."""
        return name in self._weights

    def __call__(self, name: str, rows: slice = slice(None)) -> Any:
        """Reads a tensor, or some of its rows."""
        return self._weights(name, rows).to(self.dtype)


def choose_device(recipe: Recipe) -> Any:
    """Chooses the ``torch.device`` of ``quantize.device``; ``auto`` is CUDA when there is one.

    Raises:
        UnsupportedError: CUDA was asked for and there is none.
    """
    torch = require("torch", "quantize")
    wanted, available = recipe.quantize.device, torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UnsupportedError(
            "there is no CUDA device that torch can use",
            where=recipe.place("quantize.device"),
            why=f"torch {torch.__version__} sees none",
            fix="Set quantize.device to auto, or install a CUDA build of torch",
        )
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def count_parameters(directory: Path) -> int:
    """Counts the elements of all tensors of a snapshot that are read, from the files' headers.

    What is quantized counts as what it was made from.

    Raises:
        SourceError: A file is damaged.
    """
    facts = ModelFacts.from_directory(directory)
    if facts.quantized is not None:
        return parameters(facts)
    return sum(
        math.prod(tensor.shape)
        for path in weight_files(directory)
        for name, tensor in read_weights(path, str(path)).items()
        if not is_unread(name, facts)
    )


def _device_map(size: int, device: Any) -> Any:
    torch = require("torch", "quantize")
    free, _ = torch.cuda.mem_get_info(device)
    return device if size < free * WORKING_SHARE else "auto"

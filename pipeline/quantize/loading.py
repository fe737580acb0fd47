"""Loads the source model for calibration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipeline.dependencies import require
from pipeline.errors import UnsupportedError
from pipeline.models.facts import ModelFacts
from pipeline.models.sizes import parameters
from pipeline.quantize.formats import checkpoint_dtype
from pipeline.recipe.schema import Recipe
from pipeline.source.loading import load_causal_lm
from pipeline.source.snapshot import read_weights, weight_files

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
    torch = require("torch", "quantize")
    device = choose_device(recipe)
    parameters = count_parameters(directory)
    dtype = torch.float32
    if parameters * 4 > FLOAT32_LIMIT_BYTES:
        dtype = getattr(torch, checkpoint_dtype(recipe))
    on_cuda = device.type == "cuda"
    return load_causal_lm(
        directory,
        dtype,
        trust_remote_code=recipe.model.trust_remote_code,
        device_map=_device_map(parameters * dtype.itemsize, device) if on_cuda else None,
    )


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
    """Counts the elements of all tensors of a snapshot, from the files' headers.

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
        for tensor in read_weights(path, str(path)).values()
    )


def _device_map(size: int, device: Any) -> Any:
    torch = require("torch", "quantize")
    free, _ = torch.cuda.mem_get_info(device)
    return device if size < free * WORKING_SHARE else "auto"

"""The source model in float32, next to the reference of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.recipe.schema import Recipe
from pipeline.source.loading import load_causal_lm

# Left for activations and logits beside the weights of both models.
GPU_MEMORY_SHARE = 0.8


def load_source(directory: Path, *, trust_remote_code: bool = False) -> torch.nn.Module:
    """Loads the Hugging Face model in float32, whatever dtype its files have.

    So the rounding to the recipe's dtype counts as part of the checkpoint's error.

    Raises:
        SourceError: transformers cannot load it.
    """
    model: torch.nn.Module = load_causal_lm(
        directory, torch.float32, trust_remote_code=trust_remote_code
    )
    return model


def place_models(recipe: Recipe, *models: torch.nn.Module) -> torch.device:
    """Moves models to the recipe's device, or leaves them on the CPU when they do not fit there.

    Raises:
        UnsupportedError: CUDA was asked for and there is none.
    """
    from pipeline.quantize.loading import choose_device

    device: torch.device = choose_device(recipe)
    if device.type == "cuda":
        size = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
        free, _ = torch.cuda.mem_get_info(device)
        if size > free * GPU_MEMORY_SHARE:
            device = torch.device("cpu")
    for model in models:
        model.to(device)
    return device

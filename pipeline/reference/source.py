"""The source model in float32, next to the reference of its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from pipeline.errors import SourceError
from pipeline.models import ModelFacts
from pipeline.recipe import Recipe

# Left for activations and logits beside the weights of both models.
GPU_MEMORY_SHARE = 0.8


def load_source(directory: Path, *, trust_remote_code: bool = False) -> torch.nn.Module:
    """The Hugging Face model in float32, whatever its files hold, so that the rounding to the
    recipe's dtype counts as part of the checkpoint's error.

    Raises:
        SourceError: transformers cannot load it.
    """
    facts = ModelFacts.from_directory(directory)
    try:
        config = transformers.AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
        # transformers 4 overlooks the rope keys that transformers 5 writes.
        config.rope_theta, config.rope_scaling = facts.rotary_base, facts.rotary_scaling
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise SourceError(
            "transformers cannot load the model",
            where=str(directory),
            why=str(error).strip().partition("\n")[0],
        ) from error
    source: torch.nn.Module = model.eval()
    return source


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

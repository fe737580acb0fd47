"""The source model in float32, next to the reference of its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.checkpoint.sources import QuantizedFolder
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.reference.linear import float32_tensor
from pipeline.source.loading import load_causal_lm
from pipeline.source.snapshot import expected_tensors

# Left for activations and logits beside the weights of both models.
GPU_MEMORY_SHARE = 0.8


def load_source(directory: Path, *, trust_remote_code: bool = False) -> torch.nn.Module:
    """Loads the Hugging Face model in float32, whatever dtype its files have.

    So the rounding to the recipe's dtype counts as part of the checkpoint's error. The weights of a
    model that is quantized already are what its codes and scales say; activations are not rounded.

    Raises:
        SourceError: transformers cannot load it, or tensors of a quantized one contradict each
            other.
    """
    if ModelFacts.from_directory(directory).quantized is not None:
        return _dequantized(directory)
    model: torch.nn.Module = load_causal_lm(
        directory, torch.float32, trust_remote_code=trust_remote_code
    )
    return model


def _dequantized(directory: Path) -> torch.nn.Module:
    """Builds the model in floating point, without the library that wrote its files."""
    import transformers

    folder = QuantizedFolder(directory)
    facts = folder.facts
    factory: Any = transformers.AutoConfig
    config = factory.from_pretrained(directory, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.rope_theta, config.rope_scaling = facts.rotary_base, facts.rotary_scaling
    with torch.device("meta"):
        models: Any = transformers.AutoModelForCausalLM
        model = models.from_config(config, dtype=torch.float32)
    # Its inverse frequencies are computed, not loaded, so they must not stay on the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    weights = {}
    for name in expected_tensors(facts):
        linear = name.removesuffix(".weight")
        array = folder.weight(linear) if name.endswith(".weight") else folder.tensor(name)
        weights[name] = float32_tensor(np.asarray(array))
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    model.load_state_dict(weights, strict=True, assign=True)
    loaded: torch.nn.Module = model.eval()
    return loaded


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

"""A Hugging Face model whose linears compute what a TensorRT-LLM checkpoint says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from pipeline.checkpoint import open_checkpoint
from pipeline.checkpoint.layout import Array, Layer, Linear, Weights
from pipeline.models.facts import ModelFacts
from pipeline.reference.kv_cache import ATTENTION_NAME, set_kv_cache
from pipeline.reference.linear import (
    float32_tensor,
    split_linear,
    unread_linears,
    whole_linear,
)

Room = dict[str, npt.NDArray[np.float32]]
"""Where a layer's weights are turned back to, by the names of its linears."""


def load_reference(directory: Path) -> torch.nn.Module:
    """Loads the model that a checkpoint directory holds, of any tensor and pipeline parallelism.

    Raises:
        CheckpointError: The directory is not a complete checkpoint.
        UnsupportedError: Its architecture or format is not one of ours.
    """
    checkpoint = open_checkpoint(directory)
    kv_cache_algo = checkpoint.config.quantization.kv_cache_algo
    return reference_model(checkpoint.weights(), checkpoint.facts, kv_cache_algo)


def reference_model(
    weights: Weights, facts: ModelFacts, kv_cache_algo: str | None = None
) -> torch.nn.Module:
    """Builds the transformers model of the architecture, in float32 and evaluation mode.

    Args:
        weights: All layers.
        facts: The model's facts.
        kv_cache_algo: ``INT8``, ``FP8`` or None.

    Returns:
        A ``*ForCausalLM`` whose forward takes ``input_ids`` and ``attention_mask`` [batch, length].
    """
    config = config_of(facts)
    with torch.device("meta"):
        factory: Any = transformers.AutoModelForCausalLM
        model = factory.from_config(config, attn_implementation=ATTENTION_NAME)
    decoder = model.model
    # Its inverse frequencies are computed, not loaded, so they must not stay on the meta device.
    decoder.rotary_emb = type(decoder.rotary_emb)(config)
    _set_weight(decoder.embed_tokens, weights.vocab_embedding)
    for module, layer in zip(decoder.layers, weights.layers, strict=True):
        fill_layer(module, layer, facts, kv_cache_algo)
    _set_weight(decoder.norm, weights.ln_f)
    model.lm_head = whole_linear(weights.lm_head)
    reference: torch.nn.Module = model.eval()
    return reference


def fill_layer(
    module: Any,
    layer: Layer,
    facts: ModelFacts,
    kv_cache_algo: str | None,
    room: Room | None = None,
    *,
    reads: bool = True,
) -> None:
    """Gives a decoder layer of transformers what a layer of a checkpoint has.

    Args:
        module: The decoder layer; its linears are replaced.
        layer: The checkpoint's.
        facts: The model's facts.
        kv_cache_algo: ``INT8``, ``FP8`` or None; with one the module's model was built with
            ``attn_implementation=ATTENTION_NAME``.
        room: Of the layer before, whose weights are lost; empty at first. None makes new arrays.
        reads: Whether weights are read now, or when they are needed (:func:`.blocks.unread`).
    """
    for linear in facts.linears:
        stored = layer.linear(linear.name)
        rows = tuple(size for _, size in linear.source)
        # Those of the layer before, if there was one, go ahead of what takes their place.
        for name, _ in linear.source:
            module.set_submodule(name, torch.nn.Identity())
        if reads:
            out = None if room is None else _part_of(room, linear.name, stored)
            parts = split_linear(stored, rows, out)
        else:
            parts = unread_linears(stored, rows)
        for (name, _), part in zip(linear.source, parts, strict=True):
            module.set_submodule(name, part)
    for norm in facts.family.norms:
        _set_weight(module.get_submodule(norm.source), layer.norm(norm.checkpoint))
    if kv_cache_algo is not None:
        assert layer.kv_cache_scaling_factor is not None
        set_kv_cache(module.self_attn, kv_cache_algo, layer.kv_cache_scaling_factor)


def _part_of(room: Room, name: str, linear: Linear) -> npt.NDArray[np.float32]:
    shape = linear.out_features, linear.in_features
    if name not in room or room[name].shape != shape:
        room[name] = np.empty(shape, np.float32)
    return room[name]


def _set_weight(module: torch.nn.Module, array: Array) -> None:
    module.weight = torch.nn.Parameter(float32_tensor(array), requires_grad=False)


def config_of(facts: ModelFacts) -> transformers.PretrainedConfig:
    """Makes transformers' configuration of a checkpoint's model."""
    options: dict[str, Any] = {
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.intermediate_size,
        "num_hidden_layers": facts.num_hidden_layers,
        "num_attention_heads": facts.num_attention_heads,
        "num_key_value_heads": facts.num_key_value_heads,
        "head_dim": facts.head_size,
        "hidden_act": facts.hidden_act,
        "max_position_embeddings": facts.max_position_embeddings,
        "rms_norm_eps": facts.norm_epsilon,
        "rope_theta": facts.rotary_base,
        "rope_scaling": facts.rotary_scaling,
        # The checkpoint's lm_head is its own tensor even where the source's was the embedding.
        "tie_word_embeddings": False,
    }
    if "sliding_window" in facts.family.understood:
        options["sliding_window"] = facts.sliding_window
    config: transformers.PretrainedConfig = transformers.AutoConfig.for_model(
        facts.family.model_type, **options
    )
    return config

"""One decoder layer as a model of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import transformers

# Of the vocabulary that a one-layer model is given: as many as ModelOpt's export pads to, so that
# it pads nothing.
STUB_ROWS = 64
FIRST_LAYER = "model.layers.0."


def one_layer(
    config: Any,
    index: int,
    read: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
) -> Any:
    """Builds a ``*ForCausalLM`` that has one layer of a model, and a stub of a vocabulary.

    Its ``model(inputs_embeds=...)`` computes what the layer does in the whole model, with the mask
    and the rotary positions that the class makes; the final norm comes behind it, unless the caller
    replaces ``model.model.norm``.

    Args:
        config: The whole model's configuration, as transformers loads it.
        index: The layer's number in the whole model.
        read: Returns a tensor by its name in the whole model.
        dtype: What the layer is computed in.

    Returns:
        The model in evaluation mode, on the CPU; the layer is ``model.model.layers[0]``.
    """
    model = empty_layer(config, index, dtype)
    state = {}
    for name, there in model.state_dict().items():
        if name.startswith(FIRST_LAYER):
            own_name = f"model.layers.{index}.{name.removeprefix(FIRST_LAYER)}"
            state[name] = read(own_name).to(dtype)
        else:
            state[name] = torch.zeros(there.shape, dtype=dtype)
    model.load_state_dict(state, assign=True)
    return model


def empty_layer(config: Any, index: int, dtype: torch.dtype, attention: str | None = None) -> Any:
    """Builds what :func:`one_layer` builds, with all weights on the meta device.

    Args:
        config: The whole model's configuration, as transformers loads it.
        index: The layer's number in the whole model.
        dtype: What the layer is computed in.
        attention: An attention function of transformers; None is its own choice.
    """
    own = copy.deepcopy(config)
    own.update(
        {
            "num_hidden_layers": 1,
            "vocab_size": STUB_ROWS,
            # An id past the stub is refused as the padding of an embedding.
            "pad_token_id": None,
            "tie_word_embeddings": False,
        }
    )
    # The model's forward makes its masks by these.
    if kinds := getattr(config, "layer_types", None):
        own.layer_types = [kinds[index]]
    factory: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = factory.from_config(own, dtype=dtype, attn_implementation=attention)
        layers = model.model.layers
        whole = copy.deepcopy(config)
        whole._attn_implementation = model.config._attn_implementation
        # With its own number, by which a layer may choose its window.
        layers[0] = type(layers[0])(whole, index)
    # Its inverse frequencies are computed, not loaded, so they must not stay on the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(own)
    return model.eval()


def another_layer(model: Any, index: int) -> Any:
    """Builds a decoder layer as a one-layer model has it, with all weights on the meta device.

    Args:
        model: Of :func:`empty_layer`.
        index: The layer's number in the whole model.
    """
    layer = model.model.layers[0]
    with torch.device("meta"):
        return type(layer)(layer.self_attn.config, index).eval()

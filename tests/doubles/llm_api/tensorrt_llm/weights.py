"""Opens a folder with transformers, whatever its linears are stored in.

Layouts as ``tensorrt_llm/_torch/modules/linear.py`` reads them: of weight-only INT4 the byte of
rows 2i and 2i + 1 has the former in its low nibble, codes are two's complement, ``weight_scale`` is
one for each group of inputs in the model's dtype, and ``pre_quant_scale`` multiplies the input of
o_proj and down_proj.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

FUSED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
SCALES = ("weight_scale", "pre_quant_scale", "input_scale", "weight_scale_2", "k_scale", "v_scale")
SUPPORTED = (None, "FP8", "W4A16_AWQ", "W4A8_AWQ", "NVFP4")


def open_folder(folder: Path) -> Any:
    """The model in float32.

    Raises:
        ValueError: The linears have no method for the quantization.
        KeyError: A tensor that the loader asks for is missing.
    """
    quantization: dict[str, Any] = {}
    path = folder / "hf_quant_config.json"
    if path.is_file():
        quantization = json.loads(path.read_text())["quantization"]
    algo = quantization.get("quant_algo")
    if algo not in SUPPORTED:
        raise ValueError(f"unsupported quant mode: {algo}")
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    config = AutoConfig.from_pretrained(folder)
    state = {}
    for name, value in tensors.items():
        module, _, key = name.rpartition(".")
        if key in SCALES:
            continue
        stored = key == "weight" and f"{module}.weight_scale" in tensors
        state[name] = (
            dequantized(module, value, tensors, config.torch_dtype) if stored else value.float()
        )
    model = AutoModelForCausalLM.from_config(config, torch_dtype=torch.float32)
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if set(missing) - tied or unexpected:
        raise KeyError(f"missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.eval()


def dequantized(
    module: str, weight: torch.Tensor, tensors: dict[str, torch.Tensor], dtype: torch.dtype
) -> Any:
    """The weight that the linear multiplies its input by."""
    scale = tensors[f"{module}.weight_scale"]
    if weight.dtype == torch.float8_e4m3fn:
        return weight.float() * scale.float()
    scale = scale.to(dtype).float()
    low, high = (weight & 0xF).to(torch.int16), (weight >> 4).to(torch.int16)
    codes = torch.stack((low, high), 1).reshape(-1, weight.shape[1])
    codes = torch.where(codes > 7, codes - 16, codes).float()
    value = codes * scale.repeat_interleave(codes.shape[1] // scale.shape[1], 1)
    if module.endswith(FUSED):
        return value
    return value * tensors[f"{module}.pre_quant_scale"].float()

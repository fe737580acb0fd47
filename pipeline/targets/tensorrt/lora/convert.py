"""An adapter in the layout that TensorRT-LLM loads, as ``examples/hf_lora_convert.py`` writes it.

``model.lora_weights.npy`` is float16 ``[1, pairs, width]``: a row is A, then B times the scale,
both row by row, and zeros up to the longest row. ``model.lora_config.npy`` is int32
``[1, pairs, 3]``: module, layer and rank of each row.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.recipe.tensorrt import LoraModule
from pipeline.source.safetensors_header import StoredTensor
from pipeline.targets.tensorrt.lora.adapter import Adapter, AdapterError, read_adapter

WEIGHTS_FILE, CONFIG_FILE = "model.lora_weights.npy", "model.lora_config.npy"

# LORA_MODULE_IDS of tensorrt_llm/lora_manager.py.
MODULE_IDS: Mapping[LoraModule, int] = {
    "attn_q": 1,
    "attn_k": 2,
    "attn_v": 3,
    "attn_dense": 4,
    "mlp_h_to_4h": 5,
    "mlp_4h_to_h": 6,
    "mlp_gate": 7,
}


def weights_file(folder: Path) -> bytes:
    """Makes the content of :data:`WEIGHTS_FILE` for an adapter's folder.

    Raises:
        AdapterError: It cannot be served.
    """
    adapter = read_adapter(folder)
    rows = [
        np.concatenate((_load(adapter, pair.a, 1.0), _load(adapter, pair.b, adapter.scale)))
        for pair in adapter.pairs
    ]
    weights = np.zeros((1, len(rows), max(map(len, rows))), np.float16)
    for number, row in enumerate(rows):
        with np.errstate(over="ignore"):
            weights[0, number, : len(row)] = row
    if not np.isfinite(weights).all():
        raise AdapterError(f"{adapter.weights} has values that float16 cannot hold")
    return _npy(weights)


def config_file(folder: Path) -> bytes:
    """Makes the content of :data:`CONFIG_FILE` for an adapter's folder.

    Raises:
        AdapterError: It cannot be served.
    """
    adapter = read_adapter(folder)
    rows = [(MODULE_IDS[pair.module], pair.layer, adapter.rank) for pair in adapter.pairs]
    return _npy(np.array([rows], np.int32))


def _load(adapter: Adapter, tensor: StoredTensor, scale: float) -> npt.NDArray[np.float32]:
    with adapter.weights.open("rb") as file:
        file.seek(tensor.start)
        raw = file.read(tensor.size)
    if tensor.dtype == "BF16":
        # The upper half of a float32.
        values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[tensor.dtype])
    return values.astype(np.float32) * np.float32(scale)


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()

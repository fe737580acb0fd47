"""LoRA: ``peftCacheManager.cpp``, ``runtime/loraUtils.cpp``, ``runtime/loraModule.cpp``.

The cache has room for whatever comes, but for the check at the start that it holds one adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import TllmError, check, runtime_error
from .request import Request
from .settings import LoraSettings

_PEFT = "cpp/tensorrt_llm/batch_manager/peftCacheManager.cpp"
_UTILS = "cpp/tensorrt_llm/runtime/loraUtils.cpp"
_NAMES = {
    1: "attn_q",
    2: "attn_k",
    3: "attn_v",
    4: "attn_dense",
    5: "mlp_h_to_4h",
    6: "mlp_4h_to_h",
    7: "mlp_gate",
}
"""``LoraModule::ModuleType``."""


class LoraExpectedError(TllmError):
    """``LoraExpectedException``, which reaches the client as it is."""


@dataclass(frozen=True)
class Row:
    """What an adapter adds to one linear: ``B @ A``.

    Attributes:
        module: A name of ``LoraModule``.
        a: float32 [rank, in].
        b: float32 [out, rank].
    """

    module: str
    layer: int
    a: npt.NDArray[Any]
    b: npt.NDArray[Any]


class Adapters:
    """``PeftCacheManager``.

    Args:
        settings: What the engine was built for, and the parameters.
        make: Makes what the executor needs to run an adapter.
    """

    def __init__(self, settings: LoraSettings, make: Callable[[list[Row]], Any]) -> None:
        self._settings, self._make = settings, make
        self._cached: dict[int, Any] = {}
        self._check_room()
        folder = settings.prefetch_dir
        if folder is not None and folder.is_dir():
            self._prefetch(folder)

    def __getitem__(self, task_id: int) -> Any:
        """What :attr:`make` made of the adapter."""
        return self._cached[task_id]

    def add(self, request: Request) -> None:
        """``addRequestPeft``.

        Raises:
            LoraExpectedError: The adapter is not in the cache and its weights do not come along.
            TllmError: The request's tensors are wrong.
        """
        task_id, weights, config = request.lora_task_id, request.lora_weights, request.lora_config
        if task_id is None and weights is None and config is None:
            return
        check(task_id is not None, "lora_task_id must be set for LoRA inference", _UTILS)
        assert task_id is not None
        if weights is None and config is None:
            if task_id not in self._cached:
                raise LoraExpectedError(
                    f"LoRA task {task_id} not found in cache. Please send LoRA weights with request"
                )
            return
        check(
            weights is not None and config is not None,
            "Request for LoRA inference must have both lora_weights and lora_keys",
            _UTILS,
        )
        rows = list(self._rows(weights, config))
        if task_id not in self._cached:
            self._cached[task_id] = self._make(rows)

    def _check_room(self) -> None:
        """``getPageManagerConfig``, of the host's cache."""
        sizes = [sum(shape) for shape in self._settings.shapes.values()]
        rank = min(self._settings.max_adapter_size, self._settings.max_rank)
        page = min(sizes)
        needed = -(-rank * sum(sizes) * self._settings.layers // page)
        slots = self._settings.host_cache_bytes // (page * 2)
        check(
            slots >= needed,
            f"Not enough space allocated to host LoRA cache to hold 1 max sized LoRA {slots} < "
            f"{needed}",
            _PEFT,
        )

    def _prefetch(self, folder: Path) -> None:
        """``prefetchLoraWeights``: a folder whose name is no number is left out."""
        for task in sorted(folder.iterdir()):
            if not task.is_dir() or not task.name.isdecimal():
                continue
            try:
                weights, config = (
                    np.load(task / f"model.lora_{kind}.npy") for kind in ("weights", "config")
                )
            except OSError as error:
                raise runtime_error(f"Failed to open npy file {error.filename}") from error
            self._cached[int(task.name)] = self._make(list(self._rows(weights, config)))

    def _rows(self, weights: Any, config: Any) -> Iterator[Row]:
        """``loraValidateRequestTensors``, and the matrices of each row."""
        check(weights.ndim == 3, "Invalid shape for lora_weights tensor", _UTILS)
        check(config.ndim == 3, "Invalid shape for lora_keys tensor", _UTILS)
        check(
            config.shape[1] == weights.shape[1],
            "Expected dim1 lora_weights and lora_keys to have the same size",
            _UTILS,
        )
        check(config.shape[2] in (3, 4), "Expected dim2 of lora_keys to have a size in", _UTILS)
        check(
            weights.dtype == np.float16,
            "Expected lora weights to be the same data type as base model",
            _UTILS,
        )
        shapes: Mapping[str, tuple[int, int]] = self._settings.shapes
        for row, (module, layer, rank, *_) in zip(weights[0], config[0].tolist(), strict=True):
            check(
                0 <= layer < self._settings.layers,
                "Expected layerId to be in the range [0, numModelLayers)",
                _UTILS,
            )
            check(rank > 0, "Expected adapterSize to be > 0", _UTILS)
            name = _NAMES.get(module, str(module))
            check(name in shapes, f"lora module {name} not enabled for this model", _UTILS)
            inside, outside = shapes[name]
            check(
                (inside + outside) * rank <= len(row),
                f"lora_weights has to few values for {name}",
                _UTILS,
            )
            check(
                rank <= self._settings.max_rank,
                f"Invalid low_rank ({rank}). low_rank must be smaller than mMaxLowRank "
                f"({self._settings.max_rank})",
                _UTILS,
            )
            values = row.astype(np.float32)
            a, b = values[: rank * inside], values[rank * inside : rank * (inside + outside)]
            yield Row(name, layer, a.reshape(rank, inside), b.reshape(outside, rank))

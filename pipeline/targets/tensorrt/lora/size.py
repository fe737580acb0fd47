"""How much room a LoRA adapter takes in the runtime's caches."""

from __future__ import annotations

from collections.abc import Iterable

BYTES_PER_VALUE = 2
"""Adapters are float16, as their models."""


def adapter_bytes(widths: Iterable[int], rank: int, layers: int) -> int:
    """Bounds the bytes of an adapter in the caches, from above.

    The caches have rows as wide as the smallest module, of which each module takes whole ones
    (``PeftCacheManager::getPageManagerConfig`` in batch_manager/peftCacheManager.cpp). Tensor and
    pipeline parallelism, which cut adapters too, are not counted.

    Args:
        widths: Input plus output features of each linear that it changes; one at least.
        rank: Its rank.
        layers: Decoder layers of the model.
    """
    widths = list(widths)
    row = min(widths)
    rows = sum(-(-width // row) for width in widths)
    return rank * rows * row * layers * BYTES_PER_VALUE

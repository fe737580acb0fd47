"""Formats that this project rounds itself: every linear as it is, without a text.

ModelOpt quantizes none of them on a CPU (NF4), or labels them as another format (weight-only INT8).
It still cuts the model for the ranks; the rounding takes place of what it cut, so blocks and rows
never reach over ranks.
"""

from __future__ import annotations

from typing import Any

from pipeline.checkpoint.nf4 import LEVELS, pack_rows
from pipeline.formats import Format
from pipeline.models.facts import ModelFacts

LARGEST_INT8 = 127.0


def round_linears(
    tensors: dict[str, Any], facts: ModelFacts, row: Format, dtype: Any
) -> dict[str, Any]:
    """Rounds the linears of one rank to a format of our own.

    Args:
        tensors: torch tensors by the checkpoint's names, linears as float [N, K].
        facts: Names the linears of a layer.
        row: The format.
        dtype: What everything else becomes, a torch dtype.

    Returns:
        The tensors of the rank: each linear's ``weight`` as codes, and its
        ``weights_scaling_factor`` beside it.
    """
    suffixes = tuple(f".{linear.name}.weight" for linear in facts.linears)
    rounded: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if not name.endswith(suffixes):
            rounded[name] = tensor.to(dtype)
            continue
        codes, scales = nearest_levels(tensor, row.block) if row.block else whole_codes(tensor)
        rounded[name] = codes
        rounded[f"{name.removesuffix('.weight')}.weights_scaling_factor"] = scales
    return rounded


def nearest_levels(weight: Any, block: int) -> tuple[Any, Any]:
    """Rounds a weight to NF4, with the codes that bitsandbytes gives it.

    Args:
        weight: torch float [N, K]; K is a multiple of ``block`` and N is even.
        block: Consecutive inputs that share one scale.

    Returns:
        uint8 [N/2, K], two rows in a byte, and the largest magnitude of each block, float32
        [N, K / block]; 1 for a block of zeros.
    """
    import torch

    values = weight.detach().cpu().float()
    blocks = values.reshape(values.shape[0], -1, block)
    scales = _or_one(blocks.abs().amax(-1))
    levels = torch.tensor(LEVELS)
    between = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(blocks / scales[..., None], between).reshape(values.shape)
    return torch.from_numpy(pack_rows(codes.numpy())), scales


def whole_codes(weight: Any) -> tuple[Any, Any]:
    """Rounds a weight to INT8, one scale for each row, with the codes of bitsandbytes' LLM.int8.

    Args:
        weight: torch float [N, K].

    Returns:
        int8 [N, K] from -127 to 127, and the steps, float32 [N]: the largest magnitude of a row
        over 127, or 1 for a row of zeros.
    """
    import torch

    values = weight.detach().cpu().float()
    largest = _or_one(values.abs().amax(-1))
    codes = torch.round(values * (LARGEST_INT8 / largest)[:, None]).to(torch.int8)
    return codes.contiguous(), largest / LARGEST_INT8


def _or_one(largest: Any) -> Any:
    """Largest magnitudes, but 1 where everything is zero, as ModelOpt has it."""
    import torch

    return torch.where(largest > 0, largest, torch.ones_like(largest))

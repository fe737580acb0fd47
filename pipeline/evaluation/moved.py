"""Which factors a portable checkpoint has between its parts and those of its source.

Its pre-quant scales were moved: a norm gives x * s instead of x, and the linears behind it hold
W / s. Part for part it is another model, so a part is compared with the source's on an input that
is multiplied as the checkpoint does, and by an output that is divided again. The factors are read
off the norms, and off the rows of linears whose outputs carry one. A norm or a row that is damaged
gives a wrong factor, and so shows in the linears behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.models.architectures import PRE_NORMS

BEHIND_NORM = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
)
_LAYER = re.compile(r"model\.layers\.\d+\.")
Modules = Mapping[str, torch.nn.Module]
IN_ROWS = (("self_attn.v_proj", "self_attn.o_proj"), ("mlp.up_proj", "mlp.down_proj"))


@dataclass(frozen=True)
class Factors:
    """Of one part of a written model.

    Attributes:
        inputs: What its inputs are multiplied by, against the source's; float32 [K] or 1.
        outputs: The same of its outputs; float32 [N] or 1.
    """

    inputs: torch.Tensor | float = 1.0
    outputs: torch.Tensor | float = 1.0


@torch.inference_mode()
def moved_factors(source: Modules, written: Modules, *, one_each: bool) -> dict[str, Factors]:
    """Finds the factors of every norm and linear of the decoder layers that are there.

    Args:
        source: Modules of a transformers model in float32, by name.
        written: Those of the reference of a portable checkpoint of it, on the same device.
        one_each: Whether each head of queries has one of keys and values of its own.

    Returns:
        By name in the source model; parts without any are left out.
    """
    found: dict[str, Factors] = {}
    for prefix in filter(_LAYER.fullmatch, (f"{name}." for name in source)):
        for norm, readers in zip(PRE_NORMS, BEHIND_NORM, strict=True):
            name = f"{prefix}{norm.source}"
            own, theirs = (_weight(modules[name]) for modules in (source, written))
            factor = _or_one(theirs / own)
            found[name] = Factors(outputs=factor)
            found |= {f"{prefix}{reader}": Factors(inputs=factor) for reader in readers}
        for before, after in IN_ROWS if one_each else IN_ROWS[1:]:
            name = f"{prefix}{before}"
            own, theirs = (_weight(modules[name]) for modules in (source, written))
            # The row of the source that the written one is nearest to a multiple of.
            projected = (theirs * found[name].inputs * own).sum(1)
            factor = _or_one(projected / own.square().sum(1))
            found[name] = replace(found[name], outputs=factor)
            found[f"{prefix}{after}"] = Factors(inputs=factor)
    return found


def _weight(module: Any) -> torch.Tensor:
    weight: torch.Tensor = module.weight
    return weight.float()


def _or_one(factor: torch.Tensor) -> torch.Tensor:
    """Takes 1 where the source has only zeros, which no factor changes."""
    return torch.where(torch.isfinite(factor) & (factor != 0), factor, torch.ones_like(factor))

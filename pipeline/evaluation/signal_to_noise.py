"""How much of each linear's output its written form keeps: where a format hurts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.evaluation.moved import Factors
from pipeline.evaluation.scoring import Scorer

# Of text that all linears see; the ratio of two sums over so many rows and columns moves little.
TOKENS = 512


@dataclass(frozen=True)
class SignalToNoise:
    """That of one linear, or of another part.

    Attributes:
        linear: Its name in the source model, as in ``model.layers.0.mlp.down_proj``.
        db: The power of the source linear's output over that of the written one's error, both on
            the same input, in decibel; infinite where there is no error.
    """

    linear: str
    db: float

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as JSON values.

        ``db`` is None where it is not finite; ``exact`` tells no error at all from an output that
        is not finite.
        """
        db = self.db if math.isfinite(self.db) else None
        return {"linear": self.linear, "db": db, "exact": self.db == math.inf}


def is_linear(module: Any) -> bool:
    """Tells whether it is a matrix multiplication, which formats round."""
    return isinstance(module, torch.nn.Linear)


def is_other(module: Any) -> bool:
    """Tells whether it has weights that no format rounds: the embedding, or a norm."""
    weighs = "weight" in dict(module.named_parameters(recurse=False))
    return weighs and not is_linear(module)


@torch.inference_mode()
def signal_to_noise(
    source: Any,
    written: Any,
    score: Scorer,
    rows: Sequence[Sequence[int]],
    chosen: Callable[[Any], bool] = is_linear,
    *,
    factors: Mapping[str, Factors] | None = None,
) -> list[SignalToNoise]:
    """Measures the linears, or other parts, that two models have under the same name.

    Each gets what the source model gives its own, so the errors of the layers before do not count.

    Args:
        source: A transformers model in float32.
        written: A reference of its checkpoint, on the same device.
        score: The source's scorer.
        rows: Token ids of texts from their beginnings; of these about :data:`TOKENS` are used.
        chosen: Which modules are measured; each has one tensor as input and one as output.
        factors: Between the inputs and outputs of the two, of a checkpoint whose pre-quant scales
            were moved; None where every part is to be the source's.

    Returns:
        Every such module, the worst first: what is not finite before them, what is exact last.
    """
    powers: dict[str, list[float]] = {}
    handles = []
    others = dict(written.named_modules())
    for name, module in source.named_modules():
        if chosen(module) and name in others:
            powers[name] = [0.0, 0.0]
            between = (factors or {}).get(name)
            hook = _hook(others[name], powers[name], between)
            handles.append(module.register_forward_hook(hook))
    try:
        left = TOKENS
        for row in rows:
            # One by one, so that no padding counts.
            score(torch.tensor([list(row[:left])]))
            left -= len(row)
            if left <= 0:
                break
    finally:
        for handle in handles:
            handle.remove()
    found = [SignalToNoise(name, _decibel(*power)) for name, power in powers.items()]
    return sorted(found, key=lambda item: -math.inf if math.isnan(item.db) else item.db)


def _hook(other: Any, power: list[float], between: Factors | None) -> Callable[..., None]:
    def hook(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        power[0] += _power(output)
        if between is None:
            theirs = other(inputs[0])
        else:
            theirs = other(inputs[0] * between.inputs) / between.outputs
        power[1] += _power(theirs - output)

    return hook


def _power(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise)."""
    if not math.isfinite(signal) or not math.isfinite(noise):
        return math.nan
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf

"""How much of each linear's output its written form keeps: where a format hurts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from pipeline.evaluation.moved import Factors, Modules
from pipeline.evaluation.scoring import Scorer
from pipeline.layers.parts import EmbeddingByRows, HeadInBlocks, Part, whole

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


@dataclass(frozen=True)
class Noise:
    """That of all parts, the worst first: what is not finite before them, what is exact last.

    Attributes:
        linears: The matrix multiplications, which formats round.
        others: What has weights that no format rounds: the embedding, and the norms.
    """

    linears: list[SignalToNoise]
    others: list[SignalToNoise]


class NoiseMeter:
    """Measures the parts that two models have under the same name, while the source computes.

    Each gets what the source model gives its own, so the errors of the layers before do not count.

    Args:
        written: Returns the part of the checkpoint's reference that belongs to one of the source,
            on the same device.
        factors: Finds what lies between the inputs and outputs of the two, of a checkpoint whose
            pre-quant scales were moved; None where every part is to be the source's.
    """

    def __init__(
        self,
        written: Callable[[Part], Part],
        factors: Callable[[Modules, Modules], Mapping[str, Factors]] | None = None,
    ) -> None:
        self._written, self._factors = written, factors
        self._linears: dict[str, list[float]] = {}
        self._others: dict[str, list[float]] = {}

    @contextmanager
    def watching(self, part: Part) -> Iterator[None]:
        """Returns a context manager in which the part's modules are measured."""
        others = self._written(part).modules
        factors = self._factors(part.modules, others) if self._factors else {}
        handles: list[RemovableHandle] = []
        for name, module in part.modules.items():
            powers = self._linears if _is_linear(module) else self._others
            if name in others and (_is_linear(module) or _is_other(module)):
                power = powers.setdefault(name, [0.0, 0.0])
                hook = _hook(others[name], power, factors.get(name))
                handles.append(module.register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, batch: int) -> None:
        """Drops the report."""

    def end(self, batch: int) -> None:
        """Drops the report."""

    def seen(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Returns the powers of signals and noises so far."""
        return self._linears, self._others

    def restore(self, seen: tuple[dict[str, list[float]], dict[str, list[float]]]) -> None:
        """Takes what :meth:`seen` returned, as JSON gives it back."""
        self._linears, self._others = seen

    def found(self) -> Noise:
        """Returns what was measured."""
        return Noise(*(_sorted(powers) for powers in (self._linears, self._others)))


def measured_rows(rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Takes about :data:`TOKENS` of texts, each of them a batch, so that no padding counts.

    Args:
        rows: Token ids of texts from their beginnings.
    """
    left, found = TOKENS, []
    for row in rows:
        found.append(torch.tensor([list(row[:left])]))
        left -= len(row)
        if left <= 0:
            break
    return found


def signal_to_noise(
    source: torch.nn.Module,
    written: torch.nn.Module,
    score: Scorer,
    rows: Sequence[Sequence[int]],
    *,
    factors: Mapping[str, Factors] | None = None,
) -> Noise:
    """Measures two models in memory.

    Args:
        source: A transformers model in float32.
        written: A reference of its checkpoint, on the same device.
        score: The source's scorer.
        rows: Token ids of texts from their beginnings; some of these are used.
        factors: See :class:`NoiseMeter`.
    """
    meter = NoiseMeter(lambda _part: whole(written), lambda *_modules: factors or {})
    with torch.inference_mode(), meter.watching(whole(source)):
        for row in measured_rows(rows):
            score(row)
    return meter.found()


def _sorted(powers: Mapping[str, Sequence[float]]) -> list[SignalToNoise]:
    found = [SignalToNoise(name, _decibel(*power)) for name, power in powers.items()]
    return sorted(found, key=lambda item: -math.inf if math.isnan(item.db) else item.db)


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear | HeadInBlocks)


def _is_other(module: torch.nn.Module) -> bool:
    weighs = "weight" in dict(module.named_parameters(recurse=False))
    return weighs or isinstance(module, EmbeddingByRows)


def _hook(other: Any, power: list[float], between: Factors | None) -> Callable[..., None]:
    def hook(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        power[0] += _power(output)
        if between is None:
            theirs = other(inputs[0])
        else:
            theirs = other(inputs[0] * between.inputs) / between.outputs
        # In place: of a head's logits every copy counts.
        power[1] += _power(theirs.sub_(output))

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

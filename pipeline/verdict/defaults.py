"""The limits that ``auto`` stands for, and where they come from.

What quantization costs depends on a model's size and on the bits of its weights, so one number for
all would refuse what everybody ships or wave through what is broken. A row holds for the models and
bits that it names; the first one that fits is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.recipe.evaluate import Gates

BILLION = 1_000_000_000


@dataclass(frozen=True)
class Row:
    """What is allowed to some models.

    Attributes:
        bits: The most bits of a weight.
        parameters: The fewest parameters of a model.
        limits: What ``auto`` stands for, by key of :class:`~pipeline.recipe.schema.Gates`.
        source: Where the limits come from.
    """

    bits: float
    parameters: int
    limits: dict[str, float]
    source: str


# Of 8-bit weights and more, whatever the size: SmoothQuant's own README has Llama-2-7B +0.7 %,
# Llama-2-70B +1.2 %, Llama-3-8B +2.0 %, Mistral-7B +0.5 %, Falcon-7B +0.6 %; llama.cpp's q8_0 of
# Llama-3-8B has a KL divergence of 0.0014 and 97.7 % agreement, of Llama-2-7B 0.0004 and 98.8 %.
# Only SmoothQuant's Llama-3-70B (+4.4 %) lies outside. Accuracy: MMLU -1.9 points for INT8
# SmoothQuant on Llama-2-70B (TensorRT-LLM, quantization-in-TRT-LLM.md), -1.0 for FP8 on
# Llama-3.1-8B (ModelOpt, benchmark.md); TensorRT-LLM's accuracy suite allows 3 points.
_STRICT = {
    "perplexity_increase": 0.02,
    "top1_agreement": 0.95,
    "kl_divergence": 0.05,
    "accuracy_loss": 0.03,
}
_EIGHT_BITS = (
    "8 bit and more: perplexity +0.5 to +2.0 % (SmoothQuant README, 7B to 70B), agreement 97.7 % "
    "and more (llama.cpp, tools/perplexity/README.md), MMLU -1.0 to -1.9 points (ModelOpt and "
    "TensorRT-LLM)"
)

# GPTQ has AWQ's bits and no rows of its own: of stories260K-h128 it loses a third of what AWQ does,
# of the demo model less than its intervals tell (docs/gptq.md), so AWQ's limits hold it.
_QUALITY = (
    Row(
        4,
        20 * BILLION,
        {
            "perplexity_increase": 0.03,
            "top1_agreement": 0.92,
            "kl_divergence": 0.05,
            "accuracy_loss": 0.02,
        },
        "INT4 AWQ of 70B models: perplexity +2.7 % (AWQ paper, Llama-2-70B 3.32 to 3.41), MMLU "
        "-1.1 % (ModelOpt, examples/benchmark.md, Llama-3.1-70B)",
    ),
    Row(
        4,
        BILLION,
        {
            "perplexity_increase": 0.06,
            "top1_agreement": 0.90,
            "kl_divergence": 0.1,
            "accuracy_loss": 0.05,
        },
        "4 bit of 7B to 8B models: perplexity +2.3 % (AWQ paper, Llama-2-7B) to +7.5 %, agreement "
        "94.7 to 91.9 %, KL divergence 0.013 to 0.072 (llama.cpp, tools/perplexity/README.md, "
        "Llama-2-7B and Llama-3-8B), MMLU -5.7 % of 68 points (ModelOpt, examples/benchmark.md, "
        "Llama-3.1-8B)",
    ),
    Row(
        4,
        0,
        {**_STRICT, "top1_agreement": 0.90},
        "nothing is published of 4 bit below a billion parameters; our demo model has a perplexity "
        "within 0.1 % and agrees at 95.1 %, too near to 95 % to be held to it",
    ),
    Row(
        8,
        BILLION,
        _STRICT,
        _EIGHT_BITS,
    ),
    Row(
        8,
        0,
        {**_STRICT, "top1_agreement": 0.92},
        "nothing is published of 8 bit below a billion parameters; stories260K agrees at 94.6 % in "
        "INT8 and 94.3 % in FP8, with perplexity +0.8 and +1.0 %, our demo model at 97.8 %",
    ),
    Row(
        math.inf,
        0,
        _STRICT,
        _EIGHT_BITS,
    ),
)
_EXACT = {
    "engine_perplexity_increase": 0.01,
    "engine_top1_agreement": 0.98,
    "engine_kl_divergence": 0.002,
}
_ENGINE = (
    Row(
        7,
        0,
        _EXACT,
        "floating point multiplies the same numbers in another order: stories260K and the demo "
        "model in INT4 agree at every token, with a KL divergence of 1e-11; between float16 and "
        "bfloat16 it is 2.5e-5 with 99.7 % agreement (llama.cpp, Llama-3-8B)",
    ),
    Row(
        8,
        0,
        {
            "engine_perplexity_increase": 0.01,
            "engine_top1_agreement": 0.95,
            "engine_kl_divergence": 0.01,
        },
        "INT8 activations at a tie round to either side: stories260K agrees at 98.1 % with a KL "
        "divergence of 6e-4 and 0.1 % of perplexity, the demo model at 99.9 % with 1e-5",
    ),
    Row(math.inf, 0, _EXACT, "floating point, as with fewer bits"),
)
_LINEARS = (
    Row(
        8,
        BILLION,
        {"signal_to_noise": 8.0},
        "scales that are half as large again leave 6 dB, and another linear's weights less than 0 "
        "dB; nothing is published of single linears, so the limit is no nearer to what is whole",
    ),
    Row(
        8,
        0,
        {"signal_to_noise": 12.0},
        "the worst linear of stories260K and the demo model keeps 15.6 dB in 4 bit, 20.9 dB in "
        "INT8 and 25.0 dB in FP8; scales that are half as large again leave 6 dB, those of another "
        "layer 11.4 dB or less",
    ),
    Row(
        math.inf,
        0,
        {"signal_to_noise": 30.0},
        "16 bit: the worst linear, norm or embedding of stories260K and the demo model keeps 52 dB "
        "in bfloat16",
    ),
)


def limit_of(
    gates: Gates, name: str, parameters: int, bits: int, *, rounds: bool = False
) -> float | None:
    """Looks up the limit of a gate for one model; None where the recipe does not check it.

    Args:
        gates: The recipe's limits.
        name: A key of it that has a limit.
        parameters: Of the source model.
        bits: Of a weight in the checkpoint, without its scales.
        rounds: Whether the engine has been rounded to so many bits, and not the checkpoint: it is
            then held to the checkpoint as a checkpoint would be to the source.
    """
    limit: float | str | None = getattr(gates, name)
    if isinstance(limit, str):
        name = name.removeprefix("engine_") if rounds else name
        return row_of(name, parameters, bits).limits[name]
    return limit


def row_of(name: str, parameters: int, bits: int) -> Row:
    """Finds the row that an ``auto`` limit is taken from.

    Args:
        name: See :func:`limit_of`, and for the others.
        parameters: See there.
        bits: See there.
    """
    rows: tuple[Row, ...] = _ENGINE if name.startswith("engine_") else _QUALITY
    if name == "signal_to_noise":
        rows = _LINEARS
    return next(row for row in rows if bits <= row.bits and parameters >= row.parameters)

"""Numbers of a gate as people read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.tables import number
from pipeline.verdict.estimate import Estimate


@dataclass(frozen=True)
class Measure:
    """How a gate is spoken of.

    Attributes:
        label: What is measured.
        show: Formats a measured number.
        show_limit: Formats the limit.
        least: True where the limit is the least that is allowed, False where it is the most.
        gain: How far beyond nothing a number on the good side is implausible; None where no number
            is.
        against: What it is compared with; empty where the label says so.
    """

    label: str
    show: Callable[[float], str]
    show_limit: Callable[[float], str]
    least: bool = False
    gain: float | None = None
    against: str = ""


# From ten times on, digits behind the point say nothing.
WHOLE = 10.0


def percent(value: float) -> str:
    """Formats a share as a percentage with two digits: ``0.01 %``."""
    return f"{value * 100:.2f} %"


def signed_percent(value: float) -> str:
    """Formats a change as a percentage with its sign: ``+0.01 %``."""
    if abs(value) >= WHOLE:
        return f"{value * 100:+,.0f} %"
    shown = f"{value * 100:+.2f} %"
    return "0.00 %" if shown in ("+0.00 %", "-0.00 %") else shown


def limit_percent(value: float) -> str:
    """Formats a limit as a percentage with the digits that it was given: ``2 %``."""
    return f"{value * 100:g} %"


# Sums of float32 probabilities are not exact to more.
NOISE = 1e-7


def nats(value: float) -> str:
    """Formats a divergence; what is below float32's own noise is nothing."""
    return "0" if abs(value) < NOISE else number(float(value), 3)


_POINTS = "points"


def points(value: float) -> str:
    """Formats a share of right answers in points of 100."""
    shown = f"{value * 100:.1f} points"
    return shown.lstrip("-") if not float(shown.partition(" ")[0]) else shown


def limit_points(value: float) -> str:
    """Formats a limit of such a share."""
    return f"{value * 100:g} points"


def plain(value: float) -> str:
    """Formats a perplexity."""
    return number(float(value))


def decibel(value: float) -> str:
    """Formats a ratio of powers: ``21.5 dB``."""
    return f"{value:.1f} dB"


def limit_decibel(value: float) -> str:
    """Formats a limit of such a ratio with the digits that it was given."""
    return f"{value:g} dB"


# ModelOpt's day-0 gate takes a gain of more than 5 points of 100 for a mistake in one of the two
# measurements (plugins/modelopt/skills/day0-release, test_gates.py: 50.0 to 60.0 is ANOMALOUS). The
# largest published gain in perplexity is 0.4 % (SmoothQuant README, Llama-2-13B).
GAIN = 0.05

_QUALITY = {
    "perplexity_increase": Measure("perplexity", signed_percent, limit_percent, gain=GAIN),
    "top1_agreement": Measure("agreement", percent, limit_percent, least=True),
    "kl_divergence": Measure("KL divergence", nats, nats),
    "accuracy_loss": Measure("loss of accuracy", points, limit_points, gain=GAIN),
}
MEASURES = {
    **_QUALITY,
    **{
        f"engine_{name}": Measure(
            measure.label,
            measure.show,
            measure.show_limit,
            measure.least,
            measure.gain,
            "against the checkpoint",
        )
        for name, measure in _QUALITY.items()
    },
    "source_perplexity": Measure("perplexity of the source itself", plain, plain),
    "signal_to_noise": Measure("signal to noise", decibel, limit_decibel, least=True),
}


def interval(estimate: Estimate, show: Callable[[float], str]) -> str:
    """Formats a number with its interval: ``+0.01 % [-0.05 %, +0.07 %]``; a dash for none.

    An interval that is narrower than the digits that are shown tells nothing and is left out.
    """
    if estimate.value is None:
        return "-"
    shown = show(estimate.value)
    if estimate.low is None or estimate.high is None:
        return shown
    low, high = show(estimate.low), show(estimate.high)
    if shown == low == high:
        return shown
    ends = (end.removesuffix(f" {_POINTS}") for end in (low, high))
    return f"{shown} [{', '.join(ends)}]"


def measured_words(name: str, subject: str, estimate: Estimate, limit: float | None) -> str:
    """Puts a number beside its limit: ``perplexity +0.01 % [-0.05 %, +0.07 %] of at most 2 %``.

    Args:
        name: A key of :data:`MEASURES`.
        subject: What was measured: ``checkpoint`` or ``engine``.
        estimate: The number.
        limit: What it is held against; None is left out.
    """
    measure = MEASURES[name]
    what = f"{measure.label} of the engine" if subject == "engine" else measure.label
    value = "is no finite number" if estimate.value is None else interval(estimate, measure.show)
    parts = [what, measure.against, value]
    if limit is not None and estimate.value is not None:
        parts.append(f"of at {'least' if measure.least else 'most'} {measure.show_limit(limit)}")
    return " ".join(part for part in parts if part)


def size_words(share: float) -> str:
    """Says how much smaller or larger a checkpoint is than the model in 16 bit.

    Args:
        share: Its bytes over those of the model in 16 bit; above zero.
    """
    ratio = 1 / share
    if 0.95 <= ratio <= 1.05:
        return "as large as 16 bit"
    if ratio > 1:
        return f"{ratio:.1f}x smaller than 16 bit"
    return f"{share:.1f}x larger than 16 bit"

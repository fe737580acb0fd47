"""What the stages measured of a model, as they write it: figures of the demo in INT4 AWQ."""

from __future__ import annotations

from typing import Any

Numbers = dict[str, Any]


def estimate(
    value: float | None, low: float | None = None, high: float | None = None
) -> dict[str, float | None]:
    """A number and its interval."""
    return {"value": value, "low": low, "high": high}


SOURCE_TEXT = " in a little village. His favourite drawing was the snail on the roof."
WRITTEN_TEXT = " in a little village. His favourite drawing was the snail on the gate."


def evaluation(**changes: Any) -> Numbers:
    """``evaluation.json`` without its documents, and what is changed in it."""
    measured = {
        "parameters": 3_673_344,
        "vocabulary": 1024,
        "tokens": 20000,
        "documents": 81,
        "windows": 240,
        "bytes": 76000,
        "source_perplexity": 1.393,
        "source_bits_per_byte": 0.126,
        "perplexity": estimate(1.3931, 1.37, 1.42),
        "bits_per_byte": estimate(0.126, 0.12, 0.13),
        "perplexity_increase": estimate(0.0001, -0.0009, 0.0011),
        "kl_divergence": estimate(0.0011, 0.0009, 0.0013),
        "kl_divergence_p99": estimate(0.02, 0.015, 0.026),
        "top1_agreement": estimate(0.967, 0.963, 0.971),
        "tasks": [],
        "completions": [
            {
                "prompt": "Once there was a gentle boy named Jack,",
                "source": SOURCE_TEXT,
                "written": WRITTEN_TEXT,
                "same_tokens": 12,
                "tokens": 16,
            }
        ],
        "activations": {
            "beyond": 0,
            "limit": 65504.0,
            "dtype": "float16",
            "largest": 51.2,
            "where": "transformer.layers.0.mlp.proj",
        },
        "signal_to_noise": [
            {"linear": "transformer.layers.3.mlp.proj", "db": 21.5, "exact": False}
        ],
        "signal_to_noise_of_others": [{"part": "model.norm", "db": None, "exact": True}],
    }
    return measured | changes


def task(**changes: Any) -> Numbers:
    """One entry of ``tasks``."""
    measured = {
        "name": "hellaswag",
        "layout": "hellaswag",
        "rows": 200,
        "chance": 0.25,
        "source_accuracy": 0.61,
        "accuracy": estimate(0.6, 0.53, 0.67),
        "accuracy_change": estimate(-0.01, -0.02, 0.0),
    }
    return measured | changes


def completion(source: str, written: str) -> Numbers:
    """One entry of ``completions``."""
    return {
        "prompt": "Once there was a girl",
        "source": source,
        "written": written,
        "same_tokens": 0,
        "tokens": 48,
    }


def fidelity(against: Numbers | None = None, **changes: Any) -> Numbers:
    """``fidelity.json`` of an engine, what is changed of it, and of it against the checkpoint."""
    same = {
        "perplexity_increase": estimate(0.0, -0.0001, 0.0001),
        "kl_divergence": estimate(1e-5, 9e-6, 1.2e-5),
        "kl_divergence_p99": estimate(1e-4, 9e-5, 1.2e-4),
        "top1_agreement": estimate(0.999, 0.998, 1.0),
    }
    measured = {
        "parameters": 3_673_344,
        "method": "logits of the compiled model",
        "tokens": 20000,
        "documents": 81,
        "perplexity": estimate(1.3931, 1.37, 1.42),
        "perplexity_increase": estimate(0.0001, -0.0009, 0.0011),
        "against_checkpoint": same | (against or {}),
        "kl_divergence": estimate(0.0011, 0.0009, 0.0013),
        "top1_agreement": estimate(0.967, 0.963, 0.971),
        "tasks": [],
    }
    return measured | changes


CONFORMANCE: Numbers = {
    "passed": 25,
    "failed": 0,
    "skipped": 1,
    "checks": [
        {"name": "end_token", "status": "passed", "reason": None},
        {"name": "guided", "status": "skipped", "reason": "this repository has no guides"},
    ],
}


def report(**changes: Any) -> Numbers:
    """The parts of ``report.json`` that the last lines of a run are made of."""
    verdict = {
        "verdict": "ACCEPT",
        "headline": "INT4 AWQ: ships. 2.7x smaller than 16 bit",
        "status": "passed",
        "stage": None,
        "reasons": [],
        "fix": None,
        "unreached": [],
        "kept": {},
    }
    speed = {"concurrency": 8, "tokens_per_second": estimate(2156.0, 2050.0, 2260.0)}
    whole = {
        "schema": 3,
        "name": "tiny",
        "verdict": verdict,
        "gates": [],
        "size": {
            "bytes_16bit": 7 << 20,
            "checkpoint_bytes": int(2.6 * (1 << 20)),
            "engine_bytes": int(2.7 * (1 << 20)),
            "share": 2.6 / 7,
        },
        "quality": evaluation(),
        "fidelity": None,
        "load": {"measurements": [{**speed, "concurrency": 1}, speed]},
        "conformance": CONFORMANCE,
        "stages": [{"name": "source"}, {"name": "quantize"}],
        "seconds": 41.23,
    }
    whole["load"]["measurements"][0]["tokens_per_second"] = estimate(700.0, None, None)  # type: ignore[index]
    return whole | changes

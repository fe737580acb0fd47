"""A rung whose target rounds to a type of its own: the engine's numbers are its row's."""

from __future__ import annotations

import json
from typing import Any

from pipeline.formats import FORMATS
from pipeline.ladder.row import as_rung
from pipeline.ladder.rungs import Rung
from pipeline.targets.base import OwnType


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value}


def report() -> dict[str, Any]:
    """Checkpoint of 800 bytes, half of float32; a file of 200 bytes; 400 parameters."""
    whole: dict[str, Any] = {
        "schema": 1,
        "name": "demo-q4",
        "created": "2026-01-01T00:00:00Z",
        "verdict": {"verdict": "ACCEPT", "headline": "h", "reasons": []},
        "gates": [],
        "recipe": {"quantize": {"format": "float16"}, "compile": {"target": "llamacpp"}},
        "model": {"parameters": 400},
        "size": {"checkpoint_bytes": 800, "engine_bytes": 200, "share": 1.0},
        "quality": {
            "tokens": 20000,
            "source_perplexity": 1.5,
            "perplexity": estimate(1.5),
            "kl_divergence": estimate(1e-9),
        },
        "fidelity": {
            "tokens": 20000,
            "perplexity": estimate(1.6),
            "perplexity_increase": estimate(0.01),
            "kl_divergence": estimate(2e-3),
            "top1_agreement": estimate(0.96),
            "against_checkpoint": {"perplexity_increase": estimate(0.01)},
        },
        "load": None,
        "cost": None,
    }
    return json.loads(json.dumps(whole))


def test_the_numbers_are_the_engines() -> None:
    own = OwnType({"compile.llamacpp.type": "q4_k_m"}, 4)
    row = as_rung(report(), Rung(FORMATS["float16"], "q4_k_m", "llamacpp", "demo-q4", own))
    assert (row["format"], row["engine"], row["weight_bits"]) == ("q4_k_m", "llamacpp", 4)
    assert row["kl_divergence"]["value"] == 2e-3
    assert row["perplexity"]["value"] == 1.6
    assert row["source_perplexity"] == 1.5
    assert (row["checkpoint_bytes"], row["share_of_16bit"]) == (200, 0.25)
    assert row["bits_per_parameter"] == 4.0


def test_a_checkpoints_rung_keeps_its_own() -> None:
    row = as_rung(report(), Rung(FORMATS["float16"], "float16", "openvino", "demo-f16"))
    assert row["kl_divergence"]["value"] == 1e-9
    assert (row["checkpoint_bytes"], row["engine"], row["weight_bits"]) == (800, "openvino", 16)
    assert row["engine_perplexity_increase"]["value"] == 0.01

"""A report as a whole run writes it: invented numbers, of the shapes that the stages have."""

from __future__ import annotations

import random
from typing import Any

LINEARS = [
    f"model.layers.{layer}.{part}"
    for layer in range(4)
    for part in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
]


def estimate(
    value: float | None, low: float | None = None, high: float | None = None
) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def gate(name: str, measured: float, low: float, high: float, limit: float) -> dict[str, Any]:
    return {
        "name": name,
        "subject": "checkpoint",
        "measured": measured,
        "low": low,
        "high": high,
        "limit": limit,
        "verdict": "ACCEPT",
        "evidence": "the whole interval keeps to the limit",
        "more_tokens": None,
    }


def quality() -> dict[str, Any]:
    random_ = random.Random(3)
    documents = [
        {
            "tokens": 200 + index,
            "bytes": 800,
            "source_nll": 70.0,
            "nll": 70.1,
            "kl": (200 + index) * 10 ** random_.uniform(-3.9, -2.9),
            "agreements": 190,
            "begins": f"Document {index} | <begins> with a *few* words and goes on to eighty",
        }
        for index in range(95)
    ]
    return {
        "tokens": 20000,
        "documents": 95,
        "windows": 120,
        "bytes": 81234,
        "vocabulary": 1024,
        "source_perplexity": 1.39301,
        "source_bits_per_byte": 0.117654,
        "perplexity": estimate(1.39312, 1.38456, 1.40234),
        "bits_per_byte": estimate(0.118765, 0.1171, 0.1204),
        "perplexity_increase": estimate(0.0000765, -0.00104, 0.00121),
        "kl_divergence": estimate(0.000312, 0.000298, 0.000331),
        "kl_divergence_p99": estimate(0.00423, 0.0039, 0.0047),
        "top1_agreement": estimate(0.9712, 0.9689, 0.9733),
        "tasks": [
            {
                "name": "hellaswag",
                "layout": "hellaswag",
                "rows": 200,
                "chance": 0.25,
                "source_accuracy": 0.285,
                "accuracy": estimate(0.28, 0.22, 0.345),
                "accuracy_change": estimate(-0.005, -0.02, 0.01),
            }
        ],
        "completions": [
            {
                "prompt": "Once there was a gentle boy named Jack",
                "source": " who lived by the sea. He liked to play with his red ball in the sand.",
                "written": " who lived by the sea. He liked to swim with his big dog every day.",
                "same_tokens": 9,
                "tokens": 24,
            },
            {
                "prompt": "The sun was warm and Lily",
                "source": " went to the park with her mom.",
                "written": " went to the park with her mom.",
                "same_tokens": 10,
                "tokens": 10,
            },
        ],
        "activations": {
            "dtype": "float16",
            "limit": 65504.0,
            "largest": 11605.05,
            "beyond": 0,
            "where": "model.layers.3",
            "rounded": False,
        },
        "signal_to_noise": [
            {"linear": name, "db": 17.25 + 0.9 * index, "exact": False}
            for index, name in enumerate(LINEARS)
        ],
        "by_document": documents,
    }


def fidelity() -> dict[str, Any]:
    return {
        "method": "every token's logits, from the engine itself",
        "tokens": 4096,
        "documents": 20,
        "perplexity": estimate(1.3944, 1.379, 1.411),
        "perplexity_increase": estimate(0.00031, -0.0011, 0.0018),
        "against_checkpoint": {
            "perplexity_increase": estimate(0.0000023, -0.00001, 0.00002),
            "kl_divergence": estimate(1.2e-7, 1.0e-7, 1.5e-7),
            "kl_divergence_p99": estimate(2.2e-6, 2.0e-6, 2.5e-6),
            "top1_agreement": estimate(0.99951, 0.9991, 1.0),
        },
        "kl_divergence": estimate(0.000315, 0.0003, 0.00034),
        "top1_agreement": estimate(0.9703, 0.967, 0.9735),
        "tasks": [],
    }


def load() -> dict[str, Any]:
    random_ = random.Random(5)

    def times(middle: float) -> dict[str, float]:
        return dict(zip(("mean", "p50", "p95", "p99", "max"), (middle,) * 5, strict=True)) | {
            "p95": middle * 1.6,
            "p99": middle * 2.1,
            "max": middle * 2.9,
        }

    rows = [
        {
            "concurrency": level,
            "requests": 16 * level,
            "input_tokens": 4000,
            "output_tokens": 512 * level,
            "seconds": 6.1,
            "tokens_per_second": estimate(speed, speed * 0.93, speed * 1.06),
            "requests_per_second": 3.0,
            "ttft_ms": times(ttft),
            "itl_ms": times(2.71),
            "latency_ms": times(88.5),
            "by_round": [speed, speed * 1.02],
        }
        for level, speed, ttft in ((1, 612.3, 5.4), (8, 2156.25, 17.2))
    ]
    return {
        "model": "tensorrt_llm_bls",
        "machine": {"processor": "AMD EPYC", "architecture": "x86_64", "cpus": 2},
        "output_tokens": 32,
        "rounds": 5,
        "measurements": rows,
        "samples": [
            {
                "concurrency": level,
                "ttft_ms": [random_.lognormvariate(2.8, 0.4) for _ in range(128)],
                "itl_ms": [random_.lognormvariate(1.0, 0.7) for _ in range(128)],
            }
            for level in (1, 8)
        ],
        "memory_bytes": 412 << 20,
        "prefill_tokens_per_second": estimate(10234.0, 9800.0, 10700.0),
        "decode_tokens_per_second": estimate(640.5, 611.0, 668.0),
    }


def conformance() -> dict[str, Any]:
    checks = [
        {
            "name": name,
            "proves": proves,
            "status": "passed",
            "seconds": 0.2,
            "reason": None,
            "details": {},
        }
        for name, proves in (
            ("readiness", "every model of the repository is ready"),
            ("end_token", "a completion ends at the end token and says so"),
            ("utf8_across_tokens", "characters of several tokens arrive whole"),
        )
    ]
    checks.append(
        checks[0]
        | {
            "name": "guided_decoding",
            "proves": "answers keep to a JSON schema",
            "status": "skipped",
            "reason": "serve.guided_decoding is not set",
        }
    )
    counts = {"passed": 3, "failed": 0, "skipped": 1}
    return {"server": "triton 2.59.1", "model": "ensemble", **counts, "checks": checks}


def recipe() -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "demo",
        "model": {"source": "examples/tiny_llama/model", "dtype": "float16"},
        "quantize": {"format": "int4_awq", "kv_cache": None},
        "bench": {"concurrency": [1, 8]},
        "cost": {"price_per_hour": 2.5},
    }


def report(**changes: Any) -> dict[str, Any]:
    """A run that went well; ``changes`` replace top-level keys."""
    full, written = 7344640, 2747695
    stages = ("source", "quantize", "evaluate", "compile", "fidelity", "repository", "verify")
    made = {
        "schema": 3,
        "name": "demo",
        "version": "0.1.0",
        "created": "2026-07-01T12:00:00Z",
        "verdict": {
            "verdict": "ACCEPT",
            "headline": "INT4 AWQ: ships. 2.7x smaller than 16 bit, perplexity +0.01 % "
            "[-0.10 %, +0.12 %] of at most 2 %, 3 of 3 checks, 2,156 tokens/s",
            "status": "passed",
            "stage": None,
            "reasons": [],
            "fix": None,
            "unreached": [],
            "kept": {},
        },
        "gates": [
            gate("perplexity_increase", 0.0000765, -0.00104, 0.00121, 0.02),
            gate("top1_agreement", 0.9712, 0.9689, 0.9733, 0.93),
            gate("kl_divergence", 0.000312, 0.000298, 0.000331, 0.01),
        ],
        "machine": load()["machine"],
        "recipe": recipe(),
        "model": {
            "source": "examples/tiny_llama/model",
            "commit": None,
            "digest": "a8e30f64" * 8,
            "bytes_16bit": full,
            "unread_keys": [],
            "architecture": "LlamaForCausalLM",
            "parameters": 3672320,
            "bytes": 7406353,
        },
        "checkpoint": {
            "format": "int4_awq",
            "share": written / full,
            "bytes": written,
            "quant_algo": "W4A16_AWQ",
            "kv_cache_quant_algo": None,
        },
        "engine": {"target": "openvino", "bytes": 3084925},
        "size": {
            "bytes_16bit": full,
            "checkpoint_bytes": written,
            "engine_bytes": 3084925,
            "share": written / full,
        },
        "quality": quality(),
        "fidelity": fidelity(),
        "load": load(),
        "cost": {
            "currency": "USD",
            "price_per_hour": 2.5,
            "utilization": 0.5,
            "per_million_tokens": estimate(0.6441, 0.6077, 0.6926),
        },
        "conformance": conformance(),
        "stages": [
            {
                "name": name,
                "key": f"{index}{'c0ffee' * 10}abc",
                "digest": f"{index}{'d1ce' * 15}abc",
                "created": "2026-07-01T12:00:00Z",
                "seconds": 1.5 + 20 * index,
            }
            for index, name in enumerate((*stages, "bench"))
        ],
        "seconds": 572.0,
        "tools": {"torch": "2.5", "transformers": "4.57"},
        "siblings": [],
    }
    return made | changes


def sibling(name: str, **changes: Any) -> dict[str, Any]:
    """Another build of the same model, in 16 bit."""
    made = {
        "name": name,
        "format": "float16",
        "sixteen_bit": True,
        "created": "2026-07-01T11:00:00Z",
        "verdict": "ACCEPT",
        "bytes": 7348776,
        "share": 1.0006,
        "increase": estimate(0.0, 0.0, 0.0),
        "speed": [
            {"concurrency": 1, "tokens_per_second": estimate(480.5, 460.0, 500.0)},
            {"concurrency": 8, "tokens_per_second": estimate(1234.5, 1200.0, 1290.0)},
        ],
        "memory_bytes": 498 << 20,
    }
    return made | changes

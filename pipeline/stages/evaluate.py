"""Measures the quality of the checkpoint files that were written, and gates on it.

The checkpoint is not the model that was calibrated in memory: the export merges pre-quant scales
and rounds to the recipe's dtype. So the files are read back and compared with the source model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import QualityGateError
from pipeline.models import ModelFacts
from pipeline.recipe import Gates, Recipe
from pipeline.stages.base import Artifact, Stage, StageContext
from pipeline.text import text_digest
from pipeline.toolchain import versions

RESULT_NAME = "evaluation.json"
TEXT_KEY = "evaluate.text"
TOOLS = ("torch", "transformers")


def section(recipe: Recipe) -> dict[str, Any]:
    """What decides the measurement; the gates do not, and the text counts by its contents."""
    assert recipe.evaluate is not None
    return {
        **recipe.evaluate.model_dump(mode="json", exclude={"text", "gates"}),
        "trust_remote_code": recipe.model.trust_remote_code,
    }


def material(recipe: Recipe) -> dict[str, Any]:
    """Versions of the tools, and the digest of the text.

    Raises:
        RecipeError: The text cannot be read.
    """
    return {"text": text_digest(recipe, TEXT_KEY), "tools": versions(TOOLS)}


def run(context: StageContext) -> dict[str, Any]:
    """Writes ``evaluation.json`` and returns its numbers without the arrays per window.

    Raises:
        UsageError: The text is not usable.
        SourceError: The source model or its tokenizer cannot be loaded.
        CheckpointError: The checkpoint is not complete.
    """
    from pipeline.quantize.loading import count_parameters
    from pipeline.quantize.surroundings import deterministic, surroundings
    from pipeline.reference import load_reference
    from pipeline.reference.comparison import compare, summarize, token_windows
    from pipeline.reference.source import load_source, place_models
    from pipeline.text import load_tokenizer, read_texts

    recipe = context.recipe
    assert recipe.evaluate is not None
    source, checkpoint = context.inputs["source"].path, context.inputs["quantize"].path
    trust = recipe.model.trust_remote_code
    with surroundings(context.progress), deterministic(count_parameters(source)):
        tokenizer = load_tokenizer(source, trust_remote_code=trust)
        length = min(
            recipe.evaluate.sequence_length,
            ModelFacts.from_directory(source).max_position_embeddings,
        )
        texts = read_texts(Path(recipe.evaluate.text))
        windows = token_windows(texts, tokenizer, length, recipe.evaluate.tokens)
        with context.progress.task("loading both models", 2) as task:
            original = load_source(source, trust_remote_code=trust)
            task.advance()
            written = load_reference(checkpoint)
            task.advance()
        device = place_models(recipe, original, written)
        total = sum(len(window) - 1 for window in windows)
        with context.progress.task(f"scoring {total} tokens", total) as task:
            scores = compare(original, written, windows, device, task.advance)
    if total < recipe.evaluate.tokens:
        context.progress.note(
            f"{recipe.evaluate.text} has {total} tokens to score, "
            f"{recipe.evaluate.tokens} were asked for"
        )
    summary = summarize(scores)
    result = {**summary, "by_window": [asdict(score) for score in scores]}
    text = json.dumps(result, indent=1, sort_keys=True)
    (context.output / RESULT_NAME).write_text(f"{text}\n", encoding="utf-8")
    return summary


def check(recipe: Recipe, artifact: Artifact) -> None:
    """Holds the measured numbers against the recipe's gates.

    Raises:
        QualityGateError: At least one is broken; the artifact stays in the store.
    """
    assert recipe.evaluate is not None
    broken = dict(_broken_gates(recipe.evaluate.gates, artifact.facts))
    if broken:
        raise QualityGateError(
            f"the checkpoint is worse than the recipe allows: {'; '.join(broken.values())}",
            where=recipe.place(f"evaluate.gates.{next(iter(broken))}"),
            why=f"Measured on the written files; every number is in {artifact.path / RESULT_NAME}",
            fix=_remedy(recipe),
        )


def _broken_gates(gates: Gates, facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    # Written so that NaN breaks a gate.
    limit, measured = gates.perplexity_increase, facts["perplexity_increase"]
    if limit is not None and not measured <= limit:
        change = f"{facts['source_perplexity']:.4g} to {facts['perplexity']:.4g}"
        yield (
            "perplexity_increase",
            f"perplexity rose by {measured:.2%} ({change}), allowed is {limit:.2%}",
        )
    limit, measured = gates.top1_agreement, facts["top1_agreement"]
    if limit is not None and not measured >= limit:
        yield (
            "top1_agreement",
            f"top-1 agreement is {measured:.4f}, required is at least {limit:.4f}",
        )
    limit, measured = gates.kl_divergence, facts["kl_divergence"]
    if limit is not None and not measured <= limit:
        yield (
            "kl_divergence",
            f"KL divergence is {measured:.4g} nats per token, allowed is {limit:.4g}",
        )


def _remedy(recipe: Recipe) -> str:
    remedies = {
        "int4_awq": "Try quantize.group_size: 64 or format int8_sq",
        "w4a8_awq": "Try quantize.group_size: 64 or format fp8",
        "int8_sq": "Try quantize.smoothquant_alpha: 0.5 or format int4_awq",
    }
    first = remedies.get(recipe.quantize.format, "Compare model.dtype with the source's own dtype")
    return f"{first}, calibrate on more text, or loosen the gate"


STAGE = Stage(
    name="evaluate",
    version=1,
    title="measure the written checkpoint",
    inputs=("source", "quantize"),
    run=run,
    section=section,
    material=material,
    check=check,
)

"""Measures the quality of the checkpoint files that were written, and gates on it.

The checkpoint is not the model that was calibrated in memory: the export merges pre-quant scales
and rounds to the recipe's dtype. So the files are read back and compared with the source model.
Where the recipe's target can run an engine on this machine, one is built and measured too.
"""

from __future__ import annotations

import gc
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dependencies import versions
from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.source.texts import text_digest
from pipeline.stages.base import Stage, StageContext
from pipeline.targets import get_target
from pipeline.verdict.checks import check_checkpoint
from pipeline.verdict.gates import beyond_range

if TYPE_CHECKING:
    from pipeline.reference.activations import Activations
    from pipeline.reference.comparison import WindowScore

RESULT_NAME = "evaluation.json"
TEXT_KEY = "evaluate.text"
TOOLS = ("torch", "transformers")


def section(recipe: Recipe) -> dict[str, Any]:
    """Returns what decides the measurement; gates do not, and the text counts by its contents."""
    assert recipe.evaluate is not None
    # Raised when the reference computes other numbers of checkpoints whose bytes stay the same.
    divided = {"scales": 2} if FORMATS[recipe.quantize.format].divides_prequant else {}
    return {
        **divided,
        **recipe.evaluate.model_dump(mode="json", exclude={"text", "gates"}),
        "trust_remote_code": recipe.model.trust_remote_code,
        "device": recipe.quantize.device,
    }


def material(recipe: Recipe) -> dict[str, Any]:
    """Gathers the tools' versions, the digest of the text, and what an engine is measured with.

    Raises:
        RecipeError: The text cannot be read.
    """
    engine = get_target(recipe.compile.target).evaluation(recipe)
    return {
        "text": text_digest(recipe, TEXT_KEY),
        "tools": versions(TOOLS),
        # Only where one is measured: elsewhere neither target nor machine decides anything.
        **({"engine": dict(engine.material)} if engine else {}),
    }


def run(context: StageContext) -> dict[str, Any]:
    """Writes ``evaluation.json`` and returns its numbers without the arrays per window.

    Raises:
        UsageError: The text is not usable.
        SourceError: The source model or its tokenizer cannot be loaded.
        CheckpointError: The checkpoint is not complete.
        StageError: The engine could not be built or measured.
    """
    from pipeline.quantize.loading import count_parameters
    from pipeline.reference.comparison import finite_or_none, summarize
    from pipeline.source.runtime import deterministic, offline_and_quiet

    recipe, source = context.recipe, context.inputs["source"].path
    engine = get_target(recipe.compile.target).evaluation(recipe, context.progress)
    with offline_and_quiet(context.progress), deterministic(count_parameters(source)):
        windows = _windows(context, engine.longest_window if engine else None)
        scores, activations = _scores(context, windows)
    summary = {**summarize(scores), "activations": activations.as_dict()}
    if warning := beyond_range(summary["activations"]):
        context.progress.note(f"warning: {warning}")
    if engine:
        _free_gpu()
        checkpoint = context.inputs["quantize"].path
        perplexity = engine.perplexity(checkpoint, windows, context.output, context.progress)
        written = summary["perplexity"]
        summary["engine_perplexity"] = finite_or_none(perplexity)
        summary["engine_perplexity_difference"] = (
            None if written is None else finite_or_none(perplexity / written - 1.0)
        )
    by_window = [
        {name: finite_or_none(value) for name, value in asdict(score).items()} for score in scores
    ]
    result = {**summary, "by_window": by_window}
    text = json.dumps(result, indent=1, sort_keys=True, allow_nan=False)
    (context.output / RESULT_NAME).write_text(f"{text}\n", encoding="utf-8")
    return summary


def _windows(context: StageContext, longest: int | None) -> list[list[int]]:
    """Windows of the recipe's text, no longer than the model and the engine take."""
    from pipeline.reference.comparison import token_windows
    from pipeline.source.texts import load_tokenizer, read_texts

    recipe, source = context.recipe, context.inputs["source"].path
    assert recipe.evaluate is not None
    tokenizer = load_tokenizer(source, trust_remote_code=recipe.model.trust_remote_code)
    facts = ModelFacts.from_directory(source)
    length = min(recipe.evaluate.sequence_length, facts.max_position_embeddings)
    if longest is not None and longest < length:
        context.progress.note(f"windows are of {longest} tokens, not {length}: for the engine")
        length = longest
    texts = read_texts(Path(recipe.evaluate.text))
    windows = token_windows(texts, tokenizer, length, recipe.evaluate.tokens)
    total = _scored_tokens(windows)
    if total < recipe.evaluate.tokens:
        context.progress.note(
            f"{recipe.evaluate.text} has {total} tokens to score, "
            f"{recipe.evaluate.tokens} were asked for"
        )
    return windows


def _scores(
    context: StageContext, windows: list[list[int]]
) -> tuple[list[WindowScore], Activations]:
    """Every window under the source and under the written files, and the latter's activations."""
    from pipeline.checkpoint import CheckpointConfig
    from pipeline.reference import load_reference
    from pipeline.reference.activations import ActivationWatch
    from pipeline.reference.comparison import compare
    from pipeline.reference.source import load_source, place_models

    recipe, progress = context.recipe, context.progress
    source, checkpoint = context.inputs["source"].path, context.inputs["quantize"].path
    with progress.task("loading both models", 2) as task:
        original = load_source(source, trust_remote_code=recipe.model.trust_remote_code)
        task.advance()
        written = load_reference(checkpoint)
        task.advance()
    device = place_models(recipe, original, written)
    total = _scored_tokens(windows)
    assert recipe.evaluate is not None
    watch = ActivationWatch(
        written,
        CheckpointConfig.from_directory(checkpoint).dtype,
        rounded=recipe.evaluate.dtype == "model",
    )
    with watch, progress.task(f"scoring {total} tokens", total) as task:
        scores = compare(original, written, windows, device, task.advance)
    return scores, watch.found()


def _scored_tokens(windows: list[list[int]]) -> int:
    return sum(len(window) - 1 for window in windows)


def _free_gpu() -> None:
    """Returns the memory of the models that were scored, which the engine's build needs."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


STAGE = Stage(
    name="evaluate",
    version=2,
    title="measure the written checkpoint",
    inputs=("source", "quantize"),
    run=run,
    section=section,
    material=material,
    check=check_checkpoint,
    needs=lambda _recipe: [("torch", "quantize"), ("transformers", "quantize")],
)

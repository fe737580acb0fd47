"""Measures the quality of the checkpoint files that were written, and gates on it.

The checkpoint is not the model that was calibrated in memory: the export merges pre-quant scales
and rounds to the recipe's dtype. So the files are read back and compared with the source model.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.recipe.schema import Recipe
from pipeline.stages import scored
from pipeline.stages.base import Stage, StageContext
from pipeline.stages.compared import Pair
from pipeline.stages.scored import (
    MOVED_SCALES,
    ScoredText,
    load_models,
    read_text,
    settings_of,
)
from pipeline.verdict.checks import check_checkpoint
from pipeline.verdict.gates import beyond_range

if TYPE_CHECKING:
    from pipeline.evaluation.scoring import TokenScores

RESULT_NAME = "evaluation.json"
KEYS = {"tokens", "sequence_length", "stride", "dtype"}


def section(recipe: Recipe) -> dict[str, Any]:
    """Returns what decides the measurement."""
    return scored.section(recipe, KEYS)


def run(context: StageContext) -> dict[str, Any]:
    """Writes ``evaluation.json`` and returns its numbers without those of each document.

    Raises:
        UsageError: The text, or a task's file, is not usable.
        SourceError: The source model or its tokenizer cannot be loaded.
        CheckpointError: The checkpoint is not complete.
        StageError: The device's memory ran out.
    """
    from pipeline.evaluation.summary import by_document, summarize
    from pipeline.quantize.loading import count_parameters
    from pipeline.source.runtime import deterministic, offline_and_quiet

    source = context.inputs["source"].path
    parameters = count_parameters(source)
    with offline_and_quiet(context.progress), deterministic(parameters):
        text = _text(context)
        with load_models(context) as models:
            vocabulary = models.vocabulary
            scores, measured = _measure(context, text, models, parameters)
            moved = bool(context.inputs["quantize"].facts.get(MOVED_SCALES))
            noise = _noise(text, models, moved=moved)
    # What is allowed depends on the sizes of the model.
    summary = {
        "parameters": parameters,
        "vocabulary": vocabulary,
        **summarize(text.documents, text.windows, scores),
    }
    summary |= {**measured, **noise}
    if warning := beyond_range(summary["activations"]):
        context.progress.note(f"warning: {warning}")
    documents = by_document(text.documents, text.windows, scores)
    written = json.dumps(
        {**summary, "by_document": documents}, indent=1, sort_keys=True, allow_nan=False
    )
    (context.output / RESULT_NAME).write_text(f"{written}\n", encoding="utf-8")
    return summary


def _text(context: StageContext) -> ScoredText:
    from pipeline.evaluation.bootstrap import MIN_UNITS

    settings = settings_of(context.recipe)
    text = read_text(context, settings.tokens)
    if text.tokens < settings.tokens:
        context.progress.note(
            f"{settings.text} has {text.tokens} tokens to score, {settings.tokens} were asked for"
        )
    if len(text.documents) < MIN_UNITS:
        few = "1 text" if len(text.documents) == 1 else f"{len(text.documents)} texts"
        context.progress.note(
            f"{settings.text}: {few} scored (blank lines part the texts of a .txt file); "
            "with so few, intervals come from parts of them and say little about other texts"
        )
    return text


def _measure(
    context: StageContext, text: ScoredText, models: Pair, parameters: int
) -> tuple[list[TokenScores], dict[str, Any]]:
    """Every window's scores, and what else the written model says in the recipe's dtype."""
    from pipeline.checkpoint import CheckpointConfig
    from pipeline.evaluation.completions import compare_completions
    from pipeline.evaluation.lengths import new_tokens
    from pipeline.evaluation.scoring import compare
    from pipeline.evaluation.tasks.answering import score_tasks
    from pipeline.reference.activations import ActivationWatch
    from pipeline.source.end_ids import read_end_ids

    recipe = context.recipe
    source, written = models.source, models.written
    watch = ActivationWatch(
        CheckpointConfig.from_directory(context.inputs["quantize"].path).dtype,
        rounded=settings_of(recipe).dtype == "model",
    )
    with models.watching(watch):
        with context.progress.task(f"scoring {text.tokens:,} tokens", text.tokens) as task:
            scores = compare(source, written, text.windows, models.vocabulary, task.advance)
        tasks = score_tasks(
            recipe,
            text.tokenizer,
            source,
            written,
            longest=text.positions,
            vocabulary=models.vocabulary,
            progress=context.progress,
        )
        most = new_tokens(parameters)
        with context.progress.task("writing completions", 2 * most) as task:
            completions = compare_completions(
                source,
                written,
                text.documents,
                tokenizer=text.tokenizer,
                end_ids=read_end_ids(context.inputs["source"].path).ids,
                longest=text.positions,
                most=most,
                advance=task.advance,
            )
    return scores, {
        "tasks": [task.as_dict() for task in tasks],
        "completions": [completion.as_dict() for completion in completions],
        "activations": watch.found().as_dict(),
    }


def _noise(text: ScoredText, models: Pair, *, moved: bool) -> dict[str, Any]:
    # To a model every window begins a text.
    noise = models.noise([window.ids for window in text.windows], moved=moved)
    return {
        "signal_to_noise": [linear.as_dict() for linear in noise.linears],
        "signal_to_noise_of_others": [
            {"part": found["linear"], "db": found["db"], "exact": found["exact"]}
            for found in (other.as_dict() for other in noise.others)
        ],
    }


STAGE = Stage(
    name="evaluate",
    version=6,
    title="measure the written checkpoint",
    inputs=("source", "quantize"),
    run=run,
    section=section,
    material=scored.material,
    check=check_checkpoint,
    needs=lambda _recipe: [("torch", "quantize"), ("transformers", "quantize")],
)

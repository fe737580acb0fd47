"""Measures the quality of the checkpoint files that were written, and gates on it.

The checkpoint is not the model that was calibrated in memory: the export merges pre-quant scales
and rounds to the recipe's dtype. So the files are read back and compared with the source model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dependencies import versions
from pipeline.evaluation.tasks.reading import tasks_material, tasks_section
from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.source.texts import TextTokenizer, text_digest
from pipeline.stages.base import Stage, StageContext
from pipeline.verdict.checks import check_checkpoint
from pipeline.verdict.gates import beyond_range

if TYPE_CHECKING:
    import torch

    from pipeline.evaluation.scoring import Scorer, TokenScores
    from pipeline.evaluation.windows import Document, Window

RESULT_NAME = "evaluation.json"
TEXT_KEY = "evaluate.text"
TOOLS = ("torch", "transformers", "numpy")


@dataclass(frozen=True)
class _Text:
    """What is scored.

    Attributes:
        tokenizer: The source's.
        documents: The recipe's texts, as far as they are scored.
        windows: Their windows.
        longest: The model's number of positions.
    """

    tokenizer: TextTokenizer
    documents: Sequence[Document]
    windows: Sequence[Window]
    longest: int


@dataclass(frozen=True)
class _Models:
    """The two models, on one device.

    Attributes:
        source: The source in float32.
        written: The reference of the checkpoint.
        device: Where both are.
    """

    source: Any
    written: Any
    device: torch.device

    def scorers(self) -> tuple[Scorer, Scorer]:
        """Makes a scorer of each."""
        from pipeline.evaluation.scoring import scorer_of

        return scorer_of(self.source, self.device), scorer_of(self.written, self.device)


def section(recipe: Recipe) -> dict[str, Any]:
    """Returns what decides the measurement; gates do not, and files count by their contents."""
    assert recipe.evaluate is not None
    # Raised when the reference computes other numbers of checkpoints whose bytes stay the same.
    divided = {"scales": 2} if FORMATS[recipe.quantize.format].divides_prequant else {}
    return {
        **divided,
        **recipe.evaluate.model_dump(
            mode="json", exclude={"text", "tasks", "gates", "engine_tokens"}
        ),
        "tasks": tasks_section(recipe),
        "trust_remote_code": recipe.model.trust_remote_code,
        "device": recipe.quantize.device,
    }


def material(recipe: Recipe) -> dict[str, Any]:
    """Gathers the tools' versions and the digests of the text and of the tasks' files.

    Raises:
        RecipeError: A file cannot be read.
    """
    return {
        "text": text_digest(recipe, TEXT_KEY),
        "tasks": tasks_material(recipe),
        "tools": versions(TOOLS),
    }


def run(context: StageContext) -> dict[str, Any]:
    """Writes ``evaluation.json`` and returns its numbers without those of each document.

    Raises:
        UsageError: The text, or a task's file, is not usable.
        SourceError: The source model or its tokenizer cannot be loaded.
        CheckpointError: The checkpoint is not complete.
    """
    from pipeline.evaluation.summary import by_document, summarize
    from pipeline.quantize.loading import count_parameters
    from pipeline.source.runtime import deterministic, offline_and_quiet

    source = context.inputs["source"].path
    parameters = count_parameters(source)
    with offline_and_quiet(context.progress), deterministic(parameters):
        text = _text(context)
        models = _models(context)
        scores, measured = _measure(context, text, models)
        noise = _noise(text, models)
    # What is allowed depends on the size of the model.
    summary = {"parameters": parameters, **summarize(text.documents, text.windows, scores)}
    summary |= {**measured, **noise}
    if warning := beyond_range(summary["activations"]):
        context.progress.note(f"warning: {warning}")
    documents = by_document(text.documents, text.windows, scores)
    written = json.dumps(
        {**summary, "by_document": documents}, indent=1, sort_keys=True, allow_nan=False
    )
    (context.output / RESULT_NAME).write_text(f"{written}\n", encoding="utf-8")
    return summary


def _text(context: StageContext) -> _Text:
    """The recipe's text in windows that are no longer than the model takes."""
    from pipeline.evaluation.bootstrap import MIN_UNITS
    from pipeline.evaluation.windows import read_documents, strided_windows
    from pipeline.source.texts import load_tokenizer, read_texts

    recipe, source = context.recipe, context.inputs["source"].path
    assert recipe.evaluate is not None
    tokenizer = load_tokenizer(source, trust_remote_code=recipe.model.trust_remote_code)
    longest = ModelFacts.from_directory(source).max_position_embeddings
    texts = read_texts(Path(recipe.evaluate.text))
    documents = read_documents(texts, tokenizer, recipe.evaluate.tokens)
    total = sum(document.scored for document in documents)
    if total < recipe.evaluate.tokens:
        context.progress.note(
            f"{recipe.evaluate.text} has {total} tokens to score, "
            f"{recipe.evaluate.tokens} were asked for"
        )
    if len(documents) < MIN_UNITS:
        few = "1 text" if len(documents) == 1 else f"{len(documents)} texts"
        context.progress.note(
            f"{recipe.evaluate.text}: {few} scored (blank lines part the texts of a .txt file); "
            "with so few, intervals come from parts of them and say little about other texts"
        )
    length = min(recipe.evaluate.sequence_length, longest)
    windows = strided_windows(documents, length, recipe.evaluate.stride)
    return _Text(tokenizer, documents, windows, longest)


def _models(context: StageContext) -> _Models:
    from pipeline.reference import load_reference
    from pipeline.reference.source import load_source, place_models

    recipe = context.recipe
    source, checkpoint = context.inputs["source"].path, context.inputs["quantize"].path
    with context.progress.task("loading both models", 2) as task:
        original = load_source(source, trust_remote_code=recipe.model.trust_remote_code)
        task.advance()
        written = load_reference(checkpoint)
        task.advance()
    return _Models(original, written, place_models(recipe, original, written))


def _measure(
    context: StageContext, text: _Text, models: _Models
) -> tuple[list[TokenScores], dict[str, Any]]:
    """Every window's scores, and what else the written model says in the recipe's dtype."""
    from pipeline.checkpoint import CheckpointConfig
    from pipeline.evaluation.completions import compare_completions
    from pipeline.evaluation.scoring import compare
    from pipeline.evaluation.tasks.answering import score_tasks
    from pipeline.reference.activations import ActivationWatch
    from pipeline.source.end_ids import read_end_ids

    recipe = context.recipe
    assert recipe.evaluate is not None
    source, written = models.scorers()
    watch = ActivationWatch(
        models.written,
        CheckpointConfig.from_directory(context.inputs["quantize"].path).dtype,
        rounded=recipe.evaluate.dtype == "model",
    )
    total = sum(window.scored for window in text.windows)
    with watch:
        with context.progress.task(f"scoring {total} tokens", total) as task:
            vocabulary = int(models.source.config.vocab_size)
            scores = compare(source, written, text.windows, vocabulary, task.advance)
        tasks = score_tasks(
            recipe,
            text.tokenizer,
            source,
            written,
            longest=text.longest,
            vocabulary=vocabulary,
            progress=context.progress,
        )
        completions = compare_completions(
            source,
            written,
            text.documents,
            tokenizer=text.tokenizer,
            end_ids=read_end_ids(context.inputs["source"].path).ids,
            longest=text.longest,
        )
    return scores, {
        "tasks": [task.as_dict() for task in tasks],
        "completions": [completion.as_dict() for completion in completions],
        "activations": watch.found().as_dict(),
    }


def _noise(text: _Text, models: _Models) -> dict[str, Any]:
    from pipeline.evaluation.signal_to_noise import signal_to_noise

    # To a scorer every window begins a text.
    rows = [window.ids for window in text.windows]
    found = signal_to_noise(models.source, models.written, models.scorers()[0], rows)
    return {"signal_to_noise": [linear.as_dict() for linear in found]}


STAGE = Stage(
    name="evaluate",
    version=4,
    title="measure the written checkpoint",
    inputs=("source", "quantize"),
    run=run,
    section=section,
    material=material,
    check=check_checkpoint,
    needs=lambda _recipe: [("torch", "quantize"), ("transformers", "quantize")],
)

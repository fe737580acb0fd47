"""Measures the compiled engine, against the checkpoint and against the source model.

What the checkpoint lost to quantization, ``evaluate`` has measured on the files. Whatever an engine
loses beyond that, compiling or executing it has cost.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dependencies import Requirements, versions
from pipeline.errors import UnsupportedError
from pipeline.evaluation.tasks.reading import tasks_material, tasks_section
from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.source.texts import TextTokenizer, text_digest
from pipeline.stages.base import Stage, StageContext
from pipeline.targets import get_target
from pipeline.targets.base import EngineEvaluation, NotMeasured
from pipeline.verdict.checks import check_engine

if TYPE_CHECKING:
    from pipeline.evaluation.fidelity import EngineScores
    from pipeline.evaluation.scoring import Scorer
    from pipeline.evaluation.windows import Document, Window

RESULT_NAME = "fidelity.json"
TEXT_KEY = "evaluate.text"
TOOLS = ("torch", "transformers", "numpy")
KEYS = ("tokens", "engine_tokens", "sequence_length", "stride")


@dataclass(frozen=True)
class _Text:
    """What is scored.

    Attributes:
        tokenizer: The source's.
        documents: The recipe's texts, as far as they are scored on the engine.
        windows: Their windows.
        positions: The model's number of them.
    """

    tokenizer: TextTokenizer
    documents: Sequence[Document]
    windows: Sequence[Window]
    positions: int


def section(recipe: Recipe) -> dict[str, Any]:
    """Returns what is scored, and how the two other models are computed."""
    assert recipe.evaluate is not None
    # Raised when the reference computes other numbers of checkpoints whose bytes stay the same.
    divided = {"scales": 2} if FORMATS[recipe.quantize.format].divides_prequant else {}
    return {
        **divided,
        **recipe.evaluate.model_dump(mode="json", include=set(KEYS)),
        "tasks": tasks_section(recipe),
        "trust_remote_code": recipe.model.trust_remote_code,
        "device": recipe.quantize.device,
    }


def material(recipe: Recipe) -> dict[str, Any]:
    """Gathers digests of text and tasks, versions, and what the target measures with and on.

    Raises:
        RecipeError: A file cannot be read.
    """
    engine = get_target(recipe.compile.target).evaluation(recipe)
    return {
        "text": text_digest(recipe, TEXT_KEY),
        "tasks": tasks_material(recipe),
        "tools": versions(TOOLS),
        "engine": None if isinstance(engine, NotMeasured) else dict(engine.material),
    }


def run(context: StageContext) -> dict[str, Any]:
    """Writes ``fidelity.json`` and returns the same.

    Raises:
        UsageError: The text is not usable.
        SourceError: The source model or its tokenizer cannot be loaded.
        CheckpointError: The checkpoint is not complete.
        UnsupportedError: Engines are not measured on this machine.
        StageError: The engine could not be measured.
    """
    from pipeline.evaluation.fidelity import summarize_engine, with_losses
    from pipeline.quantize.loading import count_parameters
    from pipeline.source.runtime import deterministic, offline_and_quiet

    evaluation = _evaluation(context.recipe)
    source, engine = context.inputs["source"].path, context.inputs["compile"].path
    parameters = count_parameters(source)
    with offline_and_quiet(context.progress), deterministic(parameters):
        text = _text(context, evaluation.longest_window)
        with evaluation.logits(engine) as scorer:
            scores, tasks = _compare(context, text, scorer)
    _free_memory()
    losses = evaluation.losses(
        engine,
        context.inputs["quantize"].path,
        [window.ids for window in text.windows],
        context.output,
        context.progress,
    )
    scores = with_losses(scores, text.windows, losses)
    result = {
        "method": evaluation.method,
        # What is allowed depends on the size of the model.
        "parameters": parameters,
        **summarize_engine(text.documents, text.windows, scores),
        "tasks": tasks,
    }
    content = json.dumps(result, indent=1, sort_keys=True, allow_nan=False)
    (context.output / RESULT_NAME).write_text(f"{content}\n", encoding="utf-8")
    return result


def _text(context: StageContext, longest: int) -> _Text:
    """The first of the windows that ``evaluate`` scores, no longer than the engine takes."""
    from pipeline.evaluation.windows import read_documents, strided_windows
    from pipeline.source.texts import load_tokenizer, read_texts

    recipe, source = context.recipe, context.inputs["source"].path
    settings = recipe.evaluate
    assert settings is not None
    tokenizer = load_tokenizer(source, trust_remote_code=recipe.model.trust_remote_code)
    positions = ModelFacts.from_directory(source).max_position_embeddings
    wanted = min(settings.sequence_length, positions)
    length = max(2, min(wanted, longest))
    if length < wanted:
        context.progress.note(f"windows are of {length} tokens, not {wanted}: for the engine")
    tokens = min(settings.tokens, settings.engine_tokens)
    documents = read_documents(read_texts(Path(settings.text)), tokenizer, tokens)
    windows = strided_windows(documents, length, settings.stride)
    return _Text(tokenizer, documents, windows, positions)


def _compare(
    context: StageContext, text: _Text, engine: Scorer | None
) -> tuple[EngineScores, list[dict[str, Any]]]:
    """Every window under source, checkpoint and engine; and multiple choice, where it has logits.

    The checkpoint is computed in float32 whatever ``evaluate.dtype`` is: to round otherwise is
    something that the engine does.
    """
    from pipeline.evaluation.fidelity import score_engine
    from pipeline.evaluation.scoring import scorer_of
    from pipeline.evaluation.tasks.answering import score_tasks
    from pipeline.reference import load_reference
    from pipeline.reference.source import load_source, place_models

    recipe = context.recipe
    with context.progress.task("loading both models", 2) as task:
        source = load_source(
            context.inputs["source"].path, trust_remote_code=recipe.model.trust_remote_code
        )
        task.advance()
        written: Any = load_reference(context.inputs["quantize"].path)
        task.advance()
    device = place_models(recipe, source, written)
    total = sum(window.scored for window in text.windows)
    config: Any = source.config
    original, vocabulary = scorer_of(source, device), int(config.vocab_size)
    with context.progress.task(f"comparing {total} tokens", total) as task:
        scores = score_engine(
            original,
            scorer_of(written, device),
            engine,
            text.windows,
            vocabulary=vocabulary,
            advance=task.advance,
        )
    if engine is None:
        return scores, []
    answers = score_tasks(
        recipe,
        text.tokenizer,
        original,
        engine,
        longest=text.positions,
        vocabulary=vocabulary,
        progress=context.progress,
    )
    return scores, [answer.as_dict() for answer in answers]


def _free_memory() -> None:
    """Returns the memory of the models that were compared, which the engine may need."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def _evaluation(recipe: Recipe) -> EngineEvaluation:
    found = get_target(recipe.compile.target).evaluation(recipe)
    if isinstance(found, NotMeasured):
        raise UnsupportedError(
            "engines are not measured on this machine",
            where=recipe.place("compile.target"),
            why=found.why,
            fix=found.fix,
        )
    return found


def _needs(recipe: Recipe) -> Requirements:
    own = [("torch", "quantize"), ("transformers", "quantize")]
    return [*own, *get_target(recipe.compile.target).needs(recipe)]


STAGE = Stage(
    name="fidelity",
    version=2,
    title="measure the compiled engine",
    inputs=("source", "quantize", "compile"),
    run=run,
    section=section,
    material=material,
    check=check_engine,
    needs=_needs,
)

"""Measures the compiled engine, against the checkpoint and against the source model.

What the checkpoint lost to quantization, ``evaluate`` has measured on the files. Whatever an engine
loses beyond that, compiling or executing it has cost.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dependencies import Requirements, versions
from pipeline.errors import UnsupportedError
from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.source.texts import text_digest
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


def section(recipe: Recipe) -> dict[str, Any]:
    """Returns which tokens are scored, and how the two other models are computed."""
    assert recipe.evaluate is not None
    # Raised when the reference computes other numbers of checkpoints whose bytes stay the same.
    divided = {"scales": 2} if FORMATS[recipe.quantize.format].divides_prequant else {}
    return {
        **divided,
        **recipe.evaluate.model_dump(mode="json", include=set(KEYS)),
        "trust_remote_code": recipe.model.trust_remote_code,
        "device": recipe.quantize.device,
    }


def material(recipe: Recipe) -> dict[str, Any]:
    """Gathers the digest of the text, versions, and what the target measures with and on.

    Raises:
        RecipeError: The text cannot be read.
    """
    engine = get_target(recipe.compile.target).evaluation(recipe)
    return {
        "text": text_digest(recipe, TEXT_KEY),
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
        documents, windows = _windows(context, evaluation.longest_window)
        with evaluation.logits(engine) as scorer:
            scores, tasks = _compare(context, windows, scorer)
    _free_memory()
    losses = evaluation.losses(
        engine,
        context.inputs["quantize"].path,
        [window.ids for window in windows],
        context.output,
        context.progress,
    )
    scores = with_losses(scores, windows, losses)
    result = {
        "method": evaluation.method,
        # What is allowed depends on the size of the model.
        "parameters": parameters,
        **summarize_engine(documents, windows, scores),
        "tasks": tasks,
    }
    text = json.dumps(result, indent=1, sort_keys=True, allow_nan=False)
    (context.output / RESULT_NAME).write_text(f"{text}\n", encoding="utf-8")
    return result


def _windows(context: StageContext, longest: int) -> tuple[Sequence[Document], Sequence[Window]]:
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
    return documents, strided_windows(documents, length, settings.stride)


def _compare(
    context: StageContext, windows: Sequence[Window], engine: Scorer | None
) -> tuple[EngineScores, list[dict[str, Any]]]:
    """Every window under source, checkpoint and engine; and multiple choice, where it has logits.

    The checkpoint is computed in float32 whatever ``evaluate.dtype`` is: to round otherwise is
    something that the engine does.
    """
    from pipeline.evaluation.fidelity import score_engine
    from pipeline.evaluation.scoring import scorer_of
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
    total = sum(window.scored for window in windows)
    config: Any = source.config
    original = scorer_of(source, device)
    with context.progress.task(f"comparing {total} tokens", total) as task:
        scores = score_engine(
            original,
            scorer_of(written, device),
            engine,
            windows,
            vocabulary=int(config.vocab_size),
            advance=task.advance,
        )
    # Multiple choice of ``original`` and ``engine`` belongs here, where there is an engine.
    return scores, []


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
    version=1,
    title="measure the compiled engine",
    inputs=("source", "quantize", "compile"),
    run=run,
    section=section,
    material=material,
    check=check_engine,
    needs=_needs,
)

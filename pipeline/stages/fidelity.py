"""Measures the compiled engine, against the checkpoint and against the source model.

What the checkpoint lost to quantization, ``evaluate`` has measured on the files. Whatever an engine
loses beyond that, compiling or executing it has cost.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dependencies import Requirements
from pipeline.errors import UnsupportedError
from pipeline.formats import NO_QUANT
from pipeline.reading.json_text import read_json
from pipeline.recipe.schema import Recipe
from pipeline.stages import scored
from pipeline.stages.base import Stage, StageContext
from pipeline.stages.compared import Pair
from pipeline.stages.scored import ScoredText, load_models, read_text, settings_of
from pipeline.targets import get_target
from pipeline.targets.base import EngineEvaluation, NotMeasured
from pipeline.verdict.checks import check_engine

if TYPE_CHECKING:
    from pipeline.evaluation.fidelity import EngineScores
    from pipeline.evaluation.scoring import Scorer

RESULT_NAME = "fidelity.json"
KEYS = {"tokens", "engine_tokens", "sequence_length", "stride"}


def section(recipe: Recipe) -> dict[str, Any]:
    """Returns what is scored, and how the two other models are computed."""
    return scored.section(recipe, KEYS)


def material(recipe: Recipe) -> dict[str, Any]:
    """Gathers digests of text and tasks, versions, and what the target measures with and on.

    Raises:
        RecipeError: A file cannot be read.
    """
    engine = get_target(recipe.compile.target).evaluation(recipe)
    return {
        **scored.material(recipe),
        "engine": None if isinstance(engine, NotMeasured) else dict(engine.material),
    }


def run(context: StageContext) -> dict[str, Any]:
    """Writes ``fidelity.json`` and returns the same.

    Raises:
        UsageError: The text is not usable.
        SourceError: The source model or its tokenizer cannot be loaded.
        CheckpointError: The checkpoint is not complete.
        UnsupportedError: Engines are not measured on this machine.
        StageError: The engine could not be measured, or the device's memory ran out.
    """
    from pipeline.evaluation.fidelity import summarize_engine, with_losses
    from pipeline.quantize.loading import count_parameters
    from pipeline.source.runtime import deterministic, offline_and_quiet

    evaluation = _evaluation(context.recipe)
    source, engine = context.inputs["source"].path, context.inputs["compile"].path
    parameters = count_parameters(source)
    with offline_and_quiet(context.progress), deterministic(parameters):
        settings = settings_of(context.recipe)
        # The first of the windows that evaluate scores.
        tokens = min(settings.tokens, settings.engine_tokens)
        text = read_text(context, tokens, evaluation.longest_window)
        with evaluation.logits(engine) as scorer, load_models(context) as models:
            scores, tasks = _compare(context, text, models, scorer)
        del models
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
        "quant_algo": {
            "engine": quant_algo_of(engine),
            "checkpoint": quant_algo_of(context.inputs["quantize"].path),
        },
        "rounded_to": evaluation.rounded_to,
        # What is allowed depends on the size of the model.
        "parameters": parameters,
        **summarize_engine(text.documents, text.windows, scores),
        "tasks": tasks,
    }
    content = json.dumps(result, indent=1, sort_keys=True, allow_nan=False)
    (context.output / RESULT_NAME).write_text(f"{content}\n", encoding="utf-8")
    return result


def quant_algo_of(directory: Path) -> str | None:
    """Reads what a checkpoint, or an engine of one, says it is quantized to.

    Args:
        directory: With TensorRT-LLM's ``config.json``; an engine's has the checkpoint's in it.

    Returns:
        TensorRT-LLM's ``quant_algo``; None where the file does not say.
    """
    config = read_json(directory / "config.json")
    quantization = config.get("pretrained_config", config).get("quantization")
    return None if quantization is None else quantization.get("quant_algo") or NO_QUANT


def _compare(
    context: StageContext, text: ScoredText, models: Pair, engine: Scorer | None
) -> tuple[EngineScores, list[dict[str, Any]]]:
    """Every window under source, checkpoint and engine; and multiple choice, where it has logits.

    The checkpoint is computed in float32 whatever ``evaluate.dtype`` is: to round otherwise is
    something that the engine does.
    """
    from pipeline.evaluation.fidelity import score_engine
    from pipeline.evaluation.tasks.answering import score_tasks

    source, written = models.source, models.written
    with context.progress.task(f"comparing {text.tokens} tokens", text.tokens) as task:
        scores = score_engine(
            source,
            written,
            engine,
            text.windows,
            vocabulary=models.vocabulary,
            advance=task.advance,
        )
    if engine is None:
        return scores, []
    answers = score_tasks(
        context.recipe,
        text.tokenizer,
        source,
        engine,
        longest=text.positions,
        vocabulary=models.vocabulary,
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
    version=5,
    title="measure the compiled engine",
    inputs=("source", "quantize", "compile"),
    run=run,
    section=section,
    material=material,
    check=check_engine,
    needs=_needs,
)

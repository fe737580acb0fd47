"""Quantizes the source model into a TensorRT-LLM checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dependencies import require, versions
from pipeline.errors import CheckpointError
from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.preflight.candidates import ALPHAS, candidates
from pipeline.preflight.remarks import check_dtype, source_dtype
from pipeline.recipe.schema import Recipe
from pipeline.source.snapshot import facts_of
from pipeline.source.texts import text_digest
from pipeline.stages.base import Stage, StageContext
from pipeline.stages.scored import MOVED_SCALES

if TYPE_CHECKING:
    from pipeline.quantize.search import Found
    from pipeline.quantize.statistics import Statistics
    from pipeline.source.lines import Line
    from pipeline.source.tokens import Rows

# Everything that decides the checkpoint's bytes.
TOOLS = ("nvidia-modelopt", "transformers", "torch")
# Raised when other bytes are written of a model that is quantized already.
CONVERSION = 1
PACKAGES = ("torch", "transformers", "modelopt", "ml_dtypes")
# What a model that is quantized already takes.
TAKING_OVER = ("numpy", "ml_dtypes", "safetensors")
CALIBRATION_TEXT = "quantize.calibration.text"


def section(recipe: Recipe) -> dict[str, Any]:
    """Returns the keys that decide the checkpoint's bytes, only those that its format reads."""
    quantize = recipe.quantize
    keys: dict[str, Any] = {
        "format": quantize.format,
        "dtype": recipe.model.dtype,
        "trust_remote_code": recipe.model.trust_remote_code,
        "tensor_parallel": recipe.compile.tensor_parallel,
        "pipeline_parallel": recipe.compile.pipeline_parallel,
    }
    if quantize.needs_calibration and quantize.calibration:
        # The text counts by its contents, see material().
        calibration = quantize.calibration.model_dump(mode="json", exclude={"text"})
        keys |= {
            "kv_cache": quantize.kv_cache,
            "device": quantize.device,
            "calibration": calibration,
        }
    row = FORMATS[quantize.format]
    if quantize.stored:
        groups = {"group_size": quantize.group_size} if row.group_sizes else {}
        return keys | {"stored": quantize.stored, "conversion": CONVERSION} | groups
    if row.export > 1:
        keys["export"] = row.export
    own = {"group_size"} if row.group_sizes else set()
    if row.calibration == "smoothquant":
        own.add("smoothquant_alpha")
    # Only where they say anything, so that checkpoints of recipes without them stay cached.
    if row.rounds_by_hessian and quantize.act_order:
        own.add("act_order")
    if row.smooths and quantize.portable:
        own.add("portable")
    if quantize.search and row.searched:
        # Which group sizes the model's shapes allow follows from the source.
        swept = list(row.group_sizes if row.searched == "group_size" else ALPHAS)
        given = quantize.search.candidates
        keys["search"] = {
            "candidates": swept if given is None else sorted(given),
            "tokens": quantize.search.tokens,
        }
        own.remove(row.searched)
    return keys | {key: getattr(quantize, key) for key in own}


def material(recipe: Recipe) -> dict[str, Any]:
    """Gathers the tools' versions, and the digest of the calibration text where it is read.

    Raises:
        RecipeError: The calibration text cannot be read.
    """
    text = text_digest(recipe, CALIBRATION_TEXT)
    return {"tools": versions(TOOLS), "calibration_text": text}


def run(context: StageContext) -> dict[str, Any]:
    """Loads, calibrates, exports, and checks what was written; searches where the recipe says so.

    Raises:
        MissingDependencyError: The extra ``quantize`` is not installed.
        StageError: Loading, calibrating or exporting failed.
        CheckpointError: What was exported breaks the checkpoint's contract.
        UsageError: The calibration text is not usable.
    """
    for module in TAKING_OVER:
        require(module, "quantize")
    from pipeline.source.runtime import deterministic, offline_and_quiet

    recipe, source = context.recipe, context.inputs["source"].path
    facts = facts_of(source)
    for finding in check_dtype(recipe, source_dtype(facts, source)):
        context.progress.note(f"{finding.severity}: {finding.what}. {finding.why}")
    if facts.quantized is not None:
        return _take_over(context, facts)
    require("torch", "quantize")
    from pipeline.quantize.formats import moves_scales
    from pipeline.quantize.loading import count_parameters

    texts = _calibration_texts(context)
    batches: list[Rows] = []
    found: Found | None = None
    with offline_and_quiet(context.progress), deterministic(count_parameters(source)):
        require("modelopt.torch.export", "quantize")
        if texts:
            batches = _batches(context, texts, facts)
        if recipe.quantize.search:
            found = _search(context, texts, batches, facts)
        else:
            resumed = context.unfinished is not None
            _write(context, recipe, batches, _place(context), resumed=resumed)
            _hand_over(context)
    return {
        **_facts_of(context),
        "calibration_texts": len(texts),
        "calibration_tokens": sum(len(row) for batch in batches for row in batch),
        **({"search": found.as_dict()} if found else {}),
        **({MOVED_SCALES: True} if moves_scales(recipe.quantize) else {}),
    }


def _take_over(context: StageContext, facts: ModelFacts) -> dict[str, Any]:
    """Converts a model that is quantized already."""
    from pipeline.quantize.convert import convert
    from pipeline.quantize.resuming import is_whole, keeping

    assert facts.quantized is not None
    source, place = context.inputs["source"].path, _place(context)
    if not is_whole(place):
        kept = context.unfinished is not None
        with keeping(place):
            convert(source, context.recipe, place, context.progress, kept=kept)
    _hand_over(context)
    return {**_facts_of(context), "taken_over": facts.quantized.words()}


def _place(context: StageContext) -> Path:
    """Names the folder that the checkpoint is written into, which outlives a failure."""
    return context.unfinished or context.output


def _hand_over(context: StageContext) -> None:
    from pipeline.quantize.resuming import hand_over
    from pipeline.quantize.writing import written

    if (place := _place(context)) != context.output:
        with written(context.output):
            hand_over(place, context.output)


def _facts_of(context: StageContext) -> dict[str, Any]:
    """Checks what was written, and describes it."""
    from pipeline.checkpoint import validate
    from pipeline.quantize.resuming import forget

    checkpoint = context.output
    try:
        config = validate(checkpoint)
    except CheckpointError:
        if context.unfinished:
            # Every later run would find it again.
            forget(context.unfinished)
        raise
    return {
        "quant_algo": config.quantization.algo,
        "kv_cache_quant_algo": config.quantization.kv_cache_algo,
        "group_size": config.quantization.group_size,
        "ranks": config.world_size,
        "bytes": sum(path.stat().st_size for path in checkpoint.iterdir()),
    }


def _write(
    context: StageContext,
    recipe: Recipe,
    batches: list[Rows],
    output: Path,
    *,
    resumed: bool,
    statistics: Statistics | None = None,
) -> None:
    """Writes the checkpoint of a recipe that searches for nothing."""
    from pipeline.quantize.resuming import is_whole, keeping

    if is_whole(output):
        context.progress.note("an earlier run has written the whole checkpoint")
        return
    with keeping(output):
        _begin(context, recipe, batches, output, resumed=resumed, statistics=statistics)


def _begin(
    context: StageContext,
    recipe: Recipe,
    batches: list[Rows],
    output: Path,
    *,
    resumed: bool,
    statistics: Statistics | None,
) -> None:
    """Writes a checkpoint, from where an earlier run has left it."""
    from pipeline.quantize import own
    from pipeline.quantize.resuming import forget

    source, progress = context.inputs["source"].path, context.progress
    if not recipe.model.by_layer:
        from pipeline.quantize.whole import quantize_whole

        forget(output)  # what a run that goes layer by layer has begun
        quantize_whole(source, recipe, batches, output, progress, statistics=statistics)
    elif own.writes(FORMATS[recipe.quantize.format]):
        from pipeline.layers.weights import SnapshotWeights
        from pipeline.quantize.loading import AsLoaded, calibration_dtype

        with SnapshotWeights(source) as weights:
            loaded = AsLoaded(weights, calibration_dtype(source, recipe))
            own.write(loaded, facts_of(source), recipe, output, progress, resumed=resumed)
    else:
        from pipeline.quantize.by_layer import quantize_by_layer

        quantize_by_layer(
            source,
            recipe,
            batches,
            output,
            progress,
            resumed=resumed,
            statistics=statistics,
        )


def _search(
    context: StageContext, texts: list[Line], batches: list[Rows], facts: ModelFacts
) -> Found:
    """Writes the checkpoint of the best candidate, judged by the files of each."""
    from pipeline.layers.state import State, computing
    from pipeline.quantize.loading import choose_device
    from pipeline.quantize.resuming import forget
    from pipeline.quantize.search import (
        Unfinished,
        choose,
        held_out,
        scored_windows,
        searched,
        with_value,
    )
    from pipeline.quantize.statistics import Shared
    from pipeline.source.lines import read_texts
    from pipeline.source.rendering import Renderer
    from pipeline.source.tokens import load_tokenizer

    recipe, source = context.recipe, context.inputs["source"].path
    search, calibration = recipe.quantize.search, recipe.quantize.calibration
    assert search is not None
    assert calibration is not None
    path = Path(calibration.text)
    windows = scored_windows(
        Renderer(source).texts(held_out(read_texts(path), texts, calibration.seed)),
        load_tokenizer(source, trust_remote_code=recipe.model.trust_remote_code),
        min(calibration.sequence_length, facts.max_position_embeddings),
        search.tokens,
        path,
    )
    device = choose_device(recipe)
    kept, state = None, None
    if context.unfinished is not None:
        kept = Unfinished(context.unfinished / "search", computing(device))
        if recipe.model.by_layer:
            state = State(kept.folder / "statistics.state", kept.identity)
    statistics = Shared(facts.num_hidden_layers, device, state)

    def write(value: float, folder: Path) -> None:
        if not recipe.model.by_layer:
            forget(folder)  # of its files nobody knows that they are on the disk
        _write(
            context,
            with_value(recipe, value),
            batches,
            folder,
            resumed=kept is not None,
            statistics=statistics.begin(),
        )
        statistics.end()
        _free_memory()

    def score(folder: Path) -> float:
        unfinished = None if kept is None else folder / "scoring"
        divergence = _divergence(context, folder, windows, unfinished)
        _free_memory()
        return divergence

    return choose(
        searched(recipe),
        candidates(recipe, facts),
        write=write,
        score=score,
        output=context.output,
        progress=context.progress,
        tokens=search.tokens,
        unfinished=kept,
    )


def _divergence(
    context: StageContext, checkpoint: Path, windows: Rows, unfinished: Path | None
) -> float:
    """Scores written files against the source, as the evaluate stage does.

    The export merges pre-quant scales and rounds them, so the model in memory is another one.
    """
    from pipeline.evaluation.scoring import TokenScores, compare
    from pipeline.evaluation.windows import Window
    from pipeline.stages.compared import open_pair

    source = context.inputs["source"].path
    if unfinished is not None:
        unfinished.mkdir(exist_ok=True)
    # Each is a text from its beginning, of which the first token is context.
    whole = [Window(index, row, 1) for index, row in enumerate(windows)]
    tokens = sum(window.scored for window in whole)
    with (
        open_pair(context, source, checkpoint, unfinished=unfinished) as pair,
        context.progress.task(f"scoring {tokens:,} tokens", tokens) as task,
    ):
        scores = compare(pair.source, pair.written, whole, pair.vocabulary, task.advance)
    return float(TokenScores.joined(scores).kl.mean(dtype="float64"))


def _calibration_texts(context: StageContext) -> list[Line]:
    from pipeline.quantize.formats import AWQ_MAX_SAMPLES, is_awq
    from pipeline.source.lines import read_texts, sample

    quantize = context.recipe.quantize
    if quantize.calibration is None or not quantize.needs_calibration:
        return []
    path = Path(quantize.calibration.text)
    count = quantize.calibration.samples
    if is_awq(quantize) and count > AWQ_MAX_SAMPLES:
        context.progress.note(
            f"AWQ calibrates on {AWQ_MAX_SAMPLES} of the {count} samples asked for, "
            "as TensorRT-LLM does"
        )
        count = AWQ_MAX_SAMPLES
    texts = read_texts(path)
    if len(texts) < count:
        context.progress.note(f"{path} holds {len(texts)} texts, {count} were asked for")
    return sample(texts, count, quantize.calibration.seed)


def _batches(context: StageContext, texts: list[Line], facts: ModelFacts) -> list[list[list[int]]]:
    from pipeline.source.rendering import Renderer
    from pipeline.source.tokens import batches, load_tokenizer, token_rows

    recipe = context.recipe
    calibration = recipe.quantize.calibration
    assert calibration is not None
    source = context.inputs["source"].path
    tokenizer = load_tokenizer(source, trust_remote_code=recipe.model.trust_remote_code)
    length = min(calibration.sequence_length, facts.max_position_embeddings)
    if length < calibration.sequence_length:
        context.progress.note(
            f"calibration texts have up to {length} tokens, not {calibration.sequence_length}: the "
            "model has no more positions"
        )
    read = list(Renderer(source).texts(texts))
    return batches(token_rows(read, tokenizer, length), calibration.batch_size)


def _free_memory() -> None:
    """Returns the memory of models that are done with, whose modules refer to each other."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


STAGE = Stage(
    name="quantize",
    version=1,
    title="quantize with ModelOpt",
    inputs=("source",),
    run=run,
    section=section,
    material=material,
    needs=lambda recipe: [
        (name, "quantize") for name in (TAKING_OVER if recipe.quantize.stored else PACKAGES)
    ],
)

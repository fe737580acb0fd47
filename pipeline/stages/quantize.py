"""Quantizes the source model into a TensorRT-LLM checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.dependencies import require, versions
from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.preflight.remarks import check_dtype, source_dtype
from pipeline.recipe.schema import Recipe
from pipeline.source.texts import text_digest
from pipeline.stages.base import Stage, StageContext

# Everything that decides the checkpoint's bytes.
TOOLS = ("nvidia-modelopt", "transformers", "torch")
PACKAGES = ("torch", "transformers", "modelopt", "ml_dtypes")
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
    if row.export > 1:
        keys["export"] = row.export
    if row.group_sizes:
        keys["group_size"] = quantize.group_size
    if row.calibration == "smoothquant":
        keys["smoothquant_alpha"] = quantize.smoothquant_alpha
    return keys


def material(recipe: Recipe) -> dict[str, Any]:
    """Gathers the tools' versions, and the digest of the calibration text where it is read.

    Raises:
        RecipeError: The calibration text cannot be read.
    """
    text = text_digest(recipe, CALIBRATION_TEXT)
    return {"tools": versions(TOOLS), "calibration_text": text}


def run(context: StageContext) -> dict[str, Any]:
    """Loads, calibrates, exports, and checks what was written.

    Raises:
        MissingDependencyError: The extra ``quantize`` is not installed.
        StageError: Loading, calibrating or exporting failed.
        CheckpointError: What was exported breaks the checkpoint's contract.
        UsageError: The calibration text is not usable.
    """
    for module in ("numpy", "ml_dtypes", "torch"):
        require(module, "quantize")
    from pipeline.checkpoint import validate
    from pipeline.quantize.calibrate import calibrate
    from pipeline.quantize.export import export
    from pipeline.quantize.loading import count_parameters, load_model
    from pipeline.source.runtime import deterministic, offline_and_quiet

    recipe, source = context.recipe, context.inputs["source"].path
    facts = ModelFacts.from_directory(source)
    for finding in check_dtype(recipe, source_dtype(facts, source)):
        context.progress.note(f"{finding.severity}: {finding.what}. {finding.why}")
    texts = _calibration_texts(context)
    tokens = 0
    with offline_and_quiet(context.progress), deterministic(count_parameters(source)):
        require("modelopt.torch.export", "quantize")
        model = load_model(source, recipe)
        if texts:
            batches = _batches(context, texts, facts)
            tokens = sum(len(row) for batch in batches for row in batch)
            calibrate(model, recipe.quantize, batches, context.progress)
        export(model, facts, recipe, context.output)
    config = validate(context.output)
    return {
        "quant_algo": config.quantization.algo,
        "kv_cache_quant_algo": config.quantization.kv_cache_algo,
        "group_size": config.quantization.group_size,
        "ranks": config.world_size,
        "bytes": sum(path.stat().st_size for path in context.output.iterdir()),
        "calibration_texts": len(texts),
        "calibration_tokens": tokens,
    }


def _calibration_texts(context: StageContext) -> list[str]:
    from pipeline.quantize.formats import AWQ_MAX_SAMPLES, is_awq
    from pipeline.source.texts import read_texts, sample

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


def _batches(context: StageContext, texts: list[str], facts: ModelFacts) -> list[list[list[int]]]:
    from pipeline.source.texts import batches, load_tokenizer, token_rows

    recipe = context.recipe
    calibration = recipe.quantize.calibration
    assert calibration is not None
    tokenizer = load_tokenizer(
        context.inputs["source"].path, trust_remote_code=recipe.model.trust_remote_code
    )
    length = min(calibration.sequence_length, facts.max_position_embeddings)
    return batches(token_rows(texts, tokenizer, length), calibration.batch_size)


STAGE = Stage(
    name="quantize",
    version=1,
    title="quantize with ModelOpt",
    inputs=("source",),
    run=run,
    section=section,
    material=material,
    needs=lambda _recipe: [(name, "quantize") for name in PACKAGES],
)

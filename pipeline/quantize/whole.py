"""Quantizes a model that is in memory as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.quantize import own
from pipeline.quantize.calibrate import calibrate, text_of
from pipeline.quantize.export import export
from pipeline.quantize.formats import measures_again, moves_scales
from pipeline.quantize.loading import load_model
from pipeline.quantize.portable import make_portable
from pipeline.quantize.statistics import Statistics
from pipeline.recipe.schema import Recipe
from pipeline.source.tokens import Rows


def quantize_whole(
    source: Path,
    recipe: Recipe,
    batches: Sequence[Rows],
    output: Path,
    progress: Progress,
    *,
    statistics: Statistics | None = None,
) -> None:
    """Writes ``config.json`` and one ``rankN.safetensors`` per rank.

    Args:
        source: A snapshot in floating point.
        recipe: Any format, without a search.
        batches: Token ids [batch][length] of the calibration text, where the format reads one.
        output: An existing directory.
        progress: Gets a task for each walk over the text.
        statistics: As for :func:`pipeline.quantize.calibrate.calibrate`.

    Raises:
        StageError: ModelOpt failed, memory ran out, or the files cannot be written.
        SourceError: The snapshot cannot be loaded.
        UnsupportedError: CUDA was asked for and there is none.
    """
    facts, quantize = ModelFacts.from_directory(source), recipe.quantize
    model = load_model(source, recipe)
    row = FORMATS[quantize.format]
    if own.writes(row):
        own.write(own.InMemory(model), facts, recipe, output, progress)
        return
    if row.rounds_by_hessian:
        from pipeline.quantize.hessians import keep_scales, round_decoder

        scales = round_decoder(model, facts, recipe, batches, progress)
        calibrate(model, quantize, batches, progress)
        keep_scales(model, scales)
    elif batches:
        calibrate(model, quantize, batches, progress, statistics)
    if moves_scales(quantize):
        costs = [1.0] if measures_again(quantize) else []
        with text_of(batches, progress, f"measuring {quantize.format} again", costs) as text:
            make_portable(model, facts, recipe, text)
    export(model, facts, recipe, output)

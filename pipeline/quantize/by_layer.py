"""Quantizes a model of which one decoder layer at a time is in memory.

For ModelOpt each layer is a model of its own, calibrated on what the layer before it put out in the
same pass. It is exported, written and dropped before the next one is made, so that memory does not
depend on how many there are; the bytes are those of the model as a whole.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint.layout import Array
from pipeline.formats import FORMATS
from pipeline.layers.ahead import ReadAhead, read_ahead
from pipeline.layers.arrays import as_array
from pipeline.layers.embedding import embedded
from pipeline.layers.heap import Heap
from pipeline.layers.one_layer import one_layer
from pipeline.layers.weights import SnapshotWeights
from pipeline.models.facts import ModelFacts
from pipeline.progress import Progress
from pipeline.quantize.awq_search import AwqSearch
from pipeline.quantize.calibrate import calibrate_on
from pipeline.quantize.export import layer_tensors, modelopt_config_json
from pipeline.quantize.formats import checkpoint_dtype, is_awq, moves_scales, sets_of
from pipeline.quantize.hessians import keep_scales, round_layer
from pipeline.quantize.loading import AsLoaded, calibration_dtype, choose_device
from pipeline.quantize.pieces import in_pieces
from pipeline.quantize.portable import make_portable
from pipeline.quantize.resuming import Resume, state_in
from pipeline.quantize.statistics import Statistics
from pipeline.quantize.walk import Walk
from pipeline.quantize.writing import Tensors, Work, head_of, write_checkpoint, write_config
from pipeline.recipe.schema import Recipe
from pipeline.source.loading import load_config
from pipeline.source.tokens import Rows


def quantize_by_layer(
    source: Path,
    recipe: Recipe,
    batches: Sequence[Rows],
    output: Path,
    progress: Progress,
    *,
    resumed: bool = False,
    statistics: Statistics | None = None,
) -> None:
    """Writes ``config.json`` and one ``rankN.safetensors`` per rank.

    Args:
        source: A snapshot in floating point.
        recipe: Of a format that ModelOpt exports, without a search.
        batches: Token ids [batch][length] of the calibration text, where the format reads one; rows
            of one batch have equal length.
        output: An existing directory.
        progress: Is told of each layer.
        resumed: Goes on with what an earlier run left in ``output``, and leaves what it has there.
        statistics: As for :func:`pipeline.quantize.calibrate.calibrate`; of all layers, or empty.

    Raises:
        StageError: ModelOpt failed, memory ran out, or the files cannot be written.
        SourceError: The snapshot cannot be read.
        UnsupportedError: CUDA was asked for and there is none.
    """
    facts, device = ModelFacts.from_directory(source), choose_device(recipe)
    dtype = calibration_dtype(source, recipe)
    tokens = sum(len(row) for batch in batches for row in batch)
    with (
        SnapshotWeights(source) as weights,
        read_ahead(weights, facts.num_hidden_layers, device) as ahead,
        _frozen(),
    ):
        maker = _Calibrated(
            recipe=recipe,
            facts=facts,
            config=load_config(source),
            read=AsLoaded(weights, dtype),
            ahead=ahead,
            walk=_walk(recipe, batches, weights, dtype, device),
            statistics=statistics,
        )
        write_checkpoint(
            maker,
            facts,
            recipe,
            output,
            work=Work(f"quantizing to {recipe.quantize.format}", progress, tokens),
            resume=_resume(output, maker) if resumed else None,
            kept=resumed,
        )
    write_config(output, modelopt_config_json(facts, recipe))


def _walk(
    recipe: Recipe,
    batches: Sequence[Rows],
    weights: SnapshotWeights,
    dtype: torch.dtype,
    device: torch.device,
) -> Walk | None:
    if not batches:
        return None
    return Walk(embedded(weights, batches, dtype), sets_of(recipe.quantize), device)


def _resume(output: Path, maker: _Calibrated) -> Resume:
    # Whoever is given statistics makes no states of the pass that it leaves out.
    given = maker.statistics is not None and maker.statistics.collected
    sets = sets_of(maker.recipe.quantize)
    state = state_in(output, maker.ahead.device, sets=sets, given=given)
    if maker.walk is None:
        return Resume(state)
    return Resume(state, maker.walk.states, maker.walk.go_on)


@dataclass
class _Calibrated:
    """Makes the tensors of a layer.

    Attributes:
        recipe: What is wanted.
        facts: The whole model's.
        config: The whole model's, as transformers loads it.
        read: The tensors that are copied.
        ahead: The tensors of the layers.
        walk: The calibration text; None where the format reads none.
        statistics: Of each layer, where several settings of the format are tried.
        heap: Where all of that is.
    """

    recipe: Recipe
    facts: ModelFacts
    config: Any
    read: AsLoaded
    ahead: ReadAhead
    walk: Walk | None
    statistics: Statistics | None
    heap: Heap = field(default_factory=Heap)

    @property
    def head(self) -> str:
        """The name of the head in the source."""
        return head_of(self.facts)

    def kind(self, _: int) -> None:
        """Says that all layers are alike."""

    def plain(self, name: str, rows: slice = slice(None)) -> Array:
        """Reads rows of a tensor that is not quantized."""
        return as_array(self.read(name, rows).to(self._dtype))

    def layer(self, index: int) -> list[Tensors]:
        """Calibrates a layer, and exports it for each tensor-parallel rank."""
        model = one_layer(self.config, index, self.ahead.layer(index), self.read.dtype)
        model.to(self.ahead.device)
        if self.walk:
            # The next layer is given what this one puts out, which is not normalized yet.
            norm, model.model.norm = model.model.norm, torch.nn.Identity()
            self._calibrate(model, index, self.walk)
            self.walk.leave()
            model.model.norm = norm
        tensors = layer_tensors(model, self.facts, self.recipe)
        del model
        self.heap.tidy()
        # While these are written.
        self.ahead.begin(index + 1)
        return tensors

    def _calibrate(self, model: Any, index: int, walk: Walk) -> None:
        recipe, quantize = self.recipe, self.recipe.quantize
        if FORMATS[quantize.format].rounds_by_hessian:
            scales = walk.rounded(
                lambda states: round_layer(model, index, self.facts, recipe, states)
            )
            calibrate_on(model, quantize, walk)
            keep_scales(model, scales)
        else:
            kept = self.statistics.of_layer(index) if self.statistics else None
            with in_pieces():
                calibrate_on(model, quantize, walk, kept, self._search(walk))
        if moves_scales(quantize):
            make_portable(model, self.facts, recipe, walk)

    def _search(self, walk: Walk) -> AwqSearch | None:
        if self.read.dtype != torch.float32 or not is_awq(self.recipe.quantize):
            return None
        return AwqSearch(walk.look, walk.tokens, live=self.recipe.quantize.kv_cache is not None)

    @property
    def _dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, checkpoint_dtype(self.recipe))
        return found


@contextlib.contextmanager
def _frozen() -> Iterator[None]:
    """Keeps what is there already out of the collections that follow each layer.

    Else each of them would walk all of torch and transformers again.
    """
    if gc.get_freeze_count():
        yield  # by somebody else, who would miss it afterwards
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()

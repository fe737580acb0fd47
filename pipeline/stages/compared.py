"""A source and what was written of it, ready to be compared: in memory, or layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.stages.base import StageContext

if TYPE_CHECKING:
    import torch

    from pipeline.evaluation.scoring import Model
    from pipeline.evaluation.signal_to_noise import Noise
    from pipeline.layers.walk import Walker
    from pipeline.reference.activations import ActivationWatch


class Pair(Protocol):
    """The source in float32, and the reference of its checkpoint."""

    @property
    def vocabulary(self) -> int:
        """Counts the logits of a token under the source."""

    @property
    def source(self) -> Model:
        """The source."""

    @property
    def written(self) -> Model:
        """The reference."""

    def watching(self, watch: ActivationWatch) -> Any:
        """Returns a context manager in which a watch sees what the reference computes."""

    def noise(self, rows: Sequence[Sequence[int]], *, moved: bool) -> Noise:
        """Measures each part of the reference on what the source gives its own.

        Args:
            rows: Token ids of texts from their beginnings.
            moved: Whether the checkpoint's pre-quant scales were moved.
        """


@dataclass(frozen=True)
class WholePair:
    """Both models in memory, on one device."""

    original: Any
    reference: Any
    device: torch.device

    @property
    def vocabulary(self) -> int:
        """Counts the logits of a token under the source."""
        return int(self.original.config.vocab_size)

    @property
    def source(self) -> Model:
        """The source."""
        from pipeline.evaluation.scoring import scorer_of

        return scorer_of(self.original, self.device)

    @property
    def written(self) -> Model:
        """The reference."""
        from pipeline.evaluation.scoring import scorer_of

        return scorer_of(self.reference, self.device)

    @contextmanager
    def watching(self, watch: ActivationWatch) -> Iterator[None]:
        """Returns a context manager in which a watch sees what the reference computes."""
        from pipeline.layers.parts import whole

        with watch.watching(whole(self.reference)):
            yield

    def noise(self, rows: Sequence[Sequence[int]], *, moved: bool) -> Noise:
        """Measures each part of the reference on what the source gives its own."""
        from pipeline.evaluation.moved import moved_factors
        from pipeline.evaluation.scoring import scorer_of
        from pipeline.evaluation.signal_to_noise import signal_to_noise

        both, factors = (self.original, self.reference), None
        if moved:
            modules = [dict(model.named_modules()) for model in both]
            config = self.original.config
            one_each = config.num_attention_heads == config.num_key_value_heads
            factors = moved_factors(*modules, one_each=one_each)
        score = scorer_of(self.original, self.device)
        return signal_to_noise(*both, score, rows, factors=factors)


@dataclass(frozen=True)
class LayeredPair:
    """Both models layer by layer; see :mod:`pipeline.layers.walk`."""

    source: Walker
    written: Walker
    vocabulary: int
    measured: Walker
    """The source again, whose walk tells the noise."""
    one_each: bool

    @contextmanager
    def watching(self, watch: ActivationWatch) -> Iterator[None]:
        """Returns a context manager in which a watch sees what the reference computes."""
        before, self.written.observer = self.written.observer, watch
        try:
            yield
        finally:
            self.written.observer = before

    def noise(self, rows: Sequence[Sequence[int]], *, moved: bool) -> Noise:
        """Measures each part of the reference on what the source gives its own."""
        from functools import partial

        from pipeline.evaluation.moved import moved_factors
        from pipeline.evaluation.signal_to_noise import NoiseMeter, measured_rows

        factors = partial(moved_factors, one_each=self.one_each) if moved else None
        meter = NoiseMeter(lambda part: self.written.parts.part(part.number), factors)
        before, self.measured.observer = self.measured.observer, meter
        try:
            for _ in self.measured.logits(measured_rows(rows)):
                pass
        finally:
            self.measured.observer = before
        return meter.found()


@contextmanager
def open_pair(
    context: StageContext, source: Path, checkpoint: Path, *, unfinished: Path | None
) -> Iterator[Pair]:
    """Loads both models, or opens them to be read layer by layer, as the recipe says.

    Their files are closed behind the block.

    Args:
        context: Of the stage.
        source: A Hugging Face model's folder.
        checkpoint: A checkpoint's folder.
        unfinished: Where walks leave how far they have come: of this checkpoint and of no other.

    Raises:
        SourceError: The source model cannot be loaded.
        CheckpointError: The checkpoint is not complete.
        UnsupportedError: CUDA was asked for and there is none.
        StageError: The device's memory ran out.
    """
    from pipeline.source.exhausted import explained_memory

    fix = "Lower the sequence_length of what is measured"
    what, on_gpu = "memory ran out during the measurement", ", or set quantize.device to cpu"
    with explained_memory(what, fix, on_gpu):
        if context.recipe.model.by_layer:
            with _layered(context, source, checkpoint, unfinished) as pair:
                yield pair
        else:
            yield _whole(context, source, checkpoint)


def _whole(context: StageContext, source: Path, checkpoint: Path) -> WholePair:
    from pipeline.reference import load_reference
    from pipeline.reference.source import load_source, place_models

    recipe, progress = context.recipe, context.progress
    with progress.task("loading both models", 2) as task:
        original = load_source(source, trust_remote_code=recipe.model.trust_remote_code)
        task.advance()
        written = load_reference(checkpoint)
        task.advance()
    return WholePair(original, written, place_models(recipe, original, written))


@contextmanager
def _layered(
    context: StageContext, source: Path, checkpoint: Path, unfinished: Path | None
) -> Iterator[LayeredPair]:
    from pipeline.layers.walk import Walker
    from pipeline.models.facts import ModelFacts
    from pipeline.quantize.loading import choose_device
    from pipeline.reference.by_layer import checkpoint_by_layer, source_by_layer

    device = choose_device(context.recipe)
    with (
        closing(source_by_layer(source, device)) as ours,
        closing(checkpoint_by_layer(checkpoint, device)) as theirs,
    ):
        source_walker, written_walker, measured = (
            Walker(parts, name, progress=context.progress, unfinished=unfinished)
            for parts, name in (
                (ours, "source"),
                (theirs, "checkpoint"),
                (ours, "source linear by linear"),
            )
        )
        facts = ModelFacts.from_directory(source)
        one_each = facts.num_attention_heads == facts.num_key_value_heads
        yield LayeredPair(source_walker, written_walker, ours.vocabulary, measured, one_each)

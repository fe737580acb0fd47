"""Memory, disk and time of every stage that has work to do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.effort import disk, memory
from pipeline.effort.disk import Disk, Snapshot
from pipeline.effort.memory import Memory
from pipeline.effort.questions import Asking, TaskTexts, asked
from pipeline.effort.rates import Rates
from pipeline.effort.seconds import Clock, Seconds
from pipeline.effort.work import (
    Lengths,
    TextLengths,
    Texts,
    calibrated,
    checkpoint_bytes,
    joined_bytes,
    scored,
    shape_of,
)
from pipeline.models.facts import ModelFacts
from pipeline.recipe.schema import Recipe
from pipeline.source.snapshot import weight_files
from pipeline.stages.scored import settings_of
from pipeline.targets import get_target
from pipeline.targets.base import NotMeasured
from pipeline.targets.built_here import BuiltHere


@dataclass(frozen=True)
class Machine:
    """What there is.

    Attributes:
        memory: Bytes that this process can ever have; None where the system does not say.
        free: Bytes that are free in the build directory; None likewise.
        rates: How fast it is; None where that is not known.
    """

    memory: int | None
    free: int | None
    rates: Rates | None


@dataclass(frozen=True)
class StageEffort:
    """An estimate of one stage.

    Attributes:
        stage: Its name.
        memory: The most at a time; None where another program does the work.
        disk: What it writes.
        seconds: How long it takes; None where another program does the work, or rates are not
            known.
    """

    stage: str
    memory: Memory | None
    disk: Disk
    seconds: Seconds | None

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as JSON values."""
        return asdict(self)


def efforts(
    recipe: Recipe,
    facts: ModelFacts,
    stages: Collection[str],
    *,
    snapshot: Snapshot,
    rates: Rates | None,
    lengths: Lengths | None = None,
    asking: Asking | None = None,
    gpu: bool = False,
    left: Mapping[str, int] = MappingProxyType({}),
) -> tuple[StageEffort, ...]:
    """Estimates the stages that are to run, in their order, but for those that serve the engine.

    Args:
        recipe: A recipe that fits the model.
        facts: The model's facts.
        stages: Names of those that are to run.
        snapshot: The model, and where it is taken to.
        rates: The machine's; None where they are not known.
        lengths: Of the recipe's texts; None reads them.
        asking: What a model sees of the recipe's tasks; None reads their files.
        gpu: Whether this machine may have a GPU that torch computes on.
        left: Bytes that earlier runs left of a stage, by its name, and the next goes on with.
    """
    alone = {"quantize", "evaluate"}.isdisjoint(stages)
    reading = lengths or TextLengths(), asking or TaskTexts()
    own = _Estimate(recipe, facts, rates, *reading, alone=alone, gpu=gpu)
    makers: dict[str, Callable[[], StageEffort]] = {
        "source": lambda: own.source(snapshot),
        "quantize": own.quantize,
        "evaluate": own.evaluate,
        "compile": own.compile,
        "fidelity": own.fidelity,
    }
    found = [make() for name, make in makers.items() if name in stages]
    return tuple(replace(one, disk=one.disk.without(left.get(one.stage, 0))) for one in found)


class _Estimate:
    """The amounts that several stages share."""

    def __init__(
        self,
        recipe: Recipe,
        facts: ModelFacts,
        rates: Rates | None,
        lengths: Lengths,
        asking: Asking,
        *,
        alone: bool,
        gpu: bool,
    ) -> None:
        wanted = recipe.quantize.device
        self.on_gpu = wanted == "cuda" or (gpu and wanted == "auto")
        # Whether compiling is the first of the heavy stages in its process.
        self.alone = alone
        self.recipe, self.facts, self.lengths = recipe, facts, lengths
        self.asking = asking
        self.shape = shape_of(recipe, facts)
        self.checkpoint = checkpoint_bytes(recipe, facts)
        self.joined = joined_bytes(recipe, facts)
        self.clock = Clock(recipe, facts, self.shape, rates) if rates else None
        # An engine is about as large as its checkpoint, where its own types do not make it smaller;
        # and either is made on this machine or is not.
        self.here = isinstance(get_target(recipe.compile.target), BuiltHere)

    def source(self, snapshot: Snapshot) -> StageEffort:
        size = snapshot_bytes(snapshot.directory) or self.shape.parameters * 2
        written = snapshot.disk(size)
        took = self.clock.copying(size, written.kept) if self.clock else None
        return StageEffort("source", memory.copying(), written, took)

    def quantize(self) -> StageEffort:
        recipe, shape, checkpoint = self.recipe, self.shape, self.checkpoint
        section = recipe.quantize.calibration
        texts = calibrated(recipe, self.facts, self.lengths(section.text) if section else None)
        peak = memory.quantizing(recipe, shape, texts, on_gpu=self.on_gpu)
        if self.facts.quantized is not None:
            peak = replace(peak, least=0)  # codes are taken over, and no layer is unpacked
        rows = None
        if recipe.quantize.search:
            rows = Texts(1, recipe.quantize.search.tokens, texts.longest, 1)
            tried = memory.scoring(recipe, shape, rows, joined=self.joined, on_gpu=self.on_gpu)
            peak = peak.beside(tried)
        took = self.clock.quantizing(texts, checkpoint) if self.clock else None
        written = disk.quantizing(recipe, shape, texts, checkpoint, rows)
        return StageEffort("quantize", peak, written, took)

    def scoring(
        self, stage: str, tokens: int, *, whole: bool = True, answering: bool = True
    ) -> StageEffort:
        recipe, shape = self.recipe, self.shape
        texts = scored(recipe, self.facts, self.lengths(settings_of(recipe).text), tokens)
        if not whole:
            texts = replace(texts, sure_batch=0)  # an engine may take shorter windows only
        tasks = asked(recipe, self.facts, self.asking) if answering else ()
        peak = memory.scoring(recipe, shape, texts, tasks, joined=self.joined, on_gpu=self.on_gpu)
        took = self.clock.scoring(texts, tasks, self.checkpoint) if self.clock else None
        return StageEffort(stage, peak, disk.scoring(recipe, shape, [texts, *tasks]), took)

    def evaluate(self) -> StageEffort:
        return self.scoring("evaluate", settings_of(self.recipe).tokens)

    def compile(self) -> StageEffort:
        engine = self.checkpoint
        if not self.here:
            return StageEffort("compile", None, Disk(engine), None)
        took = self.clock.compiling(self.checkpoint, engine) if self.clock else None
        peak = memory.compiling(alone=self.alone, joined=self.joined)
        return StageEffort("compile", peak, Disk(engine, engine), took)

    def fidelity(self) -> StageEffort:
        settings = settings_of(self.recipe)
        evaluation = None
        if self.here:
            evaluation = get_target(self.recipe.compile.target).evaluation(self.recipe)
        measured = None if isinstance(evaluation, NotMeasured) else evaluation
        found = self.scoring(
            "fidelity",
            min(settings.tokens, settings.engine_tokens),
            whole=False,
            answering=measured is not None and measured.gives_logits,
        )
        if measured is None or found.memory is None:
            return found
        if measured.in_float32:
            engine = 4 * self.shape.parameters
        else:
            engine = memory.opened(self.recipe, self.checkpoint, self._kv_cache())
        # It is open while both models are scored.
        return replace(found, memory=found.memory.with_open(engine))

    def _kv_cache(self) -> int:
        compiled, facts = self.recipe.compile, self.facts
        tokens = self.recipe.serve.max_tokens_in_paged_kv_cache
        if tokens is None:
            tokens = compiled.max_batch_size * compiled.max_seq_len
        return 2 * 2 * tokens * facts.num_hidden_layers * facts.width("kv")


def snapshot_bytes(directory: Path | None) -> int | None:
    """Counts the bytes of a snapshot's weights; None where there are none yet."""
    if directory is None:
        return None
    return sum(path.stat().st_size for path in weight_files(directory)) or None

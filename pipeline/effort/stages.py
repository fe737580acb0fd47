"""Memory, disk and time of every stage that has work to do."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
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
    tried,
)
from pipeline.layers.left import WalkLeft
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
class Earlier:
    """What an earlier run left of a stage.

    Attributes:
        bytes: That it takes of the disk.
        walks: How far its walks through the layers had come. Whether the next run goes on with
            them is only known when it does: not on another processor, for one.
    """

    bytes: int = 0
    walks: Sequence[WalkLeft] = ()


NOTHING = Earlier()


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
    left: Mapping[str, Earlier] = MappingProxyType({}),
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
        left: What earlier runs left of a stage, by its name, and the next goes on with.
    """
    alone = {"quantize", "evaluate"}.isdisjoint(stages)
    reading = lengths or TextLengths(), asking or TaskTexts()
    own = _Estimate(recipe, facts, rates, *reading, alone=alone, gpu=gpu, left=left)
    makers: dict[str, Callable[[], StageEffort]] = {
        "source": lambda: own.source(snapshot),
        "quantize": own.quantize,
        "evaluate": own.evaluate,
        "compile": own.compile,
        "fidelity": own.fidelity,
    }
    found = [make() for name, make in makers.items() if name in stages]
    return tuple(
        replace(one, disk=one.disk.without(left.get(one.stage, NOTHING).bytes)) for one in found
    )


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
        left: Mapping[str, Earlier],
    ) -> None:
        wanted = recipe.quantize.device
        self.on_gpu = wanted == "cuda" or (gpu and wanted == "auto")
        # Whether compiling is the first of the heavy stages in its process.
        self.alone = alone
        self.recipe, self.facts, self.lengths = recipe, facts, lengths
        self.asking, self.left = asking, left
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
            rows = tried(recipe, self.facts, self.lengths(section.text) if section else None)
            peak = peak.beside(
                memory.scoring(recipe, shape, rows, joined=self.joined, on_gpu=self.on_gpu)
            )
        # Of a search nobody knows how many candidates are left.
        walks = () if recipe.quantize.search else self.walks("quantize")
        done = max(map(self.share, walks), default=0.0)
        took = self.clock.quantizing(texts, checkpoint, done) if self.clock else None
        written = disk.quantizing(recipe, shape, texts, checkpoint, rows)
        return StageEffort("quantize", peak, written, took)

    def scoring(self, stage: str, texts: Texts, tasks: Sequence[Texts]) -> StageEffort:
        recipe, shape = self.recipe, self.shape
        peak = memory.scoring(recipe, shape, texts, tasks, joined=self.joined, on_gpu=self.on_gpu)
        done = self.passed(stage, [texts, *tasks])
        took = self.clock.scoring(texts, tasks, self.checkpoint, done) if self.clock else None
        return StageEffort(stage, peak, disk.scoring(recipe, shape, [texts, *tasks]), took)

    def evaluate(self) -> StageEffort:
        texts, tasks = self.windows(settings_of(self.recipe).tokens), self.questions()
        return self.scoring("evaluate", texts, tasks)

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
        answers = measured is not None and measured.gives_logits
        # An engine may take shorter windows only.
        texts = replace(self.windows(min(settings.tokens, settings.engine_tokens)), sure_batch=0)
        tasks = self.questions() if answers else ()
        found = self.scoring("fidelity", texts, tasks)
        if measured is None or found.memory is None:
            return found
        if measured.in_float32:
            engine = 4 * self.shape.parameters
        else:
            engine = memory.opened(self.recipe, self.checkpoint)
        cache, peak = measured.kv_cache(self.facts), found.memory
        if answers:
            # It is open while both models are scored, and computes the same batches.
            batch = max(one.batch_tokens for one in (texts, *tasks))
            peak = peak.with_open(engine + cache.per_token * batch)
        return replace(found, memory=peak.beside(memory.alone(engine + cache.reserved)))

    def windows(self, tokens: int) -> Texts:
        recipe = self.recipe
        return scored(recipe, self.facts, self.lengths(settings_of(recipe).text), tokens)

    def questions(self) -> Sequence[Texts]:
        return asked(self.recipe, self.facts, self.asking)

    def passed(self, stage: str, texts: Sequence[Texts]) -> float:
        """The tokens that an earlier run took through all layers, of both models."""
        token = 4 * self.shape.hidden
        found = sum(self.share(walk) * walk.bytes / token for walk in self.walks(stage))
        return min(found, 2.0 * sum(one.tokens for one in texts))

    def walks(self, stage: str) -> Sequence[WalkLeft]:
        return self.left[stage].walks if self.recipe.model.by_layer and stage in self.left else ()

    def share(self, walk: WalkLeft) -> float:
        return min(walk.finished / self.shape.layers, 1.0)


def snapshot_bytes(directory: Path | None) -> int | None:
    """Counts the bytes of a snapshot's weights; None where there are none yet."""
    if directory is None:
        return None
    return sum(path.stat().st_size for path in weight_files(directory)) or None

"""Calibrates a model with ModelOpt and reports how far it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.dependencies import install, require
from pipeline.errors import StageError, cause
from pipeline.progress import Progress, Silent, Task
from pipeline.quantize.formats import modelopt_config, pass_costs
from pipeline.quantize.statistics import Statistics
from pipeline.recipe.schema import QuantizeSection
from pipeline.source.exhausted import explained_memory
from pipeline.source.tokens import Rows

if TYPE_CHECKING:
    from pipeline.quantize.awq_search import AwqSearch


def calibrate(
    model: Any,
    section: QuantizeSection,
    batches: Sequence[Rows],
    progress: Progress,
    statistics: Statistics | None = None,
) -> Any:
    """Replaces the model's linears by calibrated fake-quantized ones.

    Args:
        model: A transformers ``*ForCausalLM``; it is changed in place.
        section: A quantized format.
        batches: Token ids [batch][length]; rows of one batch have equal length.
        progress: Gets one task over all passes.
        statistics: Keeps what the first pass measures. Where it already holds something, from the
            same model and batches, it takes the place of that pass.

    Returns:
        The same model.

    Raises:
        StageError: ModelOpt failed, or memory ran out.
    """
    with text_of(batches, progress, section.format, pass_costs(section)) as text:
        calibrate_on(model, section, text, statistics)
    return model


class Text(Protocol):
    """The calibration text in front of a model."""

    def run(self, model: Any, cost: float) -> None:
        """Runs the decoder over every batch: one pass."""

    def skip(self, cost: float) -> None:
        """Leaves a pass out of which everything is known."""


def calibrate_on(
    model: Any,
    section: QuantizeSection,
    text: Text,
    statistics: Statistics | None = None,
    search: AwqSearch | None = None,
) -> None:
    """Replaces a model's linears by calibrated fake-quantized ones; see :func:`calibrate`.

    Args:
        model: It is changed in place.
        section: A quantized format.
        text: In front of it.
        statistics: See :func:`calibrate`.
        search: Lets AWQ search on few rows that stand for the text.

    Raises:
        StageError: ModelOpt failed, memory ran out, or it made other passes than it should.
    """
    mtq = require("modelopt.torch.quantization", "quantize")
    costs = pass_costs(section)
    passes = _Passes(text, costs, statistics, search)
    with explained(section.format), require("torch", "quantize").inference_mode():
        loop = {"forward_loop": passes} if costs else {}
        mtq.quantize(model, modelopt_config(section), **loop)
    passes.check()


@contextlib.contextmanager
def text_of(
    batches: Sequence[Rows], progress: Progress, name: str, costs: Sequence[float]
) -> Iterator[Text]:
    """Opens the text for a whole model.

    Args:
        batches: Token ids [batch][length].
        progress: Gets a task over all passes.
        name: The format.
        costs: Of each pass, for a row; none is no task.
    """
    rows = sum(len(batch) for batch in batches)
    task = progress.task(f"calibrating {name}", rows * sum(costs)) if costs else nullcontext()
    with task as opened:
        yield _Tokens(batches, opened or Silent())


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns what torch and ModelOpt raise while a format is calibrated into errors of the stage.

    Args:
        name: The recipe's ``quantize.format``.

    Raises:
        StageError: ModelOpt failed, or memory ran out.
    """
    try:
        with bounded():
            yield
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
        raise StageError(
            f"ModelOpt could not calibrate {name}",
            why=cause(error),
        ) from error


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Says what to do where memory runs out during calibration.

    Raises:
        StageError: It did.
    """
    fix = "Lower quantize.calibration.batch_size or sequence_length"
    with explained_memory("memory ran out during calibration", fix):
        yield


class _Passes:
    """ModelOpt's ``forward_loop``: called once per pass."""

    def __init__(
        self,
        text: Text,
        costs: Sequence[float],
        statistics: Statistics | None,
        search: AwqSearch | None,
    ) -> None:
        self._text, self._costs, self._statistics = text, costs, statistics
        self._search, self._done = search, 0

    def __call__(self, model: Any) -> None:
        first, self._done = self._done == 0, self._done + 1
        cost = self._costs[min(self._done, len(self._costs)) - 1]
        kept = self._statistics if first else None
        if kept is not None and kept.collected:
            kept.give_to(model)
            self._text.skip(cost)
            return
        with self._around(model, first):
            self._text.run(model, cost)
        if kept is not None:
            kept.take_from(model)

    def _around(self, model: Any, first: bool) -> contextlib.AbstractContextManager[Any]:
        """What goes on while a pass runs."""
        if self._search is None:
            return nullcontext()
        if first:
            return self._search.measuring(model)
        return self._search.searching(model)

    def check(self) -> None:
        """Refuses what a number of passes came of that nobody foresaw."""
        if self._done != len(self._costs):
            raise StageError(
                f"ModelOpt made {self._done} passes over the text, and not {len(self._costs)}",
                why="What follows is computed from the states of each pass",
                fix=install("quantize"),
            )


class _Tokens:
    """The text in front of a whole model."""

    def __init__(self, batches: Sequence[Rows], task: Task) -> None:
        self._batches, self._task = batches, task

    def run(self, model: Any, cost: float) -> None:
        """Runs the decoder over every batch, and nothing for what it would say next."""
        import torch

        for batch in self._batches:
            tokens = torch.tensor(batch, dtype=torch.long, device=model.device)
            # Only the decoder is calibrated; the logits of every position would cost gigabytes.
            model(input_ids=tokens, use_cache=False, logits_to_keep=1)
            self._task.advance(cost * len(batch))

    def skip(self, cost: float) -> None:
        """Counts a pass as done."""
        self._task.advance(cost * sum(map(len, self._batches)))

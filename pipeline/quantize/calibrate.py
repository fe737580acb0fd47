"""Calibrates a model with ModelOpt and reports how far it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.dependencies import require
from pipeline.errors import StageError
from pipeline.progress import Progress, Task
from pipeline.quantize.formats import modelopt_config, pass_costs
from pipeline.quantize.statistics import Statistics
from pipeline.recipe.schema import QuantizeSection
from pipeline.source.tokens import Rows


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
    mtq = require("modelopt.torch.quantization", "quantize")
    costs = pass_costs(section)
    rows = sum(len(batch) for batch in batches)
    inference_mode = require("torch", "quantize").inference_mode
    with explained(section.format):
        if not costs:
            with inference_mode():
                mtq.quantize(model, modelopt_config(section))
            return model
        with (
            progress.task(f"calibrating {section.format}", rows * sum(costs)) as task,
            inference_mode(),
        ):
            passes = _Passes(batches, costs, task, statistics)
            mtq.quantize(model, modelopt_config(section), forward_loop=passes)
    return model


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
            why=f"{type(error).__name__}: {error}",
        ) from error


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Says what to do where memory runs out during calibration.

    Raises:
        StageError: It did.
    """
    torch = require("torch", "quantize")
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StageError(
            "memory ran out during calibration",
            why=str(error).partition("\n")[0],
            fix="Lower quantize.calibration.batch_size or sequence_length",
        ) from error


class _Passes:
    """ModelOpt's ``forward_loop``: called once per pass, forwards every batch."""

    def __init__(
        self,
        batches: Sequence[Rows],
        costs: Sequence[float],
        task: Task,
        statistics: Statistics | None,
    ) -> None:
        self._batches, self._costs, self._task = batches, costs, task
        self._statistics, self._done = statistics, 0

    def __call__(self, model: Any) -> None:
        first, self._done = self._done == 0, self._done + 1
        cost = self._costs[min(self._done, len(self._costs)) - 1]
        kept = self._statistics if first else None
        if kept is not None and kept.collected:
            kept.give_to(model)
            self._task.advance(cost * sum(map(len, self._batches)))
            return
        forward(model, self._batches, self._task, cost)
        if kept is not None:
            kept.take_from(model)


def forward(model: Any, batches: Sequence[Rows], task: Task, cost: float) -> None:
    """Runs the decoder over every batch, and nothing for what it would say next.

    Args:
        model: A transformers ``*ForCausalLM``.
        batches: Token ids [batch][length].
        task: Is advanced by ``cost`` for each row.
        cost: Of a row.
    """
    import torch

    for batch in batches:
        tokens = torch.tensor(batch, dtype=torch.long, device=model.device)
        # Only the decoder is calibrated; the logits of every position would cost gigabytes.
        model(input_ids=tokens, use_cache=False, logits_to_keep=1)
        task.advance(cost * len(batch))

"""Chooses the setting of a format whose checkpoint is closest to the source model."""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StageError, UsageError
from pipeline.formats import FORMATS, Searched
from pipeline.progress import Progress
from pipeline.quantize.resuming import hand_over, is_whole
from pipeline.quantize.writing import written
from pipeline.reading.json_text import read_json
from pipeline.recipe.schema import Recipe
from pipeline.source.lines import Line
from pipeline.source.rendering import Text
from pipeline.source.tokens import Rows, Tokenizer, text_ids
from pipeline.store.files import write_atomically


def with_value(recipe: Recipe, value: float) -> Recipe:
    """Returns the recipe that says by hand what a search found: no search, and the value."""
    parameter = searched(recipe)
    quantize = recipe.quantize.model_copy(update={parameter: value, "search": None})
    return recipe.model_copy(update={"quantize": quantize})


def searched(recipe: Recipe) -> Searched:
    """Returns the key below ``quantize`` that the recipe's search chooses."""
    parameter = FORMATS[recipe.quantize.format].searched
    assert parameter is not None
    return parameter


def held_out(texts: Sequence[Line], calibration: Sequence[Line], seed: int) -> list[Line]:
    """Returns the texts that are not calibrated on, copies of those included, shuffled by seed."""
    used = set(calibration)
    rest = [text for text in texts if text not in used]
    # A file is often sorted by where its texts come from.
    random.Random(seed).shuffle(rest)  # noqa: S311
    return rest


def scored_windows(
    texts: Iterable[Text], tokenizer: Tokenizer, length: int, tokens: int, path: Path
) -> Rows:
    """Cuts the beginning of each text into one window, until ``tokens`` are predicted in all.

    Like calibration it takes the beginnings alone, so that no token is scored as a leftover without
    what comes before it.

    Args:
        texts: Held-out texts.
        tokenizer: Adds the model's own special tokens.
        length: The longest window, in tokens; the first of them is context.
        tokens: Predictions in all windows.
        path: The file they come from, for the error.

    Raises:
        UsageError: The texts have fewer tokens.
    """
    windows, left = [], tokens
    for text in texts:
        window = text_ids(tokenizer, text)[: min(length, left + 1)]
        if len(window) > 1:
            windows.append(window)
            left -= len(window) - 1
        if not left:
            return windows
    raise UsageError(
        f"the file has {tokens - left} tokens that calibration does not use, and "
        f"quantize.search.tokens asks for {tokens}",
        where=str(path),
        why="What is calibrated on cannot tell how well other text fares, and evaluate.text is the "
        "gate's",
        fix="Name a longer file, or lower quantize.calibration.samples or quantize.search.tokens",
    )


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        parameter: The key below ``quantize``.
        chosen: Its value with the smallest divergence; the smallest of equal ones.
        curve: Every value that was tried and its KL divergence in nats per token, ascending by
            value; None is a divergence that is not finite.
        tokens: Predictions that each was scored on.
    """

    parameter: Searched
    chosen: float
    curve: tuple[tuple[float, float | None], ...]
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Returns it as the stage's facts hold it."""
        curve = [{"value": value, "kl_divergence": kl} for value, kl in self.curve]
        return {
            "parameter": self.parameter,
            "chosen": self.chosen,
            "curve": curve,
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class Unfinished:
    """Where a search leaves what it has tried.

    Attributes:
        folder: It outlives a failure, and is on the file system of the output.
        identity: Whatever decides the divergences beyond the recipe, as JSON values.
    """

    folder: Path
    identity: Mapping[str, Any]


def choose(
    parameter: Searched,
    values: Sequence[float],
    *,
    write: Callable[[float, Path], None],
    score: Callable[[Path], float],
    output: Path,
    progress: Progress,
    tokens: int,
    unfinished: Unfinished | None = None,
) -> Found:
    """Writes and scores the checkpoint of every value, and leaves the best one in ``output``.

    At most two checkpoints are on the disk at a time.

    Args:
        parameter: What the values are of.
        values: Ascending.
        write: Fills an empty directory with the checkpoint of a value.
        score: Returns the KL divergence of a directory's checkpoint, in nats per token.
        output: An empty directory.
        progress: Gets a line for each value, and one for the choice.
        tokens: What each is scored on, for the record.
        unfinished: Where what was tried outlives a failure, and is not tried again.

    Raises:
        StageError: No candidate gives numbers that are finite.
    """
    with _folder(output, unfinished) as folder:
        tried = _Tried(folder, unfinished.identity if unfinished else {})
        for value in values:
            if value in tried.curve:
                progress.note(f"search: {parameter} {value:g} was tried by an earlier run")
                continue
            trial = folder / "trial"
            shutil.rmtree(trial, ignore_errors=True)
            trial.mkdir()
            write(value, trial)
            divergence = score(trial)
            progress.note(f"search: {parameter} {value:g} has a KL divergence of {divergence:.3g}")
            tried.add(value, divergence, trial)
        if tried.best is None:
            raise StageError(
                "no candidate of quantize.search gives finite numbers",
                why=f"{parameter} of {', '.join(f'{value:g}' for value in values)} was tried",
                fix="Try another format, or remove quantize.search and look at what evaluate says",
            )
        with written(output):
            hand_over(tried.folder_of(tried.best), output)
    progress.note(
        f"search: {parameter} {tried.best:g} is chosen of {len(values)} candidates, each scored on "
        f"{tokens} held-out tokens"
    )
    curve = tuple((value, tried.curve[value]) for value in values)
    return Found(parameter, tried.best, curve, tokens)


@contextmanager
def _folder(output: Path, unfinished: Unfinished | None) -> Iterator[Path]:
    """Opens the folder that candidates are written into, on the file system of the output."""
    if unfinished is not None:
        unfinished.folder.mkdir(exist_ok=True)
        yield unfinished.folder
        return
    with tempfile.TemporaryDirectory(prefix="search-", dir=output) as folder:
        yield Path(folder)


class _Tried:
    """What was tried of a search, and the checkpoint of the best value so far."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder, self._identity = folder, dict(identity)
        self.curve: dict[float, float | None] = {}
        self.best: float | None = None
        try:
            found = read_json(self._record)
            curve = {float(value): kl for value, kl in found["curve"]}
        except (OSError, ValueError, KeyError, TypeError):
            return
        best = found.get("best")
        there = best is None or is_whole(self.folder_of(best))
        if there and found.get("identity") == self._identity:
            self.curve, self.best = curve, best

    @property
    def _record(self) -> Path:
        return self._folder / "tried.json"

    def folder_of(self, value: float) -> Path:
        """Names the folder of a value's checkpoint."""
        return self._folder / f"best-{value:g}"

    def add(self, value: float, divergence: float, trial: Path) -> None:
        """Keeps a value's checkpoint where it is the best, and the record of it in any case."""
        before = self.best
        self.curve[value] = divergence if math.isfinite(divergence) else None
        least = None if before is None else self.curve[before]
        if math.isfinite(divergence) and (least is None or divergence < least):
            self.best = value
            shutil.rmtree(self.folder_of(value), ignore_errors=True)
            trial.rename(self.folder_of(value))
        else:
            shutil.rmtree(trial)
        record = {"identity": self._identity, "best": self.best, "curve": [*self.curve.items()]}
        write_atomically(self._record, json.dumps(record).encode())
        # Only now: until then the record says that the former one is there.
        if before is not None and self.best != before:
            shutil.rmtree(self.folder_of(before))

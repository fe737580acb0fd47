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
from pipeline.quantize.resuming import digests, forget, hand_over, is_whole, strip
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
        write: Fills a directory with the checkpoint of a value. It has what an earlier run left of
            the same one, if anything.
        score: Returns the KL divergence of a directory's checkpoint, in nats per token. It may
            leave there how far it has come.
        output: An empty directory.
        progress: Gets a line for each value, and one for the choice.
        tokens: What each is scored on, for the record.
        unfinished: Where what was tried outlives a failure, and is not tried again.

    Raises:
        StageError: No candidate gives numbers that are finite, or the disk is full.
    """
    with _folder(output, unfinished) as folder:
        tried = _Tried(folder, unfinished.identity if unfinished else {})
        with tried.kept_if_of_use():
            for value in values:
                if value in tried.curve:
                    progress.note(f"search: {parameter} {value:g} was tried by an earlier run")
                    continue
                if tried.begin(value):
                    progress.note(f"search: {parameter} {value:g} was written by an earlier run")
                else:
                    write(value, tried.folder_of(value))
                    tried.wrote(value)
                divergence = score(tried.folder_of(value))
                said = f"has a KL divergence of {divergence:.3g}"
                progress.note(f"search: {parameter} {value:g} {said}")
                tried.add(value, divergence)
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
    """What was tried of a search, the checkpoint of the best value so far, and the one on trial.

    Each value has a folder, in which its checkpoint is written and stays. A record beside them says
    what they are worth, and is replaced by rename: a folder that it does not name is not finished,
    and one whose files have other digests was changed.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder, self._identity = folder, dict(identity)
        self.curve: dict[float, float | None] = {}
        self.best: float | None = None
        self._digests: dict[float, dict[str, str]] = {}
        if not self._goes_on():
            forget(folder)
            # Nothing is written that is not known to be of this identity.
            self._save()

    def _goes_on(self) -> bool:
        """Takes what an earlier run has tried; False where it cannot be gone on with."""
        try:
            found = read_json(self._record)
            curve = {float(value): kl for value, kl in found["curve"]}
            whole = {float(value): files for value, files in found["digests"]}
            best = found["best"]
            alike = found["identity"] == self._identity
            if not alike or not (best is None or self._is_intact(best, whole[best])):
                return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self.curve, self.best, self._digests = curve, best, whole
        return True

    @contextmanager
    def kept_if_of_use(self) -> Iterator[None]:
        """Removes the folder where the block fails before anything was tried or begun."""
        try:
            yield
        except BaseException:
            left = [file for file in self._folder.rglob("*") if file.is_file()]
            if not self.curve and left == [self._record]:
                shutil.rmtree(self._folder, ignore_errors=True)
            raise

    @property
    def _record(self) -> Path:
        return self._folder / "tried.json"

    def folder_of(self, value: float) -> Path:
        """Names the folder of a value's checkpoint."""
        return self._folder / f"candidate-{float(value)}"

    def begin(self, value: float) -> bool:
        """Opens the folder of a value; says whether its checkpoint is written, all of it.

        Beside it there is the best one's alone, so that two take room.
        """
        self._keep(value, self.best)
        folder = self.folder_of(value)
        folder.mkdir(exist_ok=True)
        before = self._digests.pop(value, None)
        if before is None:
            return False
        if not self._is_intact(value, before):
            forget(folder)
            # Only now: a folder that the record does not name may be gone on with.
            self._save()
            return False
        self._digests[value] = before
        return True

    def wrote(self, value: float) -> None:
        """Notes that the checkpoint of a value is whole, which needs no state any more."""
        folder = self.folder_of(value)
        with written(folder):
            strip(folder)
            self._digests[value] = digests(folder)
        self._save()

    def add(self, value: float, divergence: float) -> None:
        """Notes what a value is worth, and keeps its checkpoint where it is the best."""
        least = None if self.best is None else self.curve[self.best]
        finite = math.isfinite(divergence)
        self.curve[value] = divergence if finite else None
        if finite and (least is None or divergence < least):
            self.best = value
        self._digests = {one: files for one, files in self._digests.items() if one == self.best}
        self._save()
        # Only now: until then the record says that the others are there.
        self._keep(self.best)
        if self.best == value:
            strip(self.folder_of(value))

    def _keep(self, *values: float | None) -> None:
        """Removes the folders of all other values."""
        kept = {self.folder_of(value) for value in values if value is not None}
        for left in set(self._folder.glob("candidate-*")) - kept:
            shutil.rmtree(left)

    def _is_intact(self, value: float, wanted: Mapping[str, str]) -> bool:
        folder = self.folder_of(value)
        try:
            return is_whole(folder) and digests(folder) == wanted
        except OSError:
            return False

    def _save(self) -> None:
        record = {
            "identity": self._identity,
            "best": self.best,
            "curve": [*self.curve.items()],
            "digests": [*self._digests.items()],
        }
        with written(self._folder):
            write_atomically(self._record, json.dumps(record).encode())

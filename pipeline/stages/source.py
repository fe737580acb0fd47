"""Resolves the model to a snapshot: safetensors only, every file digested."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import SourceError
from pipeline.models.config_json import read_config
from pipeline.models.config_keys import unread_keys
from pipeline.models.sizes import parameters
from pipeline.preflight.model_checks import check_hub_model, check_model
from pipeline.recipe.schema import Recipe
from pipeline.source.end_ids import read_end_ids
from pipeline.source.hub import hub_commit, hub_snapshot
from pipeline.source.local import local_directory
from pipeline.source.snapshot import (
    check_snapshot,
    facts_of,
    file_marks,
    left_out,
    refuse_ambiguous_weights,
    refuse_without_safetensors,
    snapshot_files,
    unreadable,
)
from pipeline.source.texts import check_fetched
from pipeline.stages.base import Stage, StageContext
from pipeline.store.artifact import Artifact
from pipeline.store.digests import mark_of
from pipeline.store.files import Taken, link_or_copy, take
from pipeline.store.sharing import explained
from pipeline.tables import memory_size

logger = logging.getLogger(__name__)
WORTH_TELLING = 1 << 30
"""Bytes of a snapshot from which on people want to know where they are, and once is enough."""
LINKED_FROM = 16 << 20
"""Bytes of a file of such a snapshot from which on it is linked for want of a clone."""


def material(recipe: Recipe) -> dict[str, Any]:
    """Identifies the snapshot without reading it.

    A snapshot of the Hub is known by its commit, a local directory by the stat of its files: a
    touched file makes this stage run again, and when its bytes turn out equal every later stage is
    still cached, because later keys hold the digest of the contents.

    Raises:
        RecipeError: The source is neither a directory nor a Hub id.
        SourceError: The Hub does not know it, or cannot be reached and nothing was fetched before.
    """
    directory = local_directory(recipe)
    if directory is None:
        return {"hub": recipe.model.source, "commit": hub_commit(recipe)}
    code = recipe.model.trust_remote_code
    linked_from = _linked_from(snapshot_files(directory, code=code))
    marks = file_marks(directory, code=code, linked_from=linked_from)
    return {"directory": str(directory.resolve()), "files": marks}


def _linked_from(paths: Iterable[Path]) -> float:
    """Returns the bytes of a file from which on it may be linked: of a small model none is."""
    size = sum(path.stat().st_size for path in paths)
    return LINKED_FROM if size >= WORTH_TELLING else math.inf


def _words(size: int) -> str:
    """Formats bytes: ``15.01 GiB``."""
    return memory_size(size).strip()


def run(context: StageContext) -> dict[str, Any]:
    """Checks the snapshot and takes its files into the artifact.

    Files of the Hub's cache, which nobody writes into, are linked. Those of a directory share their
    blocks with the artifact where the file system can do that. Where it cannot, large ones are
    linked and named as ``borrowed``, and small ones copied.

    What cannot work is refused before a model is fetched.

    Raises:
        SourceError: It cannot be fetched or read, or is not a whole checkpoint in safetensors.
        UnsupportedError: Its architecture is not supported, or the recipe cannot work with it.
    """
    recipe = context.recipe
    directory = local_directory(recipe)
    place = str(directory or recipe.model.source)
    # The Hub cache never changes a file; a local directory may be trained into again.
    local = directory is not None
    if directory is None:
        check_hub_model(recipe)
        context.progress.note(f"fetching {recipe.model.source} from the Hub")
        directory = hub_snapshot(recipe)
    refuse_without_safetensors(directory, place)
    paths = snapshot_files(directory, code=recipe.model.trust_remote_code)
    before = _marks(paths)
    facts = facts_of(directory, place)
    refuse_ambiguous_weights(directory, place)
    contents = check_snapshot(directory, facts, place)
    end_ids = read_end_ids(directory, place)
    if ignored := left_out(directory):
        context.progress.note(
            f"left out, as no index names it and transformers does not read it: {ignored[0]}"
            + (f", and {len(ignored) - 1} more" if len(ignored) > 1 else "")
        )
    if unread := unread_keys(read_config(directory, SourceError, "A snapshot has one")):
        context.progress.note(f"nothing reads these keys of config.json: {', '.join(unread)}")
    size = sum(path.stat().st_size for path in paths)
    taken: dict[Path, Taken] = {}
    refused: dict[Path, OSError] = {}
    linked_from = _linked_from(paths)
    with context.progress.task(f"taking the snapshot, {_words(size)}", size) as task:
        for path in paths:
            target = context.output / path.name
            try:
                if local:
                    link = path.stat().st_size >= linked_from
                    told = partial(refused.__setitem__, path)
                    taken[path] = take(path, target, task.advance, link=link, on_refusal=told)
                    logger.info("%s was %s", path, taken[path])
                else:
                    link_or_copy(path, target)
                    task.advance(path.stat().st_size)
            except PermissionError as error:
                raise unreadable(str(path), error) from error
    if local:
        _refuse_moved(before, _marks(paths), taken)
    context.borrowed.update(path.name for path, how in taken.items() if how == "linked")
    if size >= WORTH_TELLING:
        for note in _notes(taken, refused, directory):
            context.progress.note(note)
    return {
        "architecture": facts.architecture,
        "parameters": parameters(facts) if facts.quantized else contents.parameters,
        "bytes": size,
        "dtypes": list(contents.dtypes),
        "dtype": contents.dtype,
        "end_ids": end_ids.as_dict(),
        "vocab_size": facts.vocab_size,
        "num_hidden_layers": facts.num_hidden_layers,
        "hidden_size": facts.hidden_size,
    }


def _marks(paths: Iterable[Path]) -> dict[Path, list[int]]:
    return {path: mark_of(path, borrowed=True) for path in paths if path.is_file()}


def _refuse_moved(
    before: Mapping[Path, list[int]], after: Mapping[Path, list[int]], taken: Mapping[Path, Taken]
) -> None:
    """Refuses a snapshot that somebody wrote into meanwhile: it may be of two models.

    Raises:
        SourceError: Names the first such file.
    """
    for path, mark in before.items():
        # A link moves the change time, which is the last.
        compared = slice(3) if taken.get(path) == "linked" else slice(None)
        if after.get(path, [])[compared] != mark[compared]:
            raise SourceError(
                "the model was written to while its files were taken",
                where=str(path),
                why="What was taken may be partly the old and partly the new model",
                fix="Let nothing write into the model's folder, and run again",
            )


def _notes(
    taken: Mapping[Path, Taken], refused: Mapping[Path, OSError], directory: Path
) -> Iterator[str]:
    """Says where a large model is now, which is no matter where its blocks are shared."""
    if "linked" in taken.values():
        yield (
            f"the large files of {directory} are not copied, the store has links to them: what is "
            "written into one changes it there, too, which the next run finds"
        )
    size = sum(path.stat().st_size for path, how in taken.items() if how == "copied")
    if size < WORTH_TELLING:
        return
    own = f"the snapshot of {directory} takes {_words(size)} of its own, as"
    for path, error in refused.items():
        found = explained(error, path)
        yield f"{own} {found.why}. {found.fix}."
        return
    yield f"{own} its files are too small to be linked, below {_words(LINKED_FROM)} each"


def check(recipe: Recipe, artifact: Artifact) -> None:
    """Refuses what cannot work with this model, also where the snapshot was cached.

    Raises:
        UnsupportedError: Naming the recipe's file, line and key, the reason and the remedy.
        RecipeError: A conversation of a text is one that the model's chat template refuses.
    """
    check_model(recipe, artifact.path)
    check_fetched(recipe, artifact.path)


STAGE = Stage(
    name="source",
    version=2,
    title="resolve the model snapshot",
    inputs=(),
    run=run,
    section=lambda recipe: {"trust_remote_code": recipe.model.trust_remote_code},
    material=material,
    check=check,
)

"""Resolves the model to a snapshot: safetensors only, every file digested."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from pipeline.config_json import read_config
from pipeline.config_keys import unread_keys
from pipeline.errors import RecipeError, SourceError
from pipeline.files import link_or_copy
from pipeline.hub import hub_commit, hub_snapshot
from pipeline.models import ModelFacts
from pipeline.recipe import Recipe
from pipeline.snapshot import (
    check_snapshot,
    refuse_without_safetensors,
    snapshot_files,
    unreadable,
)
from pipeline.stages.base import Stage, StageContext

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def local_directory(recipe: Recipe) -> Path | None:
    """The model's directory, or None when the recipe names a Hub id.

    Raises:
        RecipeError: It is neither.
    """
    source = recipe.model.source
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if HUB_ID.match(source) and "/" in source and not path.exists():
        return None
    raise RecipeError(
        f"there is no model directory {source}",
        where=recipe.place("model.source"),
        why=f"{path.absolute()} is a file" if path.exists() else "The path does not exist",
        fix="Name a directory with config.json and *.safetensors, or a Hub id such as "
        "Qwen/Qwen2.5-7B-Instruct",
    )


def material(recipe: Recipe) -> dict[str, Any]:
    """What identifies the snapshot without reading it.

    A local directory is known by the stat of its files: a touched file makes this stage run again,
    and when its bytes turn out equal every later stage is still cached, because later keys hold the
    digest of the contents. The change time is there because a copy can keep the other two.
    """
    directory = local_directory(recipe)
    if directory is None:
        return {"hub": recipe.model.source, "commit": hub_commit(recipe)}
    marks = {}
    for path in snapshot_files(directory, code=recipe.model.trust_remote_code):
        stat = path.stat()
        marks[path.name] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return {"directory": str(directory.resolve()), "files": marks}


def run(context: StageContext) -> dict[str, Any]:
    """Checks the snapshot and copies it (or, from the Hub's cache, links it) into the artifact.

    Raises:
        SourceError: It cannot be fetched or read, or is not a whole checkpoint in safetensors.
        UnsupportedError: Its architecture is not supported.
    """
    recipe = context.recipe
    directory = local_directory(recipe)
    place = str(directory or recipe.model.source)
    # The Hub cache never changes a file; a local directory may be trained into again.
    deliver = shutil.copyfile if directory else link_or_copy
    if directory is None:
        context.progress.note(f"fetching {recipe.model.source} from the Hub")
        directory = hub_snapshot(recipe)
    refuse_without_safetensors(directory, place)
    facts = ModelFacts.from_directory(directory)
    contents = check_snapshot(directory, facts, place)
    if unread := unread_keys(read_config(directory, SourceError, "A snapshot has one")):
        context.progress.note(f"nobody reads these keys of config.json: {', '.join(unread)}")
    paths = snapshot_files(directory, code=recipe.model.trust_remote_code)
    size = sum(path.stat().st_size for path in paths)
    with context.progress.task("copying the snapshot", size) as task:
        for path in paths:
            try:
                deliver(path, context.output / path.name)
            except PermissionError as error:
                raise unreadable(str(path), error) from error
            task.advance(path.stat().st_size)
    return {
        "architecture": facts.architecture,
        "parameters": contents.parameters,
        "bytes": size,
        "dtypes": list(contents.dtypes),
        "vocab_size": facts.vocab_size,
        "num_hidden_layers": facts.num_hidden_layers,
        "hidden_size": facts.hidden_size,
    }


STAGE = Stage(
    name="source",
    version=1,
    title="resolve the model snapshot",
    inputs=(),
    run=run,
    section=lambda recipe: {"trust_remote_code": recipe.model.trust_remote_code},
    material=material,
)

"""A model that lies in a directory of this machine, told apart from one on the Hub."""

from __future__ import annotations

import shlex
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.reading.files import impossible, is_folder, shortened, way_out
from pipeline.reading.json_text import read_json
from pipeline.recipe.paths import HUB_ID
from pipeline.recipe.schema import Recipe
from pipeline.source.snapshot import patterns

GGUF = ".gguf"
ADAPTER = "adapter_config.json"


def local_directory(recipe: Recipe) -> Path | None:
    """Finds the model's directory; None when the recipe names a Hub id.

    Raises:
        RecipeError: It is neither, or holds something else than a checkpoint of Hugging Face.
    """
    source = recipe.model.source
    path = Path(source).expanduser()
    if is_folder(path):
        _refuse_other_kinds(path, recipe)
        _refuse_links(path, recipe)
        return path
    if why := impossible(path):
        raise RecipeError(
            f"there is no model directory {shortened(source)}",
            where=recipe.place("model.source"),
            why=why,
            fix="Name a directory with config.json and *.safetensors, or a Hub id",
        )
    if HUB_ID.match(source) and "/" in source and not path.exists():
        return None
    if path.suffix.lower() == GGUF:
        raise _gguf(path, recipe)
    raise RecipeError(
        f"there is no model directory {source}",
        where=recipe.place("model.source"),
        why=f"{path.absolute()} is a file" if path.exists() else "The path does not exist",
        fix="Name a directory with config.json and *.safetensors, or a Hub id such as "
        "Qwen/Qwen2.5-7B-Instruct",
    )


def _refuse_other_kinds(path: Path, recipe: Recipe) -> None:
    if (path / "config.json").exists():
        return
    if (path / ADAPTER).is_file():
        base = _base(path / ADAPTER)
        raise RecipeError(
            f"{path} is a LoRA adapter, not a model",
            where=recipe.place("model.source"),
            why=f"it changes {base}, and {ADAPTER} stands where config.json would",
            fix="Merge it first: merge_and_unload() of peft, then save_pretrained() of model and "
            "tokenizer into one folder; and name that",
        )
    found = next((file for file in sorted(path.iterdir()) if file.suffix.lower() == GGUF), None)
    if found is not None:
        raise _gguf(found, recipe)


def _refuse_links(directory: Path, recipe: Recipe) -> None:
    """Refuses a model whose files are elsewhere: they are copied, whatever they are.

    A model that was unpacked from somebody's archive could have any file of this machine copied
    into the store, and from there into the repository that is handed on.
    """
    taken = [*patterns(code=True), ADAPTER]
    for path in sorted(directory.iterdir()):
        if any(fnmatchcase(path.name, pattern) for pattern in taken) and (
            outside := way_out(path, directory)
        ):
            raise RecipeError(
                f"{path} is a link out of the model's folder, to {outside}",
                where=recipe.place("model.source"),
                why="A model's files are copied into its repository, and a link may name any file "
                "of this machine",
                fix="Put the file itself in its place, if it belongs to the model: "
                f"cp --remove-destination {shlex.quote(str(outside))} {shlex.quote(str(path))}",
            )


def _base(config: Path) -> str:
    try:
        named = read_json(config).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        named = None
    return str(named or "another model")


def _gguf(path: Path, recipe: Recipe) -> RecipeError:
    return RecipeError(
        f"{path} is a model of llama.cpp",
        where=recipe.place("model.source"),
        why="GGUF files are mostly quantized already, and ModelOpt starts from the full weights",
        fix="Name the Hugging Face checkpoint that it was made from: its directory or its Hub id",
    )

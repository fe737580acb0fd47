"""A model that lies in a directory of this machine, told apart from one on the Hub."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.recipe.paths import HUB_ID
from pipeline.recipe.schema import Recipe

GGUF = ".gguf"
ADAPTER = "adapter_config.json"


def local_directory(recipe: Recipe) -> Path | None:
    """Finds the model's directory; None when the recipe names a Hub id.

    Raises:
        RecipeError: It is neither, or holds something else than a checkpoint of Hugging Face.
    """
    source = recipe.model.source
    path = Path(source).expanduser()
    if path.is_dir():
        _refuse_other_kinds(path, recipe)
        return path
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


def _base(config: Path) -> str:
    try:
        named = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
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

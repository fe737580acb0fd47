"""Assembles the Triton model repository: models, tokenizer, engine and configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.artifacts import MANIFEST
from pipeline.dependencies import versions
from pipeline.digests import file_digest, files_below
from pipeline.errors import MissingDependencyError, RepositoryError, UnsupportedError
from pipeline.files import link_or_copy
from pipeline.recipe import Recipe
from pipeline.stages.base import Artifact, Stage, StageContext
from pipeline.targets import get_target
from pipeline.targets.base import LOG_NAME

# What a tokenizer needs at run time, and the stop tokens that generation_config.json lists.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def model_sources() -> Path:
    """The folder with the Python files of the Triton models.

    In a checkout it is ``model_repo/`` beside the package, in an installed wheel it is inside it.

    Raises:
        RepositoryError: Neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package.parent / "model_repo", package / "_model_repo")
    for place in places:
        if any(place.glob("*/model.py")):
            return place
    raise RepositoryError(
        "the Triton models' own files are missing",
        where=str(places[0]),
        why="The installation is incomplete",
        fix="Install the package again",
    )


def python_files(sources: Path) -> list[str]:
    """Relative paths of the Python files of all models, sorted; caches are left out."""
    return [
        name
        for name in files_below(sources)
        if name.endswith(".py") and "__pycache__" not in Path(name).parts
    ]


def material(_recipe: Recipe) -> dict[str, Any]:
    """Digests of the models' own files and the versions that decide the text of config.pbtxt."""
    sources = model_sources()
    return {
        "models": {name: file_digest(sources / name) for name in python_files(sources)},
        "tools": versions(("protobuf", "tritonclient")),
    }


def run(context: StageContext) -> dict[str, Any]:
    """Fills the repository and validates it.

    Raises:
        RepositoryError: A part is missing, or the result would not load.
        MissingDependencyError: tritonclient is not installed.
    """
    try:
        from pipeline.triton.config import render_configs
        from pipeline.triton.validate import check_repository
    except ImportError as error:
        raise MissingDependencyError(
            "config.pbtxt cannot be written",
            why=str(error),
            fix="Install it: pip install 'trtllm-pipeline[cpu]'",
        ) from error
    from pipeline.triton.parameters import ENGINE_DIR, TOKENIZER_DIR
    from pipeline.triton.tensors import ENGINE

    output, recipe = context.output, context.recipe
    engine_source = context.inputs["compile"].path
    engine_config = _engine_config(engine_source)
    target = get_target(recipe.compile.target)
    # plan.stages_for leaves this stage out for a target that is not served by Triton.
    assert target.triton_model is not None
    engine = target.triton_model(recipe, engine_config)
    configs = render_configs(recipe, engine_config, engine)
    for model, text in configs.items():
        (output / model / "1").mkdir(parents=True)
        (output / model / "config.pbtxt").write_text(text, encoding="utf-8")
    sources = model_sources()
    for name in python_files(sources):
        model = Path(name).parts[0]
        native = model == ENGINE and engine.backend != "python"
        if model in configs and not native:
            copy = output / model / "1" / Path(name).relative_to(model)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sources / name, copy)
    _deliver_tokenizer(context.inputs["source"].path, output / TOKENIZER_DIR)
    for name in files_below(engine_source):
        if name not in (MANIFEST, LOG_NAME):
            link_or_copy(engine_source / name, output / ENGINE_DIR / name)
    for model in configs:
        # Triton wants a version folder for the ensemble; an empty one would be lost in transit.
        version_folder = output / model / "1"
        if not any(version_folder.iterdir()):
            (version_folder / ".keep").touch()
    check_repository(output, target.engine_problems)
    files = files_below(output)
    switched_off = {"switched_off": dict(engine.switched_off)} if engine.switched_off else {}
    return {
        "models": sorted(configs),
        "files": len(files),
        "bytes": sum((output / name).stat().st_size for name in files),
        "target": recipe.compile.target,
        **switched_off,
    }


def check(recipe: Recipe, artifact: Artifact) -> None:
    """Refuses a setting that the recipe asks for by name and the engine cannot do.

    A default that the engine cannot do is switched off instead, with the reason in the facts.

    Raises:
        UnsupportedError: Naming the recipe's file, line and key, the reason and the remedy.
    """
    for name, reason in artifact.facts.get("switched_off", {}).items():
        if name in recipe.serve.model_fields_set:
            raise UnsupportedError(
                f"{name} is asked for, but this engine cannot do it",
                where=recipe.place(f"serve.{name}"),
                why=reason[:1].upper() + reason[1:],
                fix=f"Set serve.{name} to false, or leave it out",
            )


def _engine_config(engine: Path) -> dict[str, Any]:
    path = engine / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RepositoryError(
            "the engine's config.json cannot be read",
            where=str(path),
            why=str(error),
            fix="Compile the engine again",
        ) from error
    return dict(content)


def _deliver_tokenizer(snapshot: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (snapshot / name).is_file():
            shutil.copyfile(snapshot / name, target / name)
    generation = target / "generation_config.json"
    if generation.is_file() or not (snapshot / "config.json").is_file():
        return
    # Older checkpoints keep the special ids in config.json alone, where transformers reads them.
    config = json.loads((snapshot / "config.json").read_text(encoding="utf-8"))
    ids = {name: config[name] for name in SPECIAL_IDS if config.get(name) is not None}
    generation.write_text(json.dumps(ids, indent=2, sort_keys=True) + "\n", encoding="utf-8")


STAGE = Stage(
    name="repository",
    version=2,
    title="assemble the Triton model repository",
    inputs=("source", "compile"),
    run=run,
    section=lambda recipe: recipe.section("name", "compile", "serve"),
    material=material,
    check=check,
)

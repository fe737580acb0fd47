"""Writes a shell script that builds an engine on another machine, with what is known here.

The script needs bash, coreutils and either TensorRT-LLM or Docker; nothing of this project. What it
leaves, :mod:`pipeline.targets.tensorrt.build.adopt` takes in.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline._version import __version__
from pipeline.checkpoint import CheckpointConfig
from pipeline.formats import NO_QUANT
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import Artifact, read_manifest
from pipeline.targets.base import LOG_NAME
from pipeline.targets.handed_on import OURS, PLACES, PREFIXES
from pipeline.targets.tensorrt.build.command import (
    CACHE_NAME,
    EXECUTABLE,
    PREVIOUS_CACHE,
    Build,
)
from pipeline.targets.tensorrt.build.engine import MANIFEST, SCHEMA, SUMS
from pipeline.targets.tensorrt.docker import (
    ASK_DAEMON,
    DAEMON_REMEDY,
    DAEMON_TIMEOUT_S,
    SELINUX_ENFORCE,
    UNLABELLED,
)
from pipeline.targets.tensorrt.environment import DEVICE_ORDER, QUERY
from pipeline.targets.tensorrt.gpus import find_gpu
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.toolchain import DEFAULT_CONTAINER

TEMPLATE = "script.sh.j2"
# Stand for the two directories until they are variables of the script.
CHECKPOINT, ENGINE, USER = Path("/CHECKPOINT"), Path("/ENGINE"), "USER:GROUP"
VARIABLES = {str(CHECKPOINT): "$checkpoint", str(ENGINE): "$engine", USER: "$(id -u):$(id -g)"}


def build_script(checkpoint: Artifact, recipe: Recipe) -> str:
    """Writes the script, for bash.

    Args:
        checkpoint: The checkpoint's artifact, whose digests the script compares.
        recipe: ``compile`` gives sizes and options.

    Raises:
        RecipeError: ``compile.gpu`` is not in the table.
        CheckpointError: The checkpoint's ``config.json`` cannot be read.
        StoreError: Its manifest cannot be read.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 -- it is no HTML; values are quoted for the shell
    )
    return environment.get_template(TEMPLATE).render(_values(checkpoint, recipe))


def _values(checkpoint: Artifact, recipe: Recipe) -> dict[str, Any]:
    pretrained = CheckpointConfig.from_directory(checkpoint.path)
    config = BuildConfig.from_recipe(recipe)
    build = Build(CHECKPOINT, ENGINE, config)
    container = DEFAULT_CONTAINER
    in_container = build.in_container(container.image, USER, here=False)
    start = in_container.index(container.image)
    engine = [f"rank{rank}.engine" for rank in range(pretrained.world_size)]
    quantization = pretrained.quantization
    files = read_manifest(checkpoint.path)["files"]
    gpu = recipe.compile.gpu and find_gpu(recipe.compile.gpu, recipe.place("compile.gpu"))
    return {
        "name": _one_line(recipe.name),
        "pipeline": __version__,
        "model": _one_line(f"{recipe.model.source} {recipe.model.revision or ''}"),
        "format": recipe.quantize.format,
        "algo": None if quantization.algo == NO_QUANT else quantization.algo,
        "kv_cache": quantization.kv_cache_algo or pretrained.dtype,
        "dtype": pretrained.dtype,
        "tp": pretrained.tp_size,
        "pp": pretrained.pp_size,
        "ranks": pretrained.world_size,
        "gpu": gpu,
        "container": container,
        "checkpoint": {
            "digest": checkpoint.digest,
            "path": _one_line(str(checkpoint.path)),
            "gib": sum(entry["bytes"] for entry in files.values()) / (1 << 30),
            "sums": {name: files[name]["sha256"] for name in sorted(files)},
        },
        "engine": [*engine, "config.json", MANIFEST, SUMS, LOG_NAME],
        "engines": engine,
        "options": list(_lines(config.flags())),
        "docker": list(_lines(_uncalled(in_container[:start]))),
        "inside": list(_lines(in_container[start + 2 :]))[:2],
        "place": list(_lines(build.in_place()[1:]))[:2],
        "executable": EXECUTABLE,
        "device_order": DEVICE_ORDER,
        "selinux": SELINUX_ENFORCE,
        "unlabelled": UNLABELLED,
        "ask_daemon": shlex.join(ASK_DAEMON),
        "daemon_timeout": DAEMON_TIMEOUT_S,
        "daemon_remedy": DAEMON_REMEDY,
        "prefixes": PREFIXES,
        "kept_back": [name for name in sorted(OURS) if name.startswith(PREFIXES)],
        "places": PLACES.pattern,
        "query": QUERY,
        "log": LOG_NAME,
        "manifest": MANIFEST,
        "schema": SCHEMA,
        "sums": SUMS,
        "written_cache": CACHE_NAME,
        "previous_cache": PREVIOUS_CACHE,
        "flags": json.dumps(config.flags()),
    }


def _uncalled(words: Iterable[str]) -> Iterator[str]:
    """Names the container by the script's process, so that two scripts can build side by side."""
    for word in words:
        yield f"--name={EXECUTABLE}-$$" if word.startswith("--name=") else word


def _lines(words: Iterable[str]) -> Iterator[str]:
    """One option a line, with its value."""
    line: list[str] = []
    for word in words:
        if word.startswith("--") and line:
            yield " ".join(line)
            line = []
        line.append(_quoted(word))
    if line:
        yield " ".join(line)


def _quoted(word: str) -> str:
    """A word for the shell, in which the script's own variables are replaced."""
    replaced = word
    for placeholder, variable in VARIABLES.items():
        replaced = replaced.replace(placeholder, variable)
    return f'"{replaced}"' if replaced != word or "$$" in word else shlex.quote(word)


def _one_line(text: str) -> str:
    """What a comment can hold: a line break in it would begin a command."""
    return " ".join(text.split())

"""Takes in an engine that was built elsewhere, as if it had been built here.

What it is bound to is in ``engine.json``, which the script of
:mod:`pipeline.targets.tensorrt.build.script` writes and every engine of this project has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.checkpoint import CheckpointConfig
from pipeline.errors import CompileError, cause
from pipeline.progress import Progress, Silent
from pipeline.reading.files import read_regular, way_out
from pipeline.recipe.schema import Recipe
from pipeline.store.artifact import MANIFEST as ARTIFACT_MANIFEST
from pipeline.store.artifact import read_manifest
from pipeline.store.files import link_or_copy
from pipeline.targets.base import LOG_NAME, GivenEngine
from pipeline.targets.tensorrt.build.checks import predict_here
from pipeline.targets.tensorrt.build.engine import (
    MANIFEST,
    SUMS,
    Reason,
    check_ranks,
    checkpoint_digest,
    rank_files,
    read_config,
    read_engine_manifest,
    world_size,
)
from pipeline.targets.tensorrt.build.log import BuildLog
from pipeline.targets.tensorrt.build.result import check_result
from pipeline.targets.tensorrt.environment import InstalledGpu, Machine, missing_to_build
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.toolchain import TENSORRT_LLM

COPY = "Copy the whole folder again from the machine that built it"
BUILD = (
    "Give the engine of this recipe, or build it with the script that "
    "'trtllm-pipeline plan RECIPE --script FILE' writes"
)
OTHER_OPTIONS = Reason(
    "It was built with other options than the recipe has now, or trtllm-build overrode them and "
    "the pre-flight did not foresee it",
    BUILD,
)
_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def given_files(directory: Path) -> list[str]:
    """Names the files that make a directory the engine it is.

    Raises:
        CompileError: It is no complete engine, or nothing says what it is bound to.
    """
    with _another_remedy():
        config = read_config(directory)
        check_ranks(directory, world_size(config))
        gpu_of(directory)
    sums = [SUMS] if (directory / SUMS).is_file() else []
    names = sorted(["config.json", MANIFEST, *rank_files(directory), *sums])
    for name in (*names, LOG_NAME):
        if outside := way_out(directory / name, directory):
            raise CompileError(
                f"{name} is a link out of the engine's folder, to {outside}",
                where=str(directory),
                why="An engine's files are copied into its repository, and a link may name any "
                "file of this machine",
                fix=COPY,
            )
    return names


def adopt_engine(
    given: GivenEngine, checkpoint: Path, recipe: Recipe, output: Path, progress: Progress
) -> dict[str, Any]:
    """Fills an engine directory from another one.

    Args:
        given: The engine and the digests of its files.
        checkpoint: The checkpoint that it should be of.
        recipe: ``compile`` gives the sizes and options that it should have.
        output: An empty directory.
        progress: Is told where the engine is otherwise than predicted.

    Returns:
        What :func:`pipeline.targets.tensorrt.build.build.build_engine` returns; ``adopted``, which
        is true; and ``tools``, what it was built with.

    Raises:
        CompileError: The engine is damaged, of another checkpoint, or built for another recipe.
        UnsupportedError: The GPU it was built on is not the recipe's.
    """
    directory, gpu = given.directory, gpu_of(given.directory)
    check_digests(given)
    check_origin(directory, checkpoint)
    pretrained, wanted = (
        CheckpointConfig.from_directory(checkpoint),
        BuildConfig.from_recipe(recipe),
    )
    prediction = predict_here(recipe, wanted, pretrained, gpu.model, "the engine was built on")
    with _another_remedy():
        result = check_result(directory, pretrained, prediction, TENSORRT_LLM, OTHER_OPTIONS)
    for difference in result.differences:
        progress.note(f"the engine's {difference}")
    warnings = _warnings(directory / LOG_NAME, result.pretrained.world_size)
    for warning in warnings:
        progress.note(f"trtllm-build: {warning}")
    logs = [LOG_NAME] if (directory / LOG_NAME).is_file() else []
    for name in (*given.files, *logs):
        if name != SUMS:  # the store has a list of its own
            link_or_copy(directory / name, output / name)
    return {
        **result.facts(gpu=gpu.name, sm=gpu.sm),
        "warnings": warnings,
        "adopted": True,
        "tools": read_engine_manifest(directory).get("key") or {},
    }


def why_not_tried(directory: Path, machine: Machine) -> str | None:
    """Says what keeps a machine from running an engine; None where nothing does."""
    built_on, ranks = gpu_of(directory), world_size(read_config(directory))
    alike = [gpu for gpu in machine.gpus if (gpu.name, gpu.sm) == (built_on.name, built_on.sm)]
    if len(alike) >= ranks and len(machine.models) == 1:
        return " and ".join(missing_to_build()) or None
    here = machine.problem or ", ".join(f"{gpu.name} (SM {gpu.sm})" for gpu in machine.gpus)
    return f"its {ranks} rank(s) run on {built_on.name} (SM {built_on.sm}) only; here, {here}"


def gpu_of(directory: Path) -> InstalledGpu:
    """Reads from its manifest which GPU an engine was built on.

    Raises:
        CompileError: There is none, or it does not say.
    """
    manifest = read_engine_manifest(directory)
    try:
        gpu = manifest["gpu"]
        return InstalledGpu(0, "", str(gpu["name"]), int(gpu["sm"]), int(gpu["memory_mib"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CompileError(
            f"{MANIFEST} does not say which GPU the engine is for",
            where=str(directory / MANIFEST),
            why=cause(error),
            fix=BUILD,
        ) from error


def check_digests(given: GivenEngine) -> None:
    """Compares an engine's files with the list that whoever built it left beside them, if any.

    Raises:
        CompileError: Names the files that are others or missing.
    """
    path, listed = _listed(given.directory)
    if path.name == SUMS and not listed:
        raise CompileError(
            f"{SUMS} is empty",
            where=str(path),
            why="The script that built the engine lists its files there",
            fix=COPY,
        )
    problems = [
        f"{name} is not the file that was built" if name in listed else f"{name} is not listed"
        for name, digest in given.files.items()
        if listed and name != SUMS and listed.get(name) != digest
    ]
    problems += [f"{name} is missing" for name in sorted(listed.keys() - given.files.keys())]
    if problems:
        raise CompileError(
            f"the engine was changed since it was built, or copied in part: {'; '.join(problems)}",
            where=str(path),
            why="The SHA-256 of its files were taken after the build",
            fix=COPY,
        )


def check_origin(directory: Path, checkpoint: Path) -> None:
    """Refuses an engine whose manifest names another checkpoint.

    Raises:
        CompileError: With both digests.
    """
    built_from = read_engine_manifest(directory).get("checkpoint")
    if built_from is not None and built_from != (wanted := checkpoint_digest(checkpoint)):
        raise CompileError(
            "the engine was built from another checkpoint than this recipe's",
            where=str(directory / MANIFEST),
            why=f"It is of {str(built_from)[:12]}, the recipe's is {wanted[:12]} in {checkpoint}",
            fix=BUILD,
        )


def _warnings(path: Path, ranks: int) -> list[str]:
    """Reads the telling warnings of the build's log; none where there is no log."""
    if not path.is_file():
        return []
    silent = Silent()
    with silent.task("", ranks) as task:
        log = BuildLog(silent, task, ranks)
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            log(line)
    return log.warnings


def _listed(directory: Path) -> tuple[Path, Mapping[str, str]]:
    """The list of an engine's files and digests: the script's, or that of the store it lay in."""
    sums, artifact = directory / SUMS, directory / ARTIFACT_MANIFEST
    if sums.is_file():
        return sums, dict(_read_sums(sums))
    if artifact.is_file():
        files = read_manifest(directory)["files"]
        return artifact, {
            name: entry["sha256"] for name, entry in files.items() if name != LOG_NAME
        }
    return directory, {}


def _read_sums(path: Path) -> Iterator[tuple[str, str]]:
    for line in read_regular(path).decode("utf-8", errors="replace").splitlines():
        match = _SUM.fullmatch(line)
        if match is None:
            raise CompileError(
                f"{SUMS} is not what sha256sum writes",
                where=str(path),
                why=f"It has the line {line[:80]!r}",
                fix=COPY,
            )
        yield match[2], match[1]


@contextmanager
def _another_remedy() -> Iterator[None]:
    """An engine that was built here is built again; of one that was given, another is asked for."""
    try:
        yield
    except CompileError as error:
        error.fix = BUILD
        raise

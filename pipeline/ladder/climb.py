"""Builds every rung of a ladder, measures them side by side and compares them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline._version import __version__
from pipeline.errors import (
    MissingDependencyError,
    PipelineError,
    RecipeError,
    StoreError,
    UnsupportedError,
)
from pipeline.ladder.claims import with_claims
from pipeline.ladder.load import Loaded, Settings, measured_again, measured_before
from pipeline.ladder.recommend import deciding_level, recommend
from pipeline.ladder.row import (
    REPORT,
    as_rung,
    broken,
    read_report,
    refused,
    row_of,
    with_cost,
    with_load,
)
from pipeline.ladder.rungs import Rung, every_format, make_rung, parse_formats
from pipeline.preflight.streams import check_levels
from pipeline.progress import Progress
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.running.planner import SERVED, PlannedStage
from pipeline.running.runner import run_recipe
from pipeline.stages import report as report_stage
from pipeline.stages import repository as repository_stage
from pipeline.store.artifact import Artifact
from pipeline.store.build_dir import BuildDir

SCHEMA = 1
NAME = "compare"
NOT_LOADED: dict[str, Any] = {"measurements": []}
UNFINISHED, FAILED = "UNFINISHED", "FAILED"
# Why a rung is not built, which is no matter of its format.
NOT_THE_RUNG = (MissingDependencyError, StoreError, RecipeError)


@dataclass(frozen=True)
class Wishes:
    """What a ladder is asked for beyond its recipe.

    Attributes:
        formats: Names between commas; None is every one that recipe, model and target take.
        settings: The load; None leaves it out.
        again: Whether the load is measured also where the same servers were measured before.
        price: Instead of ``cost.price_per_hour``.
        utilization: Instead of ``cost.utilization``.
        quality: Whether quality and size are all that is compared, so that nothing is served.
    """

    formats: str | None
    settings: Settings
    again: bool = False
    price: float | None = None
    utilization: float | None = None
    quality: bool = False


def climb(
    path: Path,
    overrides: Sequence[str],
    build: BuildDir,
    wishes: Wishes,
    *,
    progress: Progress,
    on_stage: Callable[[str, PlannedStage, float], None] = lambda _rung, _planned, _seconds: None,
) -> dict[str, Any]:
    """Runs the recipe in every format, loads all servers in turns, and recommends one.

    A rung whose gates close is finished and measured all the same; one that is refused or fails has
    a row that says why.

    Args:
        path: The file of the recipe.
        overrides: As for ``--set``.
        build: Where artifacts and outputs go.
        wishes: The formats, the load and the price.
        progress: Is told what goes on.
        on_stage: Called after each stage with the rung's format, its planned stage and the seconds.

    Returns:
        JSON values: ``schema``, ``name``, ``version``, ``created``, ``machine``, ``notes``,
        ``baseline`` and ``baseline_format``, ``load`` (how and when it was measured), ``cost``,
        ``rungs`` and ``recommendation``.

    Raises:
        RecipeError: The recipe is wrong, or one of its texts cannot be read.
        UsageError: A format is none, or the server does not take so many streams.
        UnsupportedError: There is no format that recipe, model and target take.
        MissingDependencyError: A package is not installed.
        StoreError: The build directory cannot be written.
        ServerError: The servers could not be measured; what was built is cached.
    """
    recipe = load_recipe(path, overrides)
    for notice in recipe.notices:
        progress.note(f"note: {notice}")
    names, notes = (
        parse_formats(wishes.formats, recipe)
        if wishes.formats is not None
        else (every_format(path, overrides, recipe), [])
    )
    for note in notes:
        progress.note(f"note: {note}")
    levels = wishes.settings.with_level(recipe.constraints.concurrency).concurrency
    check_levels(levels, recipe, "--concurrency")
    rungs = [make_rung(name, path, overrides, recipe) for name in names]
    if all(rung.refusal for rung in rungs):
        raise UnsupportedError(
            "none of the formats can be built",
            where=str(path),
            why="; ".join(f"{rung.label}: {rung.refusal}" for rung in rungs),
        )
    rows, repositories = [], {}
    for rung in rungs:
        row, repository = _build(rung, build, progress, on_stage, quality=wishes.quality)
        rows.append(row)
        if repository:
            repositories[rung.name] = repository
    baseline = _baseline(rows, repositories)
    loaded = _load(recipe, build, repositories, baseline, wishes=wishes, progress=progress)
    # The speed that a rung had alone, at another time, has no place beside the others'.
    servers = loaded.servers if loaded else {}
    rows = [with_load(row, servers.get(row["name"], NOT_LOADED)) for row in rows]
    return _compared(recipe, rows, notes=notes, baseline=baseline, loaded=loaded, wishes=wishes)


def results_path(build: BuildDir, recipe_name: str) -> Path:
    """Returns where the comparison of a recipe is kept as JSON."""
    return build.root / recipe_name / f"{NAME}.json"


def _build(
    rung: Rung,
    build: BuildDir,
    progress: Progress,
    on_stage: Callable[[str, PlannedStage, float], None],
    *,
    quality: bool,
) -> tuple[dict[str, Any], Artifact | None]:
    """The row of a rung, and its repository where there is one to be loaded."""
    if rung.recipe is None:
        progress.note(f"{rung.label}: refused. {rung.refusal}")
        return refused(rung), None
    made: dict[str, Artifact] = {}

    def remember(planned: PlannedStage, seconds: float) -> None:
        if planned.artifact:
            made[planned.stage.name] = planned.artifact
        on_stage(rung.label, planned, seconds)

    try:
        run_recipe(
            rung.recipe,
            build,
            progress,
            on_stage=remember,
            past_checks=True,
            without=SERVED if quality else (),
        )
    except NOT_THE_RUNG:
        raise
    except PipelineError as error:
        progress.note(f"{rung.label}: {error}")
        # What it came to before is in the report that such a run leaves, if it left one.
        got_to = _reported(rung, made) or broken(rung)
        ended = {"verdict": UNFINISHED, "headline": str(error), "reasons": [error.what]}
        return {**got_to, **ended}, None
    row = _reported(rung, made)
    assert row
    served = made.get(repository_stage.STAGE.name)
    # What answers wrongly is not worth a time.
    return row, served if row["verdict"] != FAILED else None


def _reported(rung: Rung, made: Mapping[str, Artifact]) -> dict[str, Any] | None:
    """The row of the report that a run made of a rung."""
    written = made.get(report_stage.STAGE.name)
    return as_rung(read_report(written.path / REPORT), rung) if written else None


def _baseline(rows: Sequence[Mapping[str, Any]], served: Mapping[str, Artifact]) -> str | None:
    """The rung that speed-ups are over: 16 bit, or the first where there is none."""
    names = [row["name"] for row in rows if row["name"] in served]
    plain = [row["name"] for row in rows if row["name"] in names and row["weight_bits"] == 16]
    return next(iter([*plain, *names]), None)


def _load(
    recipe: Recipe,
    build: BuildDir,
    repositories: Mapping[str, Artifact],
    baseline: str | None,
    *,
    wishes: Wishes,
    progress: Progress,
) -> Loaded | None:
    if baseline is None:
        return None
    place = results_path(build, recipe.name)
    settings = wishes.settings.with_level(recipe.constraints.concurrency)
    key = settings.key(recipe, repositories, baseline)
    # Two loads at once would each measure the other.
    with build.store.lock(
        "load", "machine", doing=f"load test of {recipe.name}", on_wait=progress.note
    ):
        before = None if wishes.again else measured_before(place, key, repositories)
        if before:
            progress.note(f"load: as measured on {before.created} (--again measures it anew)")
            return before
        return measured_again(
            recipe,
            repositories,
            baseline,
            settings=settings,
            key=key,
            logs=place.parent / "logs",
            progress=progress,
        )


def _compared(
    recipe: Recipe,
    rows: Sequence[Mapping[str, Any]],
    *,
    notes: Sequence[str],
    baseline: str | None,
    loaded: Loaded | None,
    wishes: Wishes,
) -> dict[str, Any]:
    price = wishes.price if wishes.price is not None else recipe.cost.price_per_hour
    share = wishes.utilization if wishes.utilization is not None else recipe.cost.utilization
    level = deciding_level(rows, recipe.constraints.concurrency)
    rungs = [with_claims(with_cost(row, price, share, level)) for row in rows]
    base = next((row["format"] for row in rows if row["name"] == baseline), None)
    return {
        "schema": SCHEMA,
        "name": recipe.name,
        "version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": loaded.machine if loaded else None,
        "model": recipe.model.source,
        "notes": list(notes),
        "baseline": baseline,
        "baseline_format": base,
        "load": loaded.as_dict() if loaded else None,
        "cost": None
        if price is None
        else {
            "currency": recipe.cost.currency,
            "price_per_hour": price,
            "utilization": share,
            "concurrency": level,
        },
        "constraints": recipe.constraints.model_dump(mode="json"),
        "rungs": rungs,
        "recommendation": recommend(rungs, recipe.constraints, level, baseline),
    }


def finished(reports: Sequence[Path]) -> dict[str, Any]:
    """Compares builds that are finished, each with the numbers of its own report.

    Their speeds were measured one by one, so there is neither a ratio nor a recommendation.

    Args:
        reports: ``report.json`` files.

    Returns:
        The same keys as of :func:`climb`.

    Raises:
        UsageError: A path is not a report.
    """
    contents = [read_report(path) for path in reports]
    costs = [content["cost"] for content in contents if content["cost"]]
    return {
        "schema": SCHEMA,
        "name": None,
        "version": __version__,
        "created": max((content["created"] for content in contents), default=None),
        "machine": None,
        "model": None,
        "notes": [],
        "baseline": None,
        "baseline_format": None,
        "load": None,
        "cost": {"currency": costs[0]["currency"]} if costs else None,
        "constraints": None,
        "rungs": [row_of(content) for content in contents],
        "recommendation": None,
    }


def as_json(comparison: Mapping[str, Any]) -> str:
    """Writes a comparison as JSON, with numbers that every parser takes."""
    return json.dumps(comparison, indent=2, ensure_ascii=False, allow_nan=False)

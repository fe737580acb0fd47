"""Commands about recipes and what they build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import BuildDirOption, Output, RecipeArgument, SetOption
from pipeline.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


def run(
    *,
    recipe: RecipeArgument,
    overrides: SetOption = None,
    build_dir: BuildDirOption = Path("build"),
    force: Annotated[
        list[str] | None,
        typer.Option("--force", metavar="STAGE", help="Run a stage even if cached."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")
    ] = None,
    output: Output,
) -> None:
    """Run a recipe: every stage that is not cached, then deploy repository and report."""
    from pipeline.console import print_json, progress_for, stage_dict, stage_line
    from pipeline.planner import PlannedStage, stages_for
    from pipeline.runner import BuildDir, run_recipe

    loaded = _recipe(recipe, overrides)
    known = [stage.name for stage in stages_for(loaded)]
    for name in [*(force or []), *([until] if until else [])]:
        if name not in known:
            raise UsageError(f"there is no stage {name}", fix=f"Stages: {', '.join(known)}")
    lines = []

    def on_stage(line: PlannedStage, seconds: float) -> None:
        lines.append(stage_dict(line, seconds))
        if not output.json:
            print(stage_line(line, seconds), flush=True)

    result = run_recipe(
        loaded,
        BuildDir(build_dir),
        progress_for(output.json),
        force=frozenset(force or ()),
        until=until,
        on_stage=on_stage,
    )
    if output.json:
        print_json({"recipe": loaded.name, "outputs": str(result.outputs), "stages": lines})
        return
    for name in ("repository", "report"):
        if name in result.stages:
            shown = "report.html" if name == "report" else name
            print(f"{name + ':':<12}{result.outputs / shown}")


def plan(
    *,
    recipe: RecipeArgument,
    overrides: SetOption = None,
    build_dir: BuildDirOption = Path("build"),
    output: Output,
) -> None:
    """Show what a run would do, and why, without doing it."""
    from dataclasses import asdict

    from pipeline.console import print_json, stage_dict, stage_line
    from pipeline.end_ids import read_end_ids
    from pipeline.findings import finding_lines
    from pipeline.planner import build_plan, read_lock
    from pipeline.preflight import check_hub_model, check_local_model, check_model, explain
    from pipeline.remarks import remarks
    from pipeline.runner import BuildDir
    from pipeline.stages.source import local_directory

    loaded = _recipe(recipe, overrides)
    build = BuildDir(build_dir)
    facts = check_local_model(loaded)
    store = build.store
    planned = build_plan(loaded, store, read_lock(build.outputs(loaded) / "lock.json"))
    store.memo.save()
    source = planned[0].artifact
    if facts is None:
        facts = check_model(loaded, source.path) if source else check_hub_model(loaded)
    engine = explain(loaded, facts)
    directory = source.path if source else local_directory(loaded)
    end_ids = read_end_ids(directory, loaded.model.source) if directory else None
    found = remarks(loaded, facts, directory)
    obstacle = _obstacle(loaded)
    if output.json:
        print_json(
            {
                "recipe": loaded.name,
                "stages": [stage_dict(line) for line in planned],
                "end_ids": end_ids.as_dict() if end_ids else None,
                "findings": [asdict(finding) for finding in found],
                "engine": engine.as_dict() if engine else None,
                "obstacle": obstacle.as_dict() if obstacle else None,
            }
        )
        return
    print("\n".join(stage_line(line) for line in planned))
    named = end_ids.lines() if end_ids else ["end ids: read when the model is fetched"]
    print("\n".join(["", *named, *finding_lines(found)]))
    if engine:
        print("\n" + "\n".join(engine.lines()))
    if obstacle:
        print(f"\nobstacle: a run would stop at once: {obstacle}")


def _obstacle(recipe: Recipe) -> RecipeError | None:
    """A text that is missing here, which is no reason not to plan for another machine."""
    from pipeline.text import check_texts

    try:
        check_texts(recipe)
    except RecipeError as error:
        return error
    return None


def compare(
    *,
    reports: Annotated[
        list[Path],
        typer.Argument(help="report.json files, folders that hold one, or a build directory."),
    ],
    output: Output,
) -> None:
    """Put the reports of several recipes side by side."""
    from pipeline.compare import comparison, print_side_by_side
    from pipeline.console import print_json

    rows = comparison(reports)
    if output.json:
        print_json(rows)
    else:
        print_side_by_side(rows)


def doctor(output: Output) -> None:
    """Say what is installed here, what can run, and what to do about the rest."""
    from dataclasses import asdict

    from pipeline.console import print_json
    from pipeline.toolchain import diagnose

    findings = diagnose()
    if output.json:
        print_json([asdict(finding) for finding in findings])
        return
    for finding in findings:
        mark = "ok " if finding.ok else "-- "
        advice = "" if finding.ok else f"  {finding.advice}"
        print(f"{mark} {finding.name:<16} {finding.value:<14}{advice}".rstrip())


def _recipe(path: Path, overrides: list[str] | None) -> Recipe:
    from pipeline.recipe_file import load_recipe

    return load_recipe(path, overrides or ())

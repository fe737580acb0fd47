"""Commands about recipes and what they build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import BuildDirOption, Output, RecipeArgument, SetOption


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
    from pipeline import api
    from pipeline.console import print_json, progress_for, stage_dict, stage_line
    from pipeline.planner import PlannedStage, stages_for

    loaded = api.load_recipe(recipe, overrides or ())
    lines = []

    def on_stage(line: PlannedStage, seconds: float) -> None:
        lines.append(stage_dict(line, seconds))
        if not output.json:
            print(stage_line(line, seconds), flush=True)

    result = api.run(
        loaded,
        build_dir,
        force=force or (),
        until=until,
        progress=progress_for(output.json),
        on_stage=on_stage,
    )
    if output.json:
        deployed = {name: str(path) for name, path in result.deployed.items()}
        print_json(
            {
                "recipe": loaded.name,
                "outputs": str(result.outputs),
                "deployed": deployed,
                "stages": lines,
            }
        )
        return
    served = any(stage.name == "repository" for stage in stages_for(loaded))
    if not served and "compile" in result.stages:
        # An export is all that such a target has to show, and it lies in the store.
        compiled = result.stages["compile"].artifact
        if compiled:
            print(f"{'engine:':<12}{compiled.path}")
    for name, path in result.deployed.items():
        print(f"{name + ':':<12}{path}")


def plan(
    *,
    recipe: RecipeArgument,
    overrides: SetOption = None,
    build_dir: BuildDirOption = Path("build"),
    output: Output,
) -> None:
    """Show what a run would do, and why, without doing it."""
    from dataclasses import asdict

    from pipeline import api
    from pipeline.console import print_json, stage_dict, stage_line
    from pipeline.findings import finding_lines

    loaded = api.load_recipe(recipe, overrides or ())
    found = api.plan(loaded, build_dir)
    end_ids, engine, obstacle = found.end_ids, found.engine, found.obstacle
    if output.json:
        print_json(
            {
                "recipe": loaded.name,
                "stages": [stage_dict(line) for line in found.stages],
                "end_ids": end_ids.as_dict() if end_ids else None,
                "findings": [asdict(finding) for finding in found.findings],
                "engine": dict(engine.values) if engine else None,
                "obstacle": obstacle.as_dict() if obstacle else None,
            }
        )
        return
    print("\n".join(stage_line(line) for line in found.stages))
    named = end_ids.lines() if end_ids else ["end ids: read when the model is fetched"]
    print("\n".join(["", *named, *finding_lines(found.findings)]))
    if engine:
        print("\n" + "\n".join(engine.lines))
    if obstacle:
        print(f"\nobstacle: a run would stop at once: {obstacle}")


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

    from pipeline.commands.doctor import diagnose
    from pipeline.console import print_json

    findings = diagnose()
    if output.json:
        print_json([asdict(finding) for finding in findings])
        return
    for finding in findings:
        mark = "ok " if finding.ok else "-- "
        advice = "" if finding.ok else f"  {finding.advice}"
        print(f"{mark} {finding.name:<16} {finding.value:<14}{advice}".rstrip())

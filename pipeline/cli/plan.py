"""The command ``plan``."""

from __future__ import annotations

from pathlib import Path

from pipeline.cli.options import BuildDirOption, Output, RecipeArgument, SetOption


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
    from pipeline.cli.console import print_json, stage_dict, stage_line
    from pipeline.targets.findings import finding_lines

    loaded = api.load_recipe(recipe, overrides or ())
    found = api.plan(loaded, build_dir)
    end_ids, engine, obstacle = found.end_ids, found.engine, found.obstacle
    if output.json:
        print_json(
            {
                "recipe": loaded.name,
                "stages": [stage_dict(planned) for planned in found.stages],
                "end_ids": end_ids.as_dict() if end_ids else None,
                "findings": [asdict(finding) for finding in found.findings],
                "engine": dict(engine.values) if engine else None,
                "obstacle": obstacle.as_dict() if obstacle else None,
            }
        )
        return
    print("\n".join(stage_line(planned) for planned in found.stages))
    named = end_ids.lines() if end_ids else ["end ids: read when the model is fetched"]
    print("\n".join(["", *named, *finding_lines(found.findings)]))
    if engine:
        print("\n" + "\n".join(engine.lines))
    if obstacle:
        print(f"\nobstacle: a run would stop at once: {obstacle}")

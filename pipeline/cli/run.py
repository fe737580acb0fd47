"""The command ``run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import complete
from pipeline.cli.options import (
    BuildDirOption,
    DirectoryOption,
    EnvOption,
    Output,
    RecipeArgument,
    SetOption,
    new_file,
)
from pipeline.errors import PipelineError


def run(
    *,
    recipe: RecipeArgument,
    overrides: SetOption = None,
    directory: DirectoryOption = None,
    build_dir: BuildDirOption = Path("build"),
    force: Annotated[
        list[str] | None,
        typer.Option(
            "--force",
            metavar="STAGE",
            help="Run a stage even if cached; repeatable. Stages: {stages}.",
            autocompletion=complete.stages,
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            metavar="STAGE",
            help="Stop after this stage.",
            autocompletion=complete.stages,
        ),
    ] = None,
    engine: Annotated[
        Path | None,
        typer.Option(
            "--engine",
            metavar="DIR",
            help="Go on with an engine that the script of plan --script built elsewhere.",
        ),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(
            "--junit",
            metavar="FILE",
            help="Also write JUnit XML of the conformance checks here, or why none were made.",
            callback=new_file,
        ),
    ] = None,
    env: EnvOption = None,  # noqa: ARG001  its callback has done it
    output: Output,
) -> None:
    """Run a recipe: every stage that is not cached, then deploy repository and report."""
    from pipeline import api
    from pipeline.cli.closing import Closing
    from pipeline.cli.console import fitted, open_recipe, print_json, progress_for
    from pipeline.cli.run_junit import junit_of_run
    from pipeline.cli.stage_lines import RESULT, stage_dict, stage_line
    from pipeline.running.planner import PlannedStage
    from pipeline.store.build_dir import BuildDir
    from pipeline.targets import get_target

    loaded = open_recipe(recipe, overrides, directory, quiet=output.quiet)
    stages = []
    closing = Closing()

    def on_stage(planned: PlannedStage, seconds: float) -> None:
        stages.append(stage_dict(planned, seconds))
        closing.look(planned)
        checks.look(planned)
        if not (output.json or output.quiet):
            lines = stage_line(planned, seconds, verbose=output.verbose).splitlines()
            print("\n".join(fitted(lines, sys.stdout, RESULT)), flush=True)

    try:
        with junit_of_run(junit, loaded.name) as checks:
            result = api.run(
                loaded,
                build_dir,
                force=force or (),
                until=until,
                engine=engine,
                progress=progress_for(output.json, output.verbosity),
                on_stage=on_stage,
            )
    except PipelineError as error:
        if output.json:
            outputs = str(BuildDir(build_dir).outputs(loaded))
            about = {"recipe": loaded.name, "outputs": outputs, "stages": stages}
            error.found = {**error.found, **about, **closing.values()}
        else:
            closing.print(BuildDir(build_dir).outputs(loaded), verdict_alone=output.quiet)
        raise
    export = result.deployed.get("compile")
    steps = list(get_target(loaded.compile.target).next_steps(loaded, export)) if export else []
    if output.json:
        deployed = {name: str(path) for name, path in result.deployed.items()}
        print_json(
            {
                "recipe": loaded.name,
                "outputs": str(result.outputs),
                "deployed": deployed,
                "stages": stages,
                **({"next_steps": steps} if steps else {}),
                **closing.values(),
            }
        )
        return
    told = closing.print(
        result.outputs,
        result.deployed.get("repository"),
        export=export,
        steps=steps,
        verdict_alone=output.quiet,
    )
    if not (output.quiet or told):
        for name, path in result.deployed.items():
            print(f"{name + ':':<13}{path}")

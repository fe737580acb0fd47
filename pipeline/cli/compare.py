"""The command ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import complete
from pipeline.cli.options import (
    BuildDirOption,
    DirectoryOption,
    Output,
    PriceOption,
    SetOption,
    UtilizationOption,
)
from pipeline.formats import FORMATS


def compare(
    *,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECIPE|BUILD",
            help="A recipe, to build and measure it in several formats; or finished builds: "
            "report.json files, folders that hold one, or a build directory.",
        ),
    ],
    formats: Annotated[
        str | None,
        typer.Option(
            metavar="F,F,...",
            help=f"Formats for the recipe, with commas between them: {', '.join(FORMATS)}, or "
            "what a target rounds to itself, such as q4_k_m; by default every format that model "
            "and target take.",
            autocompletion=complete.several_formats,
        ),
    ] = None,
    overrides: SetOption = None,
    build_dir: BuildDirOption = Path("build"),
    concurrency: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Streams kept open together; 1,8,32 by default."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Load of each server, at least; 30 by default.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure the load anew, whatever was measured before.")
    ] = False,
    quality: Annotated[
        bool,
        typer.Option("--quality", help="Compare quality and size alone; nothing is served."),
    ] = False,
    price: PriceOption = None,
    utilization: UtilizationOption = None,
    history: Annotated[
        bool, typer.Option("--history", help="Show the runs of one build, and what changed.")
    ] = False,
    form: Annotated[
        str | None, typer.Option("--format", metavar="text|md|csv|html|json", help="What to print.")
    ] = None,
    directory: DirectoryOption = None,  # noqa: ARG001  its callback has done it
    output: Output,
) -> None:
    """Compare the formats of a recipe, finished builds, or the runs of one build."""
    from pipeline.cli import comparison

    form = comparison.chosen_form(form, json_output=output.json)
    recipe = comparison.recipe_among(paths)
    only_ladder = {
        "--formats": formats,
        "--set": overrides,
        "--build-dir": build_dir if build_dir != Path("build") else None,
        "--concurrency": concurrency,
        "--seconds": seconds,
        "--again": again or None,
        "--quality": quality or None,
        "--price": price,
        "--utilization": utilization,
    }
    if history or recipe is None:
        comparison.refuse_options(only_ladder, "history" if history else "finished builds")
    if history:
        comparison.show_history(paths, form)
        return
    if recipe is None:
        comparison.show_finished(paths, form)
        return
    wishes = comparison.wishes(
        formats=formats,
        concurrency=concurrency,
        seconds=seconds,
        again=again,
        quality=quality,
        price=price,
        utilization=utilization,
    )
    if not comparison.show_ladder(
        recipe, overrides or (), build_dir, wishes, form=form, verbosity=output.verbosity
    ):
        from pipeline.errors import QualityGateError

        raise typer.Exit(QualityGateError.exit_code)

"""What ``compare`` does with its arguments, and what it prints."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.console import print_json, progress_for
from pipeline.errors import UsageError
from pipeline.ladder.climb import NAME, Wishes, as_json, climb, finished, results_path
from pipeline.ladder.load import Settings
from pipeline.ladder.output import print_comparison, print_history, print_paragraph
from pipeline.ladder.render import how, render_csv, render_html, render_markdown
from pipeline.ladder.row import REPORT
from pipeline.store.build_dir import BuildDir
from pipeline.store.files import write_atomically

if TYPE_CHECKING:
    from pipeline.running.planner import PlannedStage

DAY = 24 * 60 * 60
FORMS = ("text", "md", "csv", "html", "json")
_RENDERED = {"md": render_markdown, "csv": render_csv, "html": render_html, "json": as_json}


def chosen_form(form: str | None, *, json_output: bool) -> str:
    """Returns what is to be printed.

    Args:
        form: The word behind ``--format``.
        json_output: Whether ``--json`` was given.

    Raises:
        UsageError: It is none of :data:`FORMS`, or the two contradict each other.
    """
    if form is None:
        return "json" if json_output else "text"
    if form not in FORMS:
        hint = " Formats of a recipe's ladder go behind --formats." if "," in form else ""
        raise UsageError(f"--format {form} is none", fix=f"Choose one of {', '.join(FORMS)}.{hint}")
    if json_output and form != "json":
        raise UsageError(f"--json and --format {form} exclude each other", fix="Give one of them")
    return form


def recipe_among(paths: Sequence[Path]) -> Path | None:
    """Returns the recipe that is to be compared in several formats; None for finished builds.

    A folder and a file with JSON are builds, every other file is a recipe.

    Raises:
        UsageError: A recipe stands beside something else.
    """
    recipes = [path for path in paths if _is_recipe(path)]
    if recipes and len(paths) > 1:
        raise UsageError(
            "a recipe is compared in several formats, alone",
            where=str(recipes[0]),
            fix=f"trtllm-pipeline compare {recipes[0]} --formats F,F; or name the build/<recipe "
            "name> folders of several finished recipes",
        )
    return recipes[0] if recipes else None


def refuse_options(options: Mapping[str, object], instead: str) -> None:
    """Refuses options that only a recipe's ladder has.

    Raises:
        UsageError: One was given.
    """
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(
            f"{' and '.join(given)} {'are' if len(given) > 1 else 'is'} for a recipe, and this "
            f"compares {instead}",
            fix="Name a recipe, or leave them out",
        )


def wishes(
    *,
    formats: str | None,
    concurrency: str | None,
    seconds: float | None,
    again: bool,
    quality: bool,
    price: float | None,
    utilization: float | None,
) -> Wishes:
    """Makes of options what a ladder is asked for.

    Raises:
        UsageError: A number is not one, or not in its range.
    """
    settings = Settings()
    if concurrency is not None:
        settings = Settings(_levels(concurrency), settings.seconds)
    if seconds is not None:
        _positive("--seconds", seconds)
        if seconds > DAY:
            # The requests of a round are made before it, and would not fit in memory.
            raise UsageError(
                f"--seconds must be at most {DAY}, a day, not {seconds:g}", fix="Write --seconds 30"
            )
        settings = Settings(settings.concurrency, seconds)
    if price is not None:
        _positive("--price", price)
    if utilization is not None and not 0 < utilization <= 1:
        raise UsageError(
            f"--utilization is a share above 0 and at most 1, not {utilization:g}",
            fix="Write 0.5 for half of the time",
        )
    return Wishes(formats, settings, again, price, utilization, quality)


def show_ladder(
    recipe: Path,
    overrides: Sequence[str],
    build_dir: Path,
    asked: Wishes,
    *,
    form: str,
    verbosity: int,
) -> bool:
    """Builds and measures every rung, keeps the comparison beside the outputs and prints it.

    Args:
        recipe: The recipe.
        overrides: Each ``--set``.
        build_dir: Where the store and the outputs go.
        asked: What else was asked for.
        form: One of :data:`FORMS`.
        verbosity: Below 0 the comparison alone is printed.

    Returns:
        Whether a format qualifies.

    Raises:
        PipelineError: See :func:`pipeline.ladder.climb.climb`.
    """
    build = BuildDir(build_dir)

    def on_stage(rung: str, planned: PlannedStage, seconds: float) -> None:
        from pipeline.cli.stage_lines import stage_line

        if form == "text" and verbosity >= 0:
            line = stage_line(planned, seconds, verbose=verbosity > 0)
            print(f"{rung:<9} {line}", flush=True)

    progress = progress_for(form != "text", verbosity)
    comparison = climb(recipe, overrides, build, asked, progress=progress, on_stage=on_stage)
    place = results_path(build, comparison["name"])
    with build.store.writing():
        for kind in ("json", "md", "html"):
            text = _RENDERED[kind](comparison)
            write_atomically(place.with_suffix(f".{kind}"), f"{text.rstrip()}\n".encode())
    shown = form == "text" and verbosity >= 0
    if shown:
        print()
    _print(comparison, form)
    if shown:
        print(f"{NAME + ':':<12}{place.with_suffix('.html')} (and .md, .json)")
    return comparison["recommendation"]["name"] is not None


def show_finished(paths: Sequence[Path], form: str) -> None:
    """Prints the reports of finished builds side by side.

    Raises:
        UsageError: A path is not a report.
    """
    _print(finished([report for path in paths for report in _reports(path)]), form)


def show_history(paths: Sequence[Path], form: str) -> None:
    """Prints the runs of one build and what changed from one to the next.

    Raises:
        UsageError: There are several paths, or no history; or it is to be printed as HTML.
    """
    from pipeline.ladder.trend import remarks, table_of, trend

    if len(paths) > 1:
        raise UsageError("--history is of one build", fix="Name one build/<recipe name> folder")
    if form == "html":
        raise UsageError("a history is no HTML page", fix="Choose text, md, csv or json")
    history = trend(paths[0])
    columns, cells = table_of(history)
    if form == "json":
        print_json(history)
    elif form == "csv":
        import csv

        csv.writer(sys.stdout, lineterminator="\n").writerows([columns, *cells])
    elif form == "md":
        for row in (columns, ["---"] * len(columns), *cells):
            print(f"| {' | '.join(row)} |")
        print("".join(f"\n- {line}" for line in remarks(history)))
    else:
        print_history(columns, cells)
        print()
        for line in remarks(history):
            print_paragraph(line, "  ")


def _print(comparison: Mapping[str, Any], form: str) -> None:
    if form == "text":
        print_comparison(comparison)
        print_paragraph(how(comparison))
    elif form == "json":
        print_json(comparison)
    else:
        print(_RENDERED[form](comparison), end="")


def _is_recipe(path: Path) -> bool:
    if path.is_dir():
        return False
    if not path.is_file():
        return path.suffix in (".yaml", ".yml")
    try:
        with path.open(encoding="utf-8") as file:
            return not file.read(200).lstrip().startswith("{")
    except (OSError, UnicodeDecodeError):
        return False


def _reports(path: Path) -> Iterator[Path]:
    own = path / REPORT
    if not path.is_dir():
        yield path
    elif own.is_file():
        yield own
    else:
        yield from sorted(path.glob(f"*/{REPORT}")) or [own]


def _levels(text: str) -> tuple[int, ...]:
    try:
        levels = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError as error:
        raise UsageError(
            f"--concurrency {text} is no list of numbers", fix="Write --concurrency 1,8,32"
        ) from error
    if levels[0] < 1:
        raise UsageError("--concurrency must be at least 1", fix="Write --concurrency 1,8,32")
    return levels


def _positive(option: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise UsageError(f"{option} must be above 0, not {value:g}", fix=f"Write {option} 30")

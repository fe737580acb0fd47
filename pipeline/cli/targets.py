"""The command ``targets``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import complete
from pipeline.cli.options import DirectoryOption, Output, SetOption
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.models.facts import ModelFacts
    from pipeline.preflight.capability import Cell
    from pipeline.recipe.schema import Recipe

BEGIN, END = "<!-- targets: begin, by make docs -->", "<!-- targets: end -->"
"""What stands around the table in a page."""


def targets(
    *,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE|MODEL]",
            help="A recipe, a model's folder or its id on the Hub; without one, an ordinary model.",
            autocompletion=complete.recipes,
        ),
    ] = None,
    overrides: SetOption = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of README.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put that table between the markers of a page."),
    ] = None,
    directory: DirectoryOption = None,  # noqa: ARG001  its callback has done it
    output: Output,
) -> None:
    """Show which format goes with which target, and why not."""
    from pipeline.cli.console import print_json
    from pipeline.preflight.capability import capability, notes

    if output.json and (markdown or into):
        raise UsageError("--markdown does not print JSON", fix="Leave --markdown or --json out")
    recipe, facts, words = _subject(subject, overrides or ())
    rows = capability(recipe, facts)
    if output.json:
        print_json({"model": words, "cells": [cell.as_dict() for row in rows for cell in row]})
    elif into is not None:
        _put(into, "\n".join(markdown_lines(rows)))
    elif markdown:
        print("\n".join(markdown_lines(rows)))
    else:
        _print(rows, words, notes(rows))


def _subject(subject: str | None, overrides: Sequence[str]) -> tuple[Recipe, ModelFacts, str]:
    """What is asked about: a recipe, the facts of its model, and what to call it."""
    from pipeline.preflight.capability import usual_facts, usual_recipe
    from pipeline.recipe.compile import CompileSection
    from pipeline.recipe.file import load_recipe
    from pipeline.scaffold.choices import longest_sequence
    from pipeline.source.hub import hub_config
    from pipeline.source.local import local_directory
    from pipeline.source.snapshot import facts_of

    if subject is None:
        if overrides:
            raise UsageError("--set is for a recipe", fix="Name a recipe, or leave it out")
        return usual_recipe(), usual_facts(), "an ordinary Llama"
    if Path(subject).is_file():
        recipe = load_recipe(Path(subject), overrides)
    else:
        usual = usual_recipe()
        named = usual.model.model_copy(update={"source": subject})
        recipe = usual.model_copy(update={"model": named})
    facts = facts_of(local_directory(recipe) or hub_config(recipe))
    if not Path(subject).is_file():
        # What a recipe of it would say, so that no length stands between formats and targets.
        length = min(recipe.compile.max_seq_len, longest_sequence(facts))
        sizes = {"max_seq_len": length, "max_input_len": max(length * 3 // 4, 1)}
        compiled = CompileSection.model_validate(sizes)
        recipe = recipe.model_copy(update={"compile": compiled})
    return recipe, facts, subject


def _print(
    rows: Sequence[Sequence[Cell]], words: str, refused: Sequence[tuple[str, Sequence[Cell]]]
) -> None:
    from pipeline.cli.console import fitted
    from pipeline.preflight.capability import folded
    from pipeline.tables import COLOURS, print_table

    names = [cell.target for cell in rows[0]]
    table = [[_row_name(labels), *(cell.words for cell in cells)] for labels, cells in folded(rows)]
    styles = {"no": COLOURS["bad"], "yes": COLOURS["good"]}
    title = f"formats and targets for {words}"
    print_table(["format", *names], table, title=title, styles=styles, whole=range(len(names) + 1))
    if any(cell.needs for row in rows for cell in row):
        print("portable: with quantize.portable: true")
    for reason, cells in refused:
        print()
        print(_places(cells))
        for line in fitted([f"  {reason}"], sys.stdout, 2):
            print(line)


def _row_name(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{labels[0]}, {len(labels) - 1} more"


def _places(cells: Sequence[Cell]) -> str:
    by_target: dict[str, list[str]] = {}
    for cell in cells:
        by_target.setdefault(cell.target, []).append(cell.format)
    return "; ".join(f"{', '.join(formats)} on {name}" for name, formats in by_target.items())


def markdown_lines(rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    """Writes the table for a page: each refusal has the number of its reason below.

    Args:
        rows: From :func:`pipeline.preflight.capability.capability`.
    """
    from pipeline.preflight.capability import folded, notes

    reasons = notes(rows)
    numbers = {
        (cell.format, cell.target): number
        for number, (_, cells) in enumerate(reasons, 1)
        for cell in cells
    }
    yield "| format | " + " | ".join(cell.target for cell in rows[0]) + " |"
    yield "|---|" + "---|" * len(rows[0])
    for labels, cells in folded(rows):
        shown = []
        for cell in cells:
            number = numbers.get((cell.format, cell.target))
            shown.append(f"no ({number})" if number else cell.words)
        yield f"| {', '.join(labels)} | " + " | ".join(shown) + " |"
    yield ""
    yield "`portable` is `quantize.portable: true` in the recipe."
    yield ""
    yield "<details><summary>Why not</summary>"
    yield ""
    for number, (reason, _) in enumerate(reasons, 1):
        yield f"{number}. {reason}"
    yield ""
    yield "</details>"


def _put(page: Path, table: str) -> None:
    from pipeline.store.files import write_atomically

    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "the page cannot be read",
            where=str(page),
            why=getattr(error, "strerror", None) or "It is no text in UTF-8",
            fix="Name a page in Markdown",
        ) from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError(
            "the page has no place for the table",
            where=str(page),
            fix=f"Write {BEGIN} and {END} on lines of their own",
        )
    write_atomically(page, f"{before}{BEGIN}\n\n{table}\n\n{END}{after}".encode())

"""The rungs of a ladder: one recipe for each format, made of the one that is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import MissingDependencyError, RecipeError, UnsupportedError, UsageError
from pipeline.formats import FORMATS, Format, FormatName, canonical_format, suggested_format
from pipeline.preflight.model_checks import check_local_model
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe


@dataclass(frozen=True)
class Rung:
    """One format of a ladder.

    Attributes:
        format: Its row.
        name: The output folder below the build directory, and the column's name for programs.
        recipe: What makes it; None where recipe and format do not go together.
        refusal: Why there is no such recipe, or why model and target do not take it.
    """

    format: Format
    name: str
    recipe: Recipe | None = None
    refusal: str | None = None


def parse_formats(text: str, recipe: Recipe) -> tuple[list[FormatName], list[str]]:
    """Reads a list of formats, in any spelling that a recipe may use and with dashes too.

    One unquantized format stands for 16 bit, which is the recipe's own dtype: a bfloat16 model that
    is made float16 for the comparison would be compared with something that nobody serves. Who
    names both gets both.

    Args:
        text: Names between commas.
        recipe: Says the dtype.

    Returns:
        The formats, each once and in their order, and what there is to say about them.

    Raises:
        UsageError: A name is no format, or there is none.
    """
    wanted: list[FormatName] = []
    for word in text.split(","):
        if word.strip():
            name = _format(word.strip())
            if name not in wanted:
                wanted.append(name)
    if not wanted:
        raise UsageError(
            "--formats names no format", fix=f"Formats: {', '.join(FORMATS)}, between commas"
        )
    plain = [name for name in wanted if not FORMATS[name].quantizes]
    own: FormatName = recipe.dtype
    if len(plain) == 1 and plain[0] != own:
        note = (
            f"16 bit is {own} here, the recipe's model.dtype; {plain[0]} was asked for "
            f"(name both to have both)"
        )
        return [own if name == plain[0] else name for name in wanted], [note]
    return wanted, []


def every_format(path: Path, overrides: Sequence[str], recipe: Recipe) -> list[FormatName]:
    """Lists 16 bit and every quantized format that recipe, model and target take."""
    own: FormatName = recipe.dtype
    quantized = (name for name, row in FORMATS.items() if row.quantizes)
    rungs = (make_rung(name, path, overrides, recipe) for name in quantized)
    return [own, *(rung.format.name for rung in rungs if not rung.refusal)]


def make_rung(name: FormatName, path: Path, overrides: Sequence[str], recipe: Recipe) -> Rung:
    """Makes the recipe of one format, and looks whether model and target take it.

    Args:
        name: The format.
        path: The file of the recipe.
        overrides: As for ``--set``.
        recipe: What the two say together.

    Raises:
        MissingDependencyError: A package is not installed that looking takes.
        SourceError: The model is damaged.
    """
    row = FORMATS[name]
    folder = f"{recipe.name}-{name}"
    changes = [
        f"name={folder}",
        f"quantize.format={name}",
        # Also where the recipe leaves it to its own format to say.
        f"model.dtype={row.dtype or recipe.dtype}",
        *(() if row.quantizes else ("quantize.kv_cache=null",)),
        *_search(row, recipe),
    ]
    try:
        made = load_recipe(path, [*overrides, *changes])
        check_local_model(made)
    except MissingDependencyError:
        raise
    except (RecipeError, UnsupportedError) as error:
        return Rung(row, folder, None, _reason(error))
    return Rung(row, folder, made)


def _search(row: Format, recipe: Recipe) -> list[str]:
    """What becomes of the recipe's search, which is about the value that its own format has."""
    search = recipe.quantize.search
    if search is None:
        return []
    if row.searched is None:
        return ["quantize.search=null"]
    own = FORMATS[recipe.quantize.format].searched
    return [] if row.searched == own else ["quantize.search.candidates=null"]


def _reason(error: RecipeError | UnsupportedError) -> str:
    """What an error says, without the place: that is an override that the user did not write."""
    parts = (error.what, error.why, error.fix)
    return ". ".join(part.strip().rstrip(".") for part in parts if part) + "."


def _format(word: str) -> FormatName:
    name = word.lower().replace("-", "_")
    try:
        known = canonical_format(name)
    except ValueError as error:
        raise UsageError(
            f"{word} is not taken",
            where="--formats",
            why=str(error).partition(": ")[2].partition("; ")[0],
            fix=f"Formats: {', '.join(FORMATS)}",
        ) from error
    if known in FORMATS:
        return known
    close = suggested_format(name)
    guess = f"Did you mean {close}? " if close else ""
    raise UsageError(
        f"{word!r} is no format",
        where="--formats",
        fix=f"{guess}Formats: {', '.join(FORMATS)}",
    )

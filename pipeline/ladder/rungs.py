"""The rungs of a ladder: one recipe for each format, made of the one that is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import MissingDependencyError, RecipeError, UnsupportedError, UsageError
from pipeline.formats import FORMATS, Format, FormatName, canonical_format, suggested_format
from pipeline.preflight.model_checks import check_local_model
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.targets import own_types
from pipeline.targets.base import OwnType

SIXTEEN = 16


@dataclass(frozen=True)
class Rung:
    """One format of a ladder: of a checkpoint, or one that a target rounds to itself.

    Attributes:
        format: The row of its checkpoint.
        label: What it is called: the format, or the target's own type.
        engine: The target that compiles and runs it.
        own: The target's own type; None where the checkpoint is what is compared.
        name: The output folder below the build directory, and the column's name for programs.
        recipe: What makes it; None where recipe and format do not go together.
        refusal: Why there is no such recipe, or why model and target do not take it.
    """

    format: Format
    label: str
    engine: str
    name: str
    own: OwnType | None = None
    recipe: Recipe | None = None
    refusal: str | None = None


def parse_formats(text: str, recipe: Recipe) -> tuple[list[str], list[str]]:
    """Reads a list of formats, in any spelling that a recipe may use and with dashes too.

    One unquantized format stands for 16 bit, which is the recipe's own dtype: a bfloat16 model that
    is made float16 for the comparison would be compared with something that nobody serves. Who
    names both gets both.

    Args:
        text: Names between commas.
        recipe: Says the dtype.

    Returns:
        The names, each once and in their order, and what there is to say about them. A name is a
        format, or what a target rounds to itself.

    Raises:
        UsageError: A name is no format, or there is none.
    """
    wanted: list[str] = []
    for word in text.split(","):
        if word.strip():
            name = _format(word.strip())
            if name not in wanted:
                wanted.append(name)
    if not wanted:
        raise UsageError(
            "--formats names no format", fix=f"Formats: {', '.join(FORMATS)}, between commas"
        )
    plain = [row.name for row in FORMATS.values() if row.name in wanted and _is_16_bit(row)]
    own = _sixteen_bits(recipe)
    if len(plain) == 1 and plain[0] != own:
        note = (
            f"16 bit is {own} here, the recipe's model.dtype; {plain[0]} was asked for "
            f"(name both to have both)"
        )
        return [own if name == plain[0] else name for name in wanted], [note]
    return wanted, []


def _is_16_bit(row: Format) -> bool:
    return not row.quantizes and row.weight_bits == SIXTEEN


def _sixteen_bits(recipe: Recipe) -> FormatName:
    """The format that stands for 16 bit in a recipe."""
    return recipe.dtype if _is_16_bit(FORMATS[recipe.dtype]) else recipe.model.dtype


def every_format(path: Path, overrides: Sequence[str], recipe: Recipe) -> list[str]:
    """Lists 16 bit and every quantized format that recipe, model and target take."""
    own = _sixteen_bits(recipe)
    quantized = (name for name, row in FORMATS.items() if row.quantizes)
    rungs = (make_rung(name, path, overrides, recipe) for name in quantized)
    return [own, *(rung.label for rung in rungs if not rung.refusal)]


def make_rung(name: str, path: Path, overrides: Sequence[str], recipe: Recipe) -> Rung:
    """Makes the recipe of one rung, and looks whether model and target take it.

    Args:
        name: The format, or a type that a target rounds to itself.
        path: The file of the recipe.
        overrides: As for ``--set``.
        recipe: What the two say together.

    Raises:
        MissingDependencyError: A package is not installed that looking takes.
        SourceError: The model is damaged.
    """
    known = next((row for row in FORMATS.values() if row.name == name), None)
    target, own = (recipe.compile.target, None) if known else own_types()[name]
    row = known or FORMATS[_sixteen_bits(recipe)]
    folder = f"{recipe.name}-{name}"
    changes = [
        f"name={folder}",
        f"quantize.format={row.name}",
        # Also where the recipe leaves it to its own format to say; float32 is no precision of it.
        f"model.dtype={(row.dtype or _sixteen_bits(recipe)) if row.weight_bits <= SIXTEEN else ''}",
        *(() if row.quantizes and not row.own else ("quantize.kv_cache=null",)),
        *_search(row, recipe),
        *_own(target, own, recipe),
    ]
    rung = Rung(row, name, target, folder, own)
    try:
        made = load_recipe(path, [*overrides, *changes])
        check_local_model(made)
    except MissingDependencyError:
        raise
    except (RecipeError, UnsupportedError) as error:
        return replace(rung, refusal=_reason(error))
    return replace(rung, recipe=made)


def _own(target: str, own: OwnType | None, recipe: Recipe) -> list[str]:
    """What a recipe says of a type that its target rounds to."""
    if own is None:
        return []
    said = [f"{key}={value}" for key, value in own.values.items()]
    if recipe.evaluate:
        # The engine is what is compared, on as many tokens as the checkpoints of the others.
        said.append(f"evaluate.engine_tokens={recipe.evaluate.tokens}")
    return [f"compile.target={target}", *said]


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


def _format(word: str) -> str:
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
        return str(known)
    types = own_types()
    if name in types:
        return name
    close = suggested_format(name)
    guess = f"Did you mean {close}? " if close else ""
    targets = dict.fromkeys(target for target, _ in types.values())
    more = "".join(
        f"; of {target}: {', '.join(name for name, (its, _) in types.items() if its == target)}"
        for target in targets
    )
    raise UsageError(
        f"{word!r} is no format",
        where="--formats",
        fix=f"{guess}Formats: {', '.join(FORMATS)}{more}",
    )

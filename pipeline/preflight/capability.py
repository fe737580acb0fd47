"""Which format goes with which target, asked of the targets' own pre-flight.

Nothing is listed here: rows are the table of formats and what targets round to themselves, columns
the table of targets, and a cell is what the pre-flight says of a recipe with the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pipeline.errors import RecipeError, UnsupportedError
from pipeline.formats import FORMATS, KV_CACHES, Format
from pipeline.models.architectures import ARCHITECTURES
from pipeline.models.facts import ModelFacts
from pipeline.preflight.model_checks import check_facts
from pipeline.recipe.schema import Recipe
from pipeline.targets import TARGETS, get_target, own_types

ANY = "any"
"""Stands for a model and a text that nothing here depends on."""
USUAL: dict[str, Any] = {
    "architectures": [next(iter(ARCHITECTURES))],
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
"""A Llama whose sides go with every format, small enough for any machine."""
_CALIBRATION = {"text": ANY}


@dataclass(frozen=True)
class Cell:
    """What becomes of one format on one target.

    Attributes:
        format: The format, or the type that a target rounds to.
        target: The target.
        taken: Whether the two go together.
        needs: Keys of the recipe, with their values, without which they do not.
        what: What is refused; None where they go together.
        why: The reason.
        fix: What to do instead.
    """

    format: str
    target: str
    taken: bool
    needs: Mapping[str, object]
    what: str | None = None
    why: str | None = None
    fix: str | None = None

    @property
    def words(self) -> str:
        """The cell in a table: ``yes``, ``no``, or what the recipe has to say: ``portable``."""
        if not self.taken:
            return "no"
        return ", ".join(key.rpartition(".")[2] for key in self.needs) or "yes"

    @property
    def reason(self) -> str:
        """Why the two do not go together, and what to do; empty where they do."""
        parts = (self.what, self.why, self.fix)
        return " ".join(f"{part.strip().rstrip('.')}." for part in parts if part)

    def as_dict(self) -> dict[str, Any]:
        """Returns the cell as JSON values."""
        return {
            "format": self.format,
            "target": self.target,
            "taken": self.taken,
            "needs": dict(self.needs),
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
        }


def usual_facts() -> ModelFacts:
    """Returns the facts of an ordinary model, for a table that is of no model in particular."""
    return ModelFacts.from_config(USUAL, ANY)


def usual_recipe() -> Recipe:
    """Returns a recipe for it that leaves everything to its defaults."""
    return Recipe.model_validate(
        {
            "name": ANY,
            "model": {"source": ANY},
            "quantize": {"format": "float16"},
        }
    )


def capability(recipe: Recipe, facts: ModelFacts) -> list[list[Cell]]:
    """Asks every target about every format.

    Args:
        recipe: Everything but format and target is taken of it.
        facts: The model's.

    Returns:
        Rows of cells: formats in the order of their table, KV caches, the types of targets' own.
        In each row the targets stand in the order of their table.
    """
    rows = [
        [_format_cell(recipe, facts, row, target) for target in TARGETS] for row in FORMATS.values()
    ]
    rows += [[_cache_cell(recipe, facts, name, target) for target in TARGETS] for name in KV_CACHES]
    rows += [
        [_type_cell(recipe, facts, name, target) for target in TARGETS] for name in own_types()
    ]
    return rows


def _format_cell(recipe: Recipe, facts: ModelFacts, row: Format, target: str) -> Cell:
    asked: dict[str, object] = {"quantize.format": row.name, "compile.target": target}
    found = _asked(recipe, facts, asked)
    if found is None:
        return Cell(row.name, target, True, {})
    more: dict[str, object] = {"quantize.portable": True}
    if row.smooths and _asked(recipe, facts, asked | more) is None:
        return Cell(row.name, target, True, more)
    return Cell(row.name, target, False, {}, found.what, found.why, found.fix)


def _cache_cell(recipe: Recipe, facts: ModelFacts, name: str, target: str) -> Cell:
    """A quantized KV cache, beside the first format of the target's that can have one."""
    label, found = f"{name} KV cache", None
    for row in FORMATS.values():
        asked: dict[str, object] = {"quantize.format": row.name, "compile.target": target}
        if row.quantizes and not row.own and _asked(recipe, facts, asked) is None:
            error = _asked(recipe, facts, {**asked, "quantize.kv_cache": name})
            if error is None:
                return Cell(label, target, True, {})
            found = found or error
    if found is None:
        return Cell(label, target, False, {}, "no format that can have one is taken")
    return Cell(label, target, False, {}, found.what, found.why, found.fix)


def _type_cell(recipe: Recipe, facts: ModelFacts, name: str, target: str) -> Cell:
    own = get_target(target).own_types.get(name)
    if own is None:
        owner, _ = own_types()[name]
        fix = f"Set compile.target to {owner}"
        return Cell(name, target, False, {}, f"{name} is a type of {owner}'s own", None, fix)
    plain = recipe.dtype if FORMATS[recipe.dtype].weight_bits == 16 else recipe.model.dtype
    asked = {"quantize.format": plain, "compile.target": target, **own.values}
    found = _asked(recipe, facts, asked)
    if found is None:
        return Cell(name, target, True, {})
    return Cell(name, target, False, {}, found.what, found.why, found.fix)


def _asked(
    recipe: Recipe, facts: ModelFacts, values: Mapping[str, object]
) -> UnsupportedError | RecipeError | None:
    """What pre-flight has against a recipe with other values; None where nothing."""
    try:
        check_facts(_with(recipe, values), facts)
    except (UnsupportedError, RecipeError) as error:
        return error
    except ValidationError as error:
        return RecipeError(str(error.errors(include_url=False)[0]["msg"]))
    return None


def _with(recipe: Recipe, values: Mapping[str, object]) -> Recipe:
    """The recipe with other values; what belongs to its own format alone is left out."""
    whole = recipe.model_dump(mode="json", by_alias=True, exclude_unset=True)
    quantize = dict(whole["quantize"])
    for key in ("kv_cache", "search", "portable", "act_order"):
        quantize.pop(key, None)
    quantize.setdefault("calibration", _CALIBRATION)
    row = FORMATS[values["quantize.format"]]  # type: ignore[index]  # a row's own name
    if row.group_sizes and quantize.get("group_size") not in (None, *row.group_sizes):
        del quantize["group_size"]
    whole |= {"quantize": quantize, "compile": dict(whole.get("compile", {}))}
    if row.dtype is not None:
        whole["model"] = {key: v for key, v in whole["model"].items() if key != "dtype"}
    for key, value in values.items():
        *sections, name = key.split(".")
        place = whole
        for section in sections:
            place[section] = dict(place.get(section, {}))
            place = place[section]
        place[name] = value
    return Recipe.model_validate(whole)


def notes(rows: Sequence[Sequence[Cell]]) -> list[tuple[str, list[Cell]]]:
    """Groups the cells that are refused by their reason, in the order of the table.

    What is a type of one target's own is left out: that it is none of the others' says its name.

    Returns:
        Each reason with its cells.
    """
    own = own_types()
    found: dict[str, list[Cell]] = {}
    for row in rows:
        for cell in row:
            own_to_others = (
                cell.format in own and cell.format not in get_target(cell.target).own_types
            )
            if not cell.taken and not own_to_others:
                found.setdefault(cell.reason, []).append(cell)
    return list(found.items())


def folded(rows: Sequence[Sequence[Cell]]) -> list[tuple[list[str], list[Cell]]]:
    """Puts neighbouring rows that say the same of types of one target into one.

    Returns:
        The names of each row, and the cells of the first of them.
    """
    own, found = own_types(), list[tuple[list[str], list[Cell]]]()
    for row in rows:
        cells, name = list(row), row[0].format
        if found and name in own and (before := found[-1])[0][-1] in own:
            alike = [cell.words for cell in cells] == [cell.words for cell in before[1]]
            if alike and own[name][0] == own[before[0][-1]][0]:
                before[0].append(name)
                continue
        found.append(([name], cells))
    return found

"""Whether a recipe goes with the quantization that its model has already."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UnsupportedError
from pipeline.formats import FORMATS
from pipeline.models.facts import ModelFacts
from pipeline.models.quantized import StoredQuantization
from pipeline.recipe.schema import Recipe
from pipeline.source.snapshot import check_snapshot
from pipeline.targets import TARGETS, Target, get_target
from pipeline.targets.findings import Finding

ORIGINAL = "set model.source to the checkpoint that this one was made from"


def refuse_other_quantization(recipe: Recipe, facts: ModelFacts) -> None:
    """Refuses a recipe that asks for another quantization than the model's files have.

    Raises:
        UnsupportedError: Naming the key, the reason and what to write instead.
    """
    stored, quantize = facts.quantized, recipe.quantize
    if stored is None:
        if quantize.stored is not None:
            raise UnsupportedError(
                f"the model is not quantized, and the recipe says it is, by {quantize.stored}",
                where=recipe.place("quantize.stored"),
                why="Neither config.json nor a file beside it says so",
                fix="Leave quantize.stored out",
            )
        return
    if quantize.stored != stored.method:
        raise UnsupportedError(
            f"the model is quantized already, by {stored.method} ({stored.words()})",
            where=recipe.place("quantize.stored"),
            why="Its weights would be quantized twice",
            fix=f"Set {_keys(stored)}, so that its codes and scales are taken over as they are; "
            f"or {ORIGINAL}",
        )
    if FORMATS[quantize.format].quant_algo != stored.quant_algo:
        raise UnsupportedError(
            f"the model is {stored.row.name} already ({stored.words()}), not {quantize.format}",
            where=recipe.place("quantize.format"),
            why="Quantizing it again would lose twice, so its codes are taken over as they are",
            fix=f"Leave quantize.format out, or set it to {stored.row.name}; for another format "
            f"{ORIGINAL}",
        )
    _refuse_groups(recipe, stored)
    if stored.ordered and recipe.compile.tensor_parallel > 1:
        raise UnsupportedError(
            "the model's groups take inputs out of order (act-order), which cannot be split over "
            f"{recipe.compile.tensor_parallel} ranks",
            where=recipe.place("compile.tensor_parallel"),
            why="A rank would need inputs of another one",
            fix="Set compile.tensor_parallel to 1",
        )


def refuse_unexecuted(recipe: Recipe, facts: ModelFacts, target: Target) -> None:
    """Refuses weights that a target has no place for, or no kernel.

    Raises:
        UnsupportedError: Naming the targets that have.
    """
    stored = facts.quantized
    if stored is None:
        return
    for has, taken, what, why in (
        (
            stored.zero_points,
            "takes_zero_points",
            "zero points",
            "Its weights are counted from the middle of their range, and symmetric ones only",
        ),
        (
            stored.ordered,
            "takes_input_order",
            "groups that take inputs out of order (act-order)",
            "It has no kernel that reorders inputs, so that weights would take scales of others",
        ),
    ):
        if has and not getattr(target, taken):
            *first, last = [name for name in TARGETS if getattr(get_target(name), taken)]
            others = f"{', '.join(first)} or {last}" if first else last
            raise UnsupportedError(
                f"the target {target.name} does not take {what}, which the model has "
                f"({stored.words()})",
                where=recipe.place("compile.target"),
                why=why,
                fix=f"Set compile.target to {others}, or {ORIGINAL} and quantize that",
            )


def _refuse_groups(recipe: Recipe, stored: StoredQuantization) -> None:
    sizes = stored.row.group_sizes
    if not sizes:
        return
    words = " or ".join(map(str, sizes))
    if stored.group_size is None:
        raise UnsupportedError(
            f"the model's groups of {stored.group} inputs cannot be written",
            where=recipe.place("model.source"),
            why=f"A checkpoint has groups of {words}, which larger groups are cut into; smaller "
            "ones cannot be joined without quantizing again",
            fix=f"{ORIGINAL[0].upper()}{ORIGINAL[1:]}, or to one with groups of {words}",
        )
    if stored.group is not None and stored.group % recipe.quantize.group_size:
        raise UnsupportedError(
            f"the model has groups of {stored.group}, not group_size {recipe.quantize.group_size}",
            where=recipe.place("quantize.group_size"),
            why="Its scales are taken over as they are",
            fix=f"Leave quantize.group_size out, or set it to {stored.group_size}",
        )


def check_stored(recipe: Recipe, facts: ModelFacts) -> list[Finding]:
    """Says that the weights are taken over, and what that leaves unread or unmeasured."""
    stored = facts.quantized
    if stored is None:
        return []
    found = [
        Finding(
            "note",
            "model.source",
            f"the model is quantized already: {stored.words()}",
            f"Its codes and scales are taken over as they are, as {stored.row.name}; nothing is "
            "calibrated, and the keys of calibration are not read",
            f"For another format {ORIGINAL}",
        )
    ]
    if recipe.evaluate is not None and recipe.evaluate.reference is None:
        found.append(
            Finding(
                "note",
                "evaluate.reference",
                "what this quantization lost is not measured",
                "Without the model that it was made from, the checkpoint is compared with the "
                "source's own weights: gates then show that they were taken over",
                "Set evaluate.reference to the directory of that model",
            )
        )
    return found


def refuse_other_reference(recipe: Recipe, facts: ModelFacts) -> None:
    """Refuses an ``evaluate.reference`` that the model cannot have been made from.

    Raises:
        UnsupportedError: Naming what differs.
        SourceError: The reference cannot be read, or lacks tensors.
    """
    named = recipe.evaluate.reference if recipe.evaluate else None
    if named is None:
        return
    place = recipe.place("evaluate.reference")
    if facts.quantized is None:
        raise UnsupportedError(
            "evaluate.reference is there, and the model is not quantized already",
            where=place,
            why="Such a model is measured against itself in floating point",
            fix="Leave evaluate.reference out",
        )
    directory = Path(named)
    reference = ModelFacts.from_directory(directory)
    if reference.quantized is not None:
        raise UnsupportedError(
            f"evaluate.reference is quantized itself ({reference.quantized.words()})",
            where=place,
            why="What is lost is measured against a model in floating point",
            fix="Name the directory of the model before it was quantized",
        )
    for name in ("architecture", "vocab_size", "hidden_size", "num_hidden_layers"):
        one, other = getattr(reference, name), getattr(facts, name)
        if one != other:
            raise UnsupportedError(
                f"evaluate.reference has {name} {one}, and the model {other}",
                where=place,
                why="The model cannot have been made from it",
                fix="Name the directory of the model before it was quantized",
            )
    check_snapshot(directory, reference, named)


def _keys(stored: StoredQuantization) -> str:
    keys = f"quantize.stored to {stored.method} and quantize.format to {stored.row.name}"
    size = stored.group_size
    return keys if size is None else f"{keys} (group_size {size})"

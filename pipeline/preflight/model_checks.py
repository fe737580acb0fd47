"""What can be refused from the recipe and config.json alone, before any work is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import SourceError, UnsupportedError
from pipeline.formats import FORMATS, FormatName, GroupSize
from pipeline.models.config_json import read_config
from pipeline.models.facts import ModelFacts
from pipeline.models.ranks import Side, split_problem
from pipeline.preflight.candidates import candidates, misfits
from pipeline.preflight.stored import (
    refuse_other_quantization,
    refuse_other_reference,
    refuse_unexecuted,
)
from pipeline.recipe.schema import Recipe
from pipeline.source.hub import hub_config
from pipeline.source.local import local_directory
from pipeline.source.snapshot import facts_of
from pipeline.targets import get_target
from pipeline.targets.base import Explanation

# Ranks of the largest machine that the remedy for an impossible tensor_parallel considers.
MOST_RANKS = 16
OTHERWISE = "Choose another model"


def check_model(recipe: Recipe, directory: Path) -> ModelFacts:
    """Checks a recipe against the model it names.

    Args:
        recipe: The recipe.
        directory: A Hugging Face snapshot; only ``config.json`` is read.

    Returns:
        The model's facts.

    Raises:
        SourceError: ``config.json`` is missing or incomplete.
        UnsupportedError: The combination cannot work; file, line, key, reason and remedy are named.
    """
    facts = facts_of(directory)
    _refuse_own_code(recipe, directory)
    check_facts(recipe, facts)
    return facts


def check_facts(recipe: Recipe, facts: ModelFacts) -> None:
    """Checks a recipe against what ``config.json`` of its model says.

    Raises:
        UnsupportedError: The combination cannot work; file, line, key, reason and remedy are named.
    """
    refuse_other_quantization(recipe, facts)
    refuse_other_reference(recipe, facts)
    for problem in _parallelism(recipe, facts):
        raise problem
    for problem in _quantization(recipe, facts):
        raise problem
    target = get_target(recipe.compile.target)
    refuse_unexecuted(recipe, facts, target)
    target.check(recipe, facts)


def explain_engine(recipe: Recipe, facts: ModelFacts) -> Explanation | None:
    """Describes the engine to be built; None for a target that has no more to say than the recipe.

    Args:
        recipe: A recipe that :func:`check_model` has passed.
        facts: The model's facts.
    """
    return get_target(recipe.compile.target).explain(recipe, facts)


def check_local_model(recipe: Recipe) -> ModelFacts | None:
    """Checks a recipe whose model is on this machine, before anything is copied.

    Returns:
        The model's facts; None for a model that has yet to be fetched from the Hub.

    Raises:
        RecipeError: ``model.source`` is neither a directory nor a Hub id.
        SourceError: See :func:`check_model`.
        UnsupportedError: See :func:`check_model`.
    """
    directory = local_directory(recipe)
    return check_model(recipe, directory) if directory else None


def check_hub_model(recipe: Recipe) -> ModelFacts:
    """Checks a recipe whose model is on the Hub; only ``config.json`` is fetched.

    Raises:
        SourceError: It cannot be fetched, or see :func:`check_model`.
        UnsupportedError: See :func:`check_model`.
    """
    return check_model(recipe, hub_config(recipe))


def _refuse_own_code(recipe: Recipe, directory: Path) -> None:
    """Refuses a model whose own Python would read config.json, and compute what it likes."""
    if not recipe.model.trust_remote_code:
        return
    config = read_config(directory, SourceError, "A Hugging Face checkpoint has one")
    named = config.get("auto_map")
    # That of a tokenizer, which is asked for texts alone, is none of a model's.
    if isinstance(named, dict) and {"AutoConfig", "AutoModelForCausalLM"} & named.keys():
        raise UnsupportedError(
            "the model brings code of its own",
            where=recipe.place("model.trust_remote_code"),
            why=f"config.json names it in auto_map, and with trust_remote_code transformers runs "
            f"it instead of its {config['architectures'][0]}, which is what the targets compute",
            fix="Set model.trust_remote_code to false: transformers knows this architecture itself",
        )


def _parallelism(recipe: Recipe, facts: ModelFacts) -> Iterator[UnsupportedError]:
    tp, pp = recipe.compile.tensor_parallel, recipe.compile.pipeline_parallel
    kv_heads = facts.num_key_value_heads
    if problem := split_problem(facts, tp):
        yield UnsupportedError(
            problem,
            where=recipe.place("compile.tensor_parallel"),
            fix=_either(_ranks(recipe, facts), _formats(recipe, facts)),
        )
    row = FORMATS[recipe.quantize.format]
    if tp > kv_heads and not row.repeats_kv_heads:
        yield UnsupportedError(
            f"{row.name} cannot repeat {kv_heads} KV heads over {tp} ranks",
            where=recipe.place("compile.tensor_parallel"),
            why="ModelOpt does not duplicate the per-channel scales of KV heads",
            fix=_either(_ranks(recipe, facts), _formats(recipe, facts)),
        )
    layers = facts.num_hidden_layers
    if layers % pp:
        possible = [str(n) for n in range(1, MOST_RANKS + 1) if layers % n == 0]
        yield UnsupportedError(
            f"{layers} layers cannot be split evenly over {pp} pipeline ranks",
            where=recipe.place("compile.pipeline_parallel"),
            fix=f"Choose a pipeline_parallel of {', '.join(possible)}",
        )


def _either(*remedies: str | None) -> str:
    first, *others = [remedy for remedy in remedies if remedy] or [OTHERWISE]
    return ", or ".join((first, *(f"{other[0].lower()}{other[1:]}" for other in others)))


def _ranks(recipe: Recipe, facts: ModelFacts) -> str | None:
    """A tensor_parallel that the recipe's format allows; None where there is none."""
    counts = range(1, MOST_RANKS + 1)
    possible = [str(n) for n in counts if _goes(recipe, facts, tensor_parallel=n)]
    return f"Choose a tensor_parallel of {', '.join(possible)}" if possible else None


def _formats(recipe: Recipe, facts: ModelFacts) -> str | None:
    """The formats that are said to do instead, as far as they do; None where none does."""
    others = (*FORMATS[recipe.quantize.format].instead, recipe.dtype)
    names = [name for name in dict.fromkeys(others) if _goes(recipe, facts, format=name)]
    if not names:
        return None
    *first, last = names
    listed = f"{', '.join(first)} or {last}" if first else last
    also = " and leave quantize.search out" if recipe.quantize.search else ""
    return f"Set quantize.format to {listed}{also}"


def _goes(
    recipe: Recipe,
    facts: ModelFacts,
    *,
    format: FormatName | None = None,  # noqa: A002  the recipe's own word
    tensor_parallel: int | None = None,
) -> bool:
    """Whether shapes and target take the recipe with another value of a key."""
    changes: dict[str, Any] = {"search": None}
    if format is not None:
        changes["format"] = format
        changes["group_size"] = _group_size(format, recipe.quantize.group_size)
        if recipe.quantize.kv_cache and not FORMATS[format].quantizes:
            return False
    tp = recipe.compile.tensor_parallel if tensor_parallel is None else tensor_parallel
    tried = recipe.model_copy(
        update={
            "quantize": recipe.quantize.model_copy(update=changes),
            "compile": recipe.compile.model_copy(update={"tensor_parallel": tp}),
        }
    )
    row = FORMATS[tried.quantize.format]
    if split_problem(facts, tp) or (tp > facts.num_key_value_heads and not row.repeats_kv_heads):
        return False
    if misfits(tried, facts, tried.quantize.group_size):
        return False
    if format is None:
        return True
    try:
        get_target(tried.compile.target).check(tried, facts)
    except UnsupportedError:
        return False
    return True


def _group_size(name: FormatName, wanted: GroupSize) -> GroupSize:
    sizes = FORMATS[name].group_sizes
    return wanted if not sizes or wanted in sizes else sizes[-1]


def _quantization(recipe: Recipe, facts: ModelFacts) -> Iterator[UnsupportedError]:
    quantize = recipe.quantize
    row = FORMATS[quantize.format]
    if quantize.search is None or row.searched != "group_size":
        key = "quantize.group_size" if row.group_sizes else "quantize.format"
        for side in misfits(recipe, facts, quantize.group_size):
            yield _misfit(recipe, facts, side, quantize.group_size, key)
        return
    if quantize.search.candidates is not None:
        for value in quantize.search.candidates:
            for side in misfits(recipe, facts, int(value)):
                yield _misfit(recipe, facts, side, int(value), "quantize.search.candidates")
    elif not candidates(recipe, facts):
        smallest = row.group_sizes[0]
        for side in misfits(recipe, facts, smallest):
            yield _misfit(recipe, facts, side, smallest, "quantize.search")


def _misfit(
    recipe: Recipe, facts: ModelFacts, side: Side, group_size: int, key: str
) -> UnsupportedError:
    """Refuses a group size, or a format without groups, that a side of a linear does not allow."""
    row, tp = FORMATS[recipe.quantize.format], recipe.compile.tensor_parallel
    unit = row.unit(group_size)
    group = f"group_size {group_size} and " if row.group_sizes else ""
    sizes = sorted(row.group_sizes, reverse=True)
    fits = next((n for n in sizes if n < group_size and not misfits(recipe, facts, n)), None)
    if key == "quantize.search.candidates":
        fix = f"Leave {group_size} out of it"
    elif fits:
        fix = f"Set quantize.group_size to {fits}"
    else:
        fix = _either(_ranks(recipe, facts) if tp > 1 else None, _formats(recipe, facts))
    return UnsupportedError(
        f"{side.name} {side.size} of {side.linear} is not a multiple of {unit * tp}",
        where=recipe.place(key),
        why=f"{row.name} with {group}tensor_parallel {tp} needs multiples of {unit} x {tp}",
        fix=fix,
    )

"""What can be refused from the recipe and config.json alone, before any work is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import SourceError, UnsupportedError
from pipeline.formats import FORMATS
from pipeline.models.config_json import read_config
from pipeline.models.facts import ModelFacts
from pipeline.models.ranks import Side, split_problem
from pipeline.preflight.candidates import candidates, misfits
from pipeline.recipe.schema import Recipe
from pipeline.source.hub import hub_config
from pipeline.source.local import local_directory
from pipeline.targets import get_target
from pipeline.targets.base import Explanation

# Ranks of the largest machine that the remedy for an impossible tensor_parallel considers.
MOST_RANKS = 16


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
    facts = ModelFacts.from_directory(directory)
    _refuse_own_code(recipe, directory)
    for problem in _parallelism(recipe, facts):
        raise problem
    for problem in _quantization(recipe, facts):
        raise problem
    get_target(recipe.compile.target).check(recipe, facts)
    return facts


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
        possible = [n for n in range(1, MOST_RANKS + 1) if split_problem(facts, n) is None]
        yield UnsupportedError(
            problem,
            where=recipe.place("compile.tensor_parallel"),
            fix=f"Choose a tensor_parallel of {', '.join(map(str, possible))}",
        )
    row = FORMATS[recipe.quantize.format]
    if tp > kv_heads and not row.repeats_kv_heads:
        yield UnsupportedError(
            f"{row.name} cannot repeat {kv_heads} KV heads over {tp} ranks",
            where=recipe.place("compile.tensor_parallel"),
            why="ModelOpt does not duplicate the per-channel scales of KV heads",
            fix=f"Use tensor_parallel of at most {kv_heads}, or {' or '.join(row.instead)}",
        )
    if facts.num_hidden_layers % pp:
        yield UnsupportedError(
            f"{facts.num_hidden_layers} layers cannot be split evenly over {pp} pipeline ranks",
            where=recipe.place("compile.pipeline_parallel"),
            fix="Choose a pipeline_parallel that divides the number of layers",
        )


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
    fits = next(
        (
            other
            for other in sorted(row.group_sizes, reverse=True)
            if other < group_size and side not in misfits(recipe, facts, other)
        ),
        None,
    )
    lower = f"Set quantize.group_size to {fits}"
    if key == "quantize.search.candidates":
        lower = f"Leave {group_size} out of it"
    return UnsupportedError(
        f"{side.name} {side.size} of {side.linear} is not a multiple of {unit * tp}",
        where=recipe.place(key),
        why=f"{row.name} with {group}tensor_parallel {tp} needs multiples of {unit} x {tp}",
        fix=lower if fits else f"Lower compile.tensor_parallel, or use {' or '.join(row.instead)}",
    )

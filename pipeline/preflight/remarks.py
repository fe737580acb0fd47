"""What is worth knowing about a model and its recipe, whatever the target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.models.config_json import read_config
from pipeline.models.config_keys import unread_keys
from pipeline.models.facts import ORIGINAL_POSITIONS, ModelFacts
from pipeline.preflight.stored import check_stored
from pipeline.recipe.schema import Recipe
from pipeline.source.snapshot import main_dtype, stored_tensors
from pipeline.targets import get_target
from pipeline.targets.base import NotMeasured
from pipeline.targets.findings import Finding

FLOAT16_MAX = 65504.0
"""The largest finite float16."""


def remarks(recipe: Recipe, facts: ModelFacts, directory: Path | None) -> tuple[Finding, ...]:
    """Collects warnings and notes, in this order.

    Args:
        recipe: A recipe that fits the model.
        facts: The model's facts.
        directory: The snapshot; None where it has yet to be fetched, and config.json has to do.

    Raises:
        SourceError: A weight file or config.json is damaged.
    """
    dtype = source_dtype(facts, directory)
    found = [
        *check_dtype(recipe, dtype),
        *_check_linear_rope(recipe, facts),
        *check_stored(recipe, facts),
        *_list_unread_keys(directory),
    ]
    return tuple(sorted(found, key=lambda finding: finding.severity != "warning"))


def engine_not_measured(recipe: Recipe) -> Finding | None:
    """Says why the compiled engine is not measured on this machine; None where it is.

    It also is None for a recipe that has nothing measured.

    Raises:
        UnsupportedError: There is no such target.
    """
    if recipe.evaluate is None:
        return None
    found = get_target(recipe.compile.target).evaluation(recipe)
    if not isinstance(found, NotMeasured):
        return None
    what = "the compiled engine is not measured on this machine, only the checkpoint is"
    return Finding("note", "compile.target", what, found.why, found.fix)


def source_dtype(facts: ModelFacts, directory: Path | None) -> str | None:
    """Reads the dtype of the weights from their files or config.json; None where neither says it.

    A model that was trained in bfloat16 and saved in float32 is bfloat16 still: its config.json
    says so, and its activations need that range.

    Raises:
        SourceError: A weight file is damaged.
    """
    tensors = stored_tensors(directory, str(directory)) if directory else {}
    stored = main_dtype(tensors) if tensors else None
    if stored in (None, "float32") and facts.dtype is not None:
        return facts.dtype
    return stored


def check_dtype(recipe: Recipe, dtype: str | None) -> Iterator[Finding]:
    """Warns of activations that the recipe's dtype may be too small for."""
    if dtype != "bfloat16" or recipe.dtype != "float16":
        return
    rounded = get_target(recipe.compile.target).rounds_activations
    yield Finding(
        "warning" if rounded else "note",
        recipe.dtype_key,
        "the model is bfloat16 and the recipe makes it float16",
        f"Activations beyond {FLOAT16_MAX:.0f} become infinite in float16 on a GPU, and the text "
        "is then one token over and over; evaluation and CPU engine compute in float32 and cannot "
        "show it",
        f"Set {recipe.dtype_key} to bfloat16"
        + (", or look at the largest activation in the report" if recipe.evaluate else ""),
    )


def _check_linear_rope(recipe: Recipe, facts: ModelFacts) -> Iterator[Finding]:
    """Two conventions exist, and config.json does not say which one it follows."""
    scaling = facts.rotary_scaling
    if scaling is None or scaling["rope_type"] != "linear" or ORIGINAL_POSITIONS in scaling:
        return
    positions, factor, wanted = (
        facts.max_position_embeddings,
        float(scaling["factor"]),
        recipe.compile.max_seq_len,
    )
    yield Finding(
        "warning" if wanted > positions else "note",
        "compile.max_seq_len",
        f"the model is taken to have {facts.longest_sequence} positions: max_position_embeddings "
        f"{positions} times the factor {factor:g} of its linear rope scaling",
        "Some models, deepseek-coder for one, count the factor in max_position_embeddings already, "
        f"and fall apart beyond {positions}; config.json does not say which this one does",
        f"If it does, keep compile.max_seq_len at {positions} or less, or name "
        f"{ORIGINAL_POSITIONS} in the rope_scaling of its config.json",
    )


def _list_unread_keys(directory: Path | None) -> Iterator[Finding]:
    """Keys of config.json that decide nothing, of which one may be meant to."""
    if directory is None:
        return
    if unread := unread_keys(
        read_config(directory, SourceError, "A Hugging Face checkpoint has one")
    ):
        yield Finding(
            "note",
            "model.source",
            f"nothing reads these keys of config.json: {', '.join(unread)}",
            "Neither transformers nor any stage computes anything from them; tools that trained or "
            "converted the model leave such keys behind",
            "Look at them only if one is meant to change what the model computes",
        )

"""What a GGUF file cannot hold, from the recipe and the model's facts alone."""

from __future__ import annotations

from pipeline.errors import UnsupportedError
from pipeline.formats import FORMATS, Format, either
from pipeline.models.architectures import ARCHITECTURES
from pipeline.models.facts import ModelFacts
from pipeline.recipe.llamacpp import GgufType
from pipeline.recipe.schema import Recipe

STORED: GgufType = "stored"
SCALINGS = ("default", "linear", "llama3")
"""Hugging Face's rope types that a file can hold; rope.py writes them."""
_BLOCK = 32
_TYPE = "compile.llamacpp.type"


def refuse_unsupported(recipe: Recipe, facts: ModelFacts) -> None:
    """Raises UnsupportedError for what no GGUF file holds, or llama.cpp would run wrongly."""
    _check_model(recipe, facts)
    _check_format(recipe)
    _check_widths(recipe, facts)


def _check_model(recipe: Recipe, facts: ModelFacts) -> None:
    if facts.family.gguf is None:
        known = [row.name for row in ARCHITECTURES.values() if row.gguf]
        raise UnsupportedError(
            f"{facts.architecture} is not written as a GGUF file",
            where=recipe.place("compile.target"),
            why=f"Names and rotary order of {', '.join(known)} are known",
            fix="Set compile.target to openvino or tensorrt",
        )
    scaling = facts.rotary_scaling
    if scaling and scaling["rope_type"] not in SCALINGS:
        raise UnsupportedError(
            f"rope scaling {scaling['rope_type']} is not written as a GGUF file",
            where=recipe.place("compile.target"),
            fix="Set compile.target to openvino or tensorrt",
        )
    longest = facts.longest_sequence
    if recipe.compile.max_seq_len > longest:
        raise UnsupportedError(
            f"max_seq_len {recipe.compile.max_seq_len} is longer than the model's {longest} "
            "positions",
            where=recipe.place("compile.max_seq_len"),
            why="The rotary embedding was not trained beyond them, so the text would fall apart",
            fix=f"Set compile.max_seq_len to at most {longest}",
        )
    window = facts.sliding_window
    if window is not None and window < recipe.compile.max_seq_len:
        raise UnsupportedError(
            f"max_seq_len {recipe.compile.max_seq_len} is longer than the model's sliding window "
            f"of {window} tokens",
            where=recipe.place("compile.max_seq_len"),
            why="llama.cpp attends to all earlier tokens in this architecture, which is the same "
            "only within the window",
            fix=f"Set compile.max_seq_len to at most {window}",
        )


def _check_format(recipe: Recipe) -> None:
    row, wanted = FORMATS[recipe.quantize.format], recipe.compile.llamacpp.type
    if recipe.quantize.kv_cache is not None:
        raise UnsupportedError(
            f"an {recipe.quantize.kv_cache} KV cache with calibrated scales is none of llama.cpp's",
            where=recipe.place("quantize.kv_cache"),
            why="llama.cpp quantizes its cache with scales of its own, when the server is started",
            fix="Set quantize.kv_cache to null",
        )
    if wanted == STORED:
        _check_stored(recipe, row)
    elif row.quantizes:
        raise UnsupportedError(
            f"a checkpoint of {row.name} is not converted to {wanted}",
            where=recipe.place(_TYPE),
            why="It has been rounded once, and would be rounded again, to other values",
            fix=f"Set quantize.format to {_floats()}, or {_TYPE} to {STORED}",
        )


def _check_stored(recipe: Recipe, row: Format) -> None:
    if not row.quantizes or (row.integer_weights and row.activations == "float"):
        return
    if row.integer_weights and row.activations == "int8":
        why = (
            "GGUF has no scale of activations: llama.cpp finds its own in every block, so the file "
            "would hold these weights alone"
        )
    else:
        why = f"GGUF has no type of {row.weights} weights with {row.activations} activations"
    raise UnsupportedError(
        f"{row.name} has no place in a GGUF file",
        where=recipe.place("quantize.format"),
        why=why,
        fix=f"Set quantize.format to {_exact()}; or to {_floats()} with {_TYPE}: q8_0, which has 8 "
        "bits as well",
    )


def _check_widths(recipe: Recipe, facts: ModelFacts) -> None:
    wanted = recipe.compile.llamacpp.type
    row = FORMATS[recipe.quantize.format]
    if wanted in ("f32", "f16", "bf16") or (wanted == STORED and not row.quantizes):
        return
    for linear in facts.linears:
        if linear.in_features % _BLOCK:
            raise UnsupportedError(
                f"{linear.name} has {linear.in_features} input features, which are no multiple of "
                f"{_BLOCK}",
                where=recipe.place(_TYPE),
                why=f"Every quantized type of GGUF has blocks of {_BLOCK} or more along them",
                fix=f"Set quantize.format to {_floats()} and {_TYPE} to f16",
            )


def _floats() -> str:
    return either(row for row in FORMATS.values() if not row.quantizes)


def _exact() -> str:
    return either(
        row for row in FORMATS.values() if row.integer_weights and row.activations == "float"
    )

"""A quantization format is known by name only where its row is and where one is executed.

What counts is the program: identifiers, parts of imported names and string constants. Comments and
docstrings may name what they explain.

Three rules keep other things apart from the names of formats:

* ``float16`` and ``bfloat16`` are dtypes everywhere else, and ``NO_QUANT`` is the name of no format
  but of their absence: only its text must not be written a second time.
* ``FP8`` is also a kind of number: it counts as an identifier or a string of its own, not in a
  sentence. In lower case it is what a recipe says, and counts there too.
* Every other name (``int8_sq``, ``W4A16_AWQ``, ``W8A8``) counts wherever it stands.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from pipeline.formats import FORMATS, NO_QUANT, REFUSED
from tests.conftest import PROJECT
from tests.unit.source_text import docstrings_of, words_of

TABLE = "pipeline/formats.py"


class Place(NamedTuple):
    """A module that executes formats: the words that it may know, and why."""

    words: frozenset[str]
    reason: str


def _place(words: str, reason: str) -> Place:
    return Place(frozenset(words.split()), reason)


PLACES = {
    # Foreign folders, by the names that their libraries have for them.
    "pipeline/models/quantized.py": _place(
        "FP8 INT8_WO W4A16_AWQ W8A8_SQ_PER_CHANNEL awq gptq",
        "says which folder of another library becomes which checkpoint",
    ),
    "pipeline/source/quantized.py": _place(
        "FP8 W4A16_AWQ awq gptq", "lists the tensors that each library writes"
    ),
    "pipeline/checkpoint/sources/compressed.py": _place(
        "W4A16_AWQ", "reads what the library wrote"
    ),
    "pipeline/checkpoint/sources/folder.py": _place("awq gptq", "reads what the library wrote"),
    "pipeline/checkpoint/sources/modelopt.py": _place(
        "FP8 W4A16_AWQ", "reads what the library wrote"
    ),
    "pipeline/checkpoint/dequantize.py": _place(
        "W8A8_SQ_PER_CHANNEL W4A16_AWQ W4A8_AWQ FP8 INT8_WO",
        "turns the weights of each back into numbers",
    ),
    "pipeline/reference/turning.py": _place(
        "W8A8_SQ_PER_CHANNEL W4A16_AWQ INT8_WO", "does so with torch, where it has operations"
    ),
    "pipeline/checkpoint/expected.py": _place(
        "W8A8_SQ_PER_CHANNEL FP8", "lists the tensors that a linear of each has"
    ),
    "pipeline/targets/openvino/linears.py": _place(
        "W8A8_SQ_PER_CHANNEL W4A16_AWQ INT8_WO", "builds the graph of each that the CPU executes"
    ),
    "pipeline/targets/openvino/refusals.py": _place(
        "W8A8_SQ_PER_CHANNEL W4A16_AWQ INT8_WO",
        "says which have such a graph, without importing OpenVINO",
    ),
    "model_repo/tensorrt_llm/settings.py": _place(
        "W8A8", "multiplies INT8 by INT8; a Triton model imports nothing from the pipeline"
    ),
    "pipeline/recipe/tensorrt.py": _place("fp8", "the options of trtllm-build's plugins"),
    "pipeline/targets/tensorrt/plan/rules.py": _place(
        "fp8", "the GEMM plugin that is called so, and the KV cache"
    ),
    "pipeline/targets/tensorrt/plan/overrides.py": _place(
        "fp8", "the KV cache that is called so, in an advice"
    ),
    "pipeline/targets/tensorrt/build/failures.py": _place(
        "fp8", "the KV cache that is called so, in an advice"
    ),
    "pipeline/targets/vllm/layouts.py": _place(
        "W8A8_SQ_PER_CHANNEL W4A16_AWQ INT8_WO FP8 gptq",
        "writes the tensors of each as vLLM reads them",
    ),
    "pipeline/recipe/vllm.py": _place("gptq", "the quant_method of a folder that is called so"),
    "model_repo/llmapi/settings.py": _place("W8A8", "is the one of model_repo/tensorrt_llm"),
    "pipeline/targets/llmapi/rules.py": _place(
        "FP8 W4A16_AWQ W4A8_AWQ fp8", "says which the PyTorch backend has linears for, and where"
    ),
    "pipeline/targets/llmapi/migration.py": _place("FP8", "says what becomes of its scales there"),
    "pipeline/targets/llmapi/unified.py": _place(
        "W4A16_AWQ W4A8_AWQ", "refuses the scales of each that one linear has no room for"
    ),
    "pipeline/targets/edgellm/rules.py": _place(
        "FP8 W4A16_AWQ W8A8_SQ_PER_CHANNEL fp8", "says which another compiler has linears for"
    ),
    "pipeline/targets/tensorrt/toolchain.py": _place(
        "int8_sq", "the format that another product of NVIDIA does not have"
    ),
}


def _names() -> Iterator[str]:
    for row in FORMATS.values():
        if row.quantizes:
            yield from (row.name, row.quant_algo, *row.aliases)
    for refused in REFUSED:
        yield from refused.names


# In a sentence these are kinds of numbers, or words of English: they count alone only.
WORDS = {name for name in _names() if name.isalnum() and name != "fp8"}
# Longest first, so that what is found is the whole name.
SPELLED = sorted(set(_names()) - WORDS, key=len, reverse=True)
# A kind of number too where it stands alone: the weights of a row, for one.
KINDS = {"int4", "nf4"}
IN_TEXT = re.compile(rf"(?<![A-Za-z0-9_])(?:{'|'.join(SPELLED)}|W\d+A\d+\w*)(?![A-Za-z0-9_])")
IN_NAME = re.compile(
    rf"(?<![a-z0-9])(?:{'|'.join(name.lower() for name in SPELLED if name != 'fp8')}|w\d+a\d+\w*)"
)


def known_formats(source: str) -> Iterator[tuple[int, str]]:
    """The line and the name of each format that a module's text knows."""
    tree = ast.parse(source)
    docstrings = docstrings_of(tree)
    for node in ast.walk(tree):
        for word in words_of(node):
            if word == "FP8":
                yield getattr(node, "lineno", 0), word
            elif found := IN_NAME.search(word.lower()):
                start = found.start()
                yield getattr(node, "lineno", 0), word[start : found.end()]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in docstrings:
                continue
            if node.value in {*WORDS, NO_QUANT} - KINDS:
                yield node.lineno, node.value
            yield from ((node.lineno, found[0]) for found in IN_TEXT.finditer(node.value))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ('if name == "int4_awq": pass', "int4_awq"),
        ('f"Set quantize.format to fp8 on {gpu}"', "fp8"),
        ('X = "Try int8_sq, or less text"', "int8_sq"),
        ('algo = "W4A16_AWQ"', "W4A16_AWQ"),
        ('algo == "FP8"', "FP8"),
        ('algo or "NO_QUANT"', "NO_QUANT"),
        ('algo.startswith("W8A8")', "W8A8"),
        ("from pipeline.formats import W4A8_AWQ", "W4A8_AWQ"),
        ("from pipeline.formats import FP8", "FP8"),
        ("def int8_sq_section(): pass", "int8_sq"),
        ("run(w4a8_awq=1)", "w4a8_awq"),
        ("_is_int4_awq()", "int4_awq"),
        ('alias = "int8_smoothquant"', "int8_smoothquant"),
        ('refused = "int8_wo"', "int8_wo"),
        ('X = "awq"', "awq"),
    ],
)
def test_a_module_that_knows_a_format_is_found(source: str, name: str) -> None:
    assert [word for _, word in known_formats(source)] == [name]


@pytest.mark.parametrize(
    "source",
    [
        '"""The format int4_awq."""',
        "X = 1  # int8_sq",
        "from pipeline.formats import NO_QUANT",
        'torch.dtype == "bfloat16"',
        'X = "It needs FP8 weights, and INT4 or AWQ is none"',
        "plugins.use_fp8_context_fmha",
        "MIN_FP8_SM = 89",
        "unpack_int4(int8)",
        "raw = 'float8_e4m3fn'",
        'row.calibration == "awq_lite"',
        "AWQ_MAX_SAMPLES = 32",
    ],
)
def test_numbers_and_explanations_are_no_formats(source: str) -> None:
    assert list(known_formats(source)) == []


def _modules() -> Iterator[tuple[str, str]]:
    for folder in ("pipeline", "model_repo"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            yield path.relative_to(PROJECT).as_posix(), path.read_text(encoding="utf-8")


def test_no_other_module_knows_a_format_by_name() -> None:
    found = []
    for place, source in _modules():
        if place != TABLE:
            allowed = PLACES[place].words if place in PLACES else ()
            found += [
                f"{place}:{line}: {word}"
                for line, word in known_formats(source)
                if word not in allowed
            ]
    for path in sorted((PROJECT / "pipeline").rglob("*.j2")):
        if IN_TEXT.search(path.read_text(encoding="utf-8")):
            found.append(f"{path.relative_to(PROJECT)} names a format")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("place", PLACES)
def test_every_place_that_may_know_a_format_does(place: str) -> None:
    source = (PROJECT / place).read_text(encoding="utf-8")
    known = {word for _, word in known_formats(source)}
    assert PLACES[place].words == known

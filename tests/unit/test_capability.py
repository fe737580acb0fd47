"""Which format goes with which target: what the pre-flight says, and what proves it.

The table below is written by hand, as facts about formats and programs have it: ``E`` keeps every
code and scale, ``A`` rounds a scale, ``R`` is refused. An ``E`` or ``A`` names the test that runs
it, an ``R`` what the error says.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from pipeline.cli.targets import BEGIN, END, markdown_lines
from pipeline.formats import FORMATS
from pipeline.preflight.capability import Cell, capability, usual_facts, usual_recipe
from pipeline.targets import TARGETS, get_target
from tests.conftest import PROJECT

OWN = "tests/integration/test_own_formats.py"
NUMERICS = "tests/integration/test_openvino_numerics.py"
GGUF = "tests/integration/test_gguf_file.py"
VLLM = "tests/integration/test_vllm_folder.py"
BUILD = "tests/integration/test_tensorrt_compile.py"
GRAPH = f"E {NUMERICS}::test_logits_of_prefill_and_single_steps"
ROUNDED = f"E {OWN}::test_a_checkpoint_is_bitsandbytes_rounding_and_its_engine_stays_packed"
BUILT = f"E {BUILD}::test_what_the_quantize_stage_writes_is_loaded_and_built"
FILE = f"E {GGUF}::test_every_family_computes_what_transformers_does"
Q4_0 = f"E {GGUF}::test_int4_codes_without_prequant_scales_are_q4_0_as_they_are"
TYPES = f"A {GGUF}::test_types_are_ggufs_own"
PLAIN = f"E {VLLM}::test_formats_without_groups_are_the_checkpoint"
PACKED = f"E {VLLM}::test_int4_is_the_checkpoint_to_the_last_bit"
STATIC = f"E {VLLM}::test_formats_that_round_activations"
NO_FLOAT8 = "R the CPU has no float8 arithmetic"
NO_TYPE = "R GGUF has no type of"
THEIRS = "R is a type of llamacpp's own"
NO_CACHE = "R KV cache with calibrated scales is"

PROOFS: dict[str, dict[str, str]] = {
    "openvino": {
        "float16": GRAPH,
        "bfloat16": GRAPH,
        "int8_sq": f"E {NUMERICS}::test_every_linear_is_exact_on_identical_input",
        "int4_awq": GRAPH,
        # The same checkpoint as int4_awq's, with pre-quant scales of one.
        "int4_gptq": GRAPH,
        "fp8": NO_FLOAT8,
        "w4a8_awq": NO_FLOAT8,
        "nf4": ROUNDED,
        "int8_wo": ROUNDED,
        "float32": f"E {OWN}::test_float32_is_the_source_itself",
        "int8 KV cache": NO_CACHE,
        "fp8 KV cache": NO_CACHE,
        "q8_0": THEIRS,
        "q4_k_m": THEIRS,
    },
    "tensorrt": {
        "float16": BUILT,
        "bfloat16": BUILT,
        "int8_sq": BUILT,
        "int4_awq": BUILT,
        "int4_gptq": BUILT,
        "fp8": BUILT,
        "w4a8_awq": BUILT,
        "nf4": "R QuantAlgo has no NF4",
        "int8_wo": "R it rounds them itself while it loads 16 bit",
        "float32": "R no fused attention in float32",
        "int8 KV cache": BUILT,
        "fp8 KV cache": BUILT,
        "q8_0": THEIRS,
        "q4_k_m": THEIRS,
    },
    "llamacpp": {
        "float16": FILE,
        "bfloat16": FILE,
        "int8_sq": "R GGUF has no scale of activations",
        "int4_awq": f"A {GGUF}::test_awq_scales_move_and_what_cannot_is_said",
        "int4_gptq": Q4_0,
        "fp8": NO_TYPE,
        "w4a8_awq": NO_TYPE,
        "nf4": NO_TYPE,
        "int8_wo": f"A {OWN}::test_weight_only_int8_is_q8_0_with_its_codes",
        "float32": FILE,
        "int8 KV cache": NO_CACHE,
        "fp8 KV cache": NO_CACHE,
        "q8_0": TYPES,
        "q4_k_m": f"A {GGUF}::test_a_k_mixture_is_read_by_llama_cpp",
    },
    "vllm": {
        "float16": PLAIN,
        "bfloat16": PLAIN,
        "int8_sq": STATIC,
        "int4_awq": PACKED,
        "int4_gptq": PACKED,
        "fp8": STATIC,
        "w4a8_awq": "R vLLM reads no checkpoint with weights in int4 and inputs in fp8",
        "nf4": "R vLLM reads no checkpoint with weights in nf4",
        "int8_wo": PLAIN,
        "float32": PLAIN,
        "int8 KV cache": NO_CACHE,
        "fp8 KV cache": NO_CACHE,
        "q8_0": THEIRS,
        "q4_k_m": THEIRS,
    },
}
# ModelOpt's folder of the checkpoint, for programs that nobody here can run.
UNIFIED = "E tests/integration/test_unified_folder.py::"
PROOFS |= {
    "llmapi": {
        "float16": f"E {OWN}::test_a_folder_in_floating_point_is_the_source",
        "bfloat16": f"E {OWN}::test_a_folder_in_floating_point_is_the_source",
        "int8_sq": "R no method for W8A8_SQ_PER_CHANNEL",
        "int4_awq": f"{UNIFIED}test_codes_and_scales_are_the_checkpoints",
        "int4_gptq": f"{UNIFIED}test_codes_and_scales_are_the_checkpoints",
        "fp8": f"{UNIFIED}test_codes_and_scales_are_the_checkpoints",
        "w4a8_awq": "R gate_proj and up_proj get pre-quant scales of their own",
        "nf4": "R no method for NF4",
        "int8_wo": "R no method for INT8_WO",
        "float32": "R computes in 16 bits",
        "int8 KV cache": "R has no INT8 KV cache",
        "fp8 KV cache": f"{UNIFIED}test_codes_and_scales_are_the_checkpoints",
        "q8_0": THEIRS,
        "q4_k_m": THEIRS,
    },
    "edgellm": {
        "float16": f"E {OWN}::test_a_folder_in_floating_point_is_the_source",
        "bfloat16": "R computes in float16 alone",
        "int8_sq": f"{UNIFIED}test_layout_is_modelopts",
        "int4_awq": f"{UNIFIED}test_codes_and_scales_are_the_checkpoints",
        "int4_gptq": f"{UNIFIED}test_codes_and_scales_are_the_checkpoints",
        "fp8": f"{UNIFIED}test_codes_and_scales_are_the_checkpoints",
        "w4a8_awq": "R no linear for W4A8_AWQ",
        "nf4": "R no linear for NF4",
        "int8_wo": "R no linear for INT8_WO",
        "float32": "R computes in float16 alone",
        "int8 KV cache": "R has no INT8 KV cache",
        "fp8 KV cache": f"{UNIFIED}test_codes_and_scales_are_the_checkpoints",
        "q8_0": THEIRS,
        "q4_k_m": THEIRS,
    },
}
# The same file with a Modelfile beside it.
PROOFS["ollama"] = PROOFS["llamacpp"]
NEED_PORTABLE = {("int8_sq", "vllm"), ("int4_awq", "vllm"), ("int4_awq", "llmapi")}
CELLS = [(target, name) for target, column in PROOFS.items() for name in column]


@cache
def cells() -> dict[tuple[str, str], Cell]:
    rows = capability(usual_recipe(), usual_facts())
    return {(cell.target, cell.format): cell for row in rows for cell in row}


@pytest.mark.parametrize(("target", "name"), CELLS, ids=[f"{t}-{n}" for t, n in CELLS])
def test_a_cell_is_what_the_facts_say(target: str, name: str) -> None:
    if target not in TARGETS:
        pytest.skip(f"there is no target {target}")
    cell, (kind, _, proof) = cells()[target, name], PROOFS[target][name].partition(" ")
    assert cell.taken == (kind != "R"), cell.reason
    if kind == "R":
        assert proof.lower() in cell.reason.lower()
        assert cell.fix
        return
    assert bool(cell.needs) == ((name, target) in NEED_PORTABLE)
    file, _, function = proof.partition("::")
    tree = ast.parse((PROJECT / file).read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_format_and_target_is_in_the_table() -> None:
    assert {target for target, _ in cells()} == set(TARGETS)
    formats = {name for _, name in cells()}
    assert set(FORMATS) < formats
    types = {name for target in TARGETS for name in get_target(target).own_types}
    assert types < formats
    for column in PROOFS.values():
        assert set(FORMATS) <= set(column)


def test_what_a_refusal_advises_is_taken() -> None:
    """Formats that a remedy names for the same target are taken there."""
    for (target, name), cell in cells().items():
        if cell.taken or name not in FORMATS or not cell.fix:
            continue
        advised = re.match(
            r"Set quantize\.format to ([\w, ]+?)(?:[,;]? or (?:to|take|compile)|;|$)", cell.fix
        )
        for other in re.findall(r"\w+", advised[1]) if advised else []:
            if other in FORMATS:
                assert cells()[target, other].taken, (target, name, other)


def test_the_readme_has_the_table_that_the_targets_give() -> None:
    text = Path(PROJECT / "README.md").read_text(encoding="utf-8")
    _, begin, rest = text.partition(BEGIN)
    table, end, _ = rest.partition(END)
    assert begin
    assert end
    rows = capability(usual_recipe(), usual_facts())
    assert table.strip() == "\n".join(markdown_lines(rows)), "make docs writes it"

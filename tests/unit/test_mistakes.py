"""All mistakes of a recipe are told in one go; the expected lines are written by hand."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.recipe.file import load_recipe
from pipeline.recipe.mistakes import OTHER_NAMES
from pipeline.recipe.tree import every_key

from ..conftest import PROJECT

WRONG = """\
schema: 2
nome: seven
gruop: 3
model:
  source: https://huggingface.co/Org/Name/tree/main
  dtype: fp16
group_size: 64
quantize:
  format: int4-awq
  group_sise: 64
  smoothquant_alpha: 2%
evaluate:
  gates: {top1_agreement: 95}
  tasks:
    - {name: t, file: x, layout: mmlo}
compile:
  qformat: x
  max_batch_size: '8'
  max_input_len: 300
  max_seq_len: 200
serve:
  decoupled: maybe
bench:
"""
OVERRIDES = ["quantise.kv_cache=int8", "compile.x", "bench.requests=0"]
EXPECTED = """\
error: 18 mistakes:
wrong.yaml:1:1: schema is wrong. It must be 1, not 2. Write schema: 1.
wrong.yaml:2:1: unknown key nome. Did you mean name?
wrong.yaml:3:1: unknown key gruop. Did you mean quantize.group_size?
wrong.yaml:5:3: model.source is wrong. https://huggingface.co/Org/Name/tree/main is the address \
of a page; write Org/Name.
wrong.yaml:6:3: model.dtype is wrong. 'fp16' is not one of 'float16' or 'bfloat16'. Did you mean \
float16?
wrong.yaml:7:1: unknown key group_size. Did you mean quantize.group_size?
wrong.yaml:9:3: quantize.format is wrong. 'int4-awq' is not one of 'float16', 'bfloat16', \
'int8_sq', 'int4_awq', 'int4_gptq', 'fp8', 'w4a8_awq', 'nf4', 'int8_wo' or 'float32'. Did you \
mean int4_awq?
wrong.yaml:10:3: unknown key quantize.group_sise. Did you mean group_size?
wrong.yaml:11:3: quantize.smoothquant_alpha is wrong. '2%' is not a number. Write 0.02: shares \
are numbers here.
wrong.yaml:12:1: missing key: evaluate.text. Write text and its value below evaluate.
wrong.yaml:13:11: evaluate.gates.top1_agreement is wrong. 95 is more than 1: write 0.95 for 95 %.
wrong.yaml:15:26: evaluate.tasks.0.layout is wrong. 'mmlo' is not one of 'hellaswag' or 'mmlu'. \
Did you mean mmlu?
wrong.yaml:17:3: unknown key compile.qformat. Did you mean quantize.format?
wrong.yaml:18:3: compile.max_batch_size is wrong. '8' is not a whole number. Write 8 without \
quotes.
wrong.yaml:22:3: serve.decoupled is wrong. 'maybe' is not allowed: it is true, false or 'both'. \
Choose one of these.
--set quantise.kv_cache=int8: unknown key quantise. Did you mean quantize?
--set compile.x: not an assignment. Write --set section.key=value, for example --set \
compile.max_batch_size=8.
--set bench.requests=0: bench.requests is wrong. 0 is not allowed: it should be greater than 0. \
Set bench.requests to a value that is allowed, such as its default, 40.
"""
MINIMAL = "schema: 1\nname: t\nmodel: {source: some/model}\nquantize: {format: float16}\n"


def _plan(folder: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", "plan", *words]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "COLUMNS": "80"}
    given: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": environment,
    } | options
    return subprocess.run(command, cwd=folder, text=True, check=False, **given)


def _sets(overrides: list[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def test_every_mistake_is_a_line_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(WRONG)
    told = _plan(tmp_path, "wrong.yaml", *_sets(OVERRIDES))
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == EXPECTED


def test_json_has_the_first_as_before_and_all_as_a_list(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(WRONG)
    told = _plan(tmp_path, "wrong.yaml", *_sets(OVERRIDES), "--json")
    assert (told.returncode, told.stderr) == (2, "")
    error = json.loads(told.stdout)
    first = {"what": "schema is wrong", "where": "wrong.yaml:1:1", "why": "it must be 1, not 2"}
    assert first.items() <= error.items()
    assert (error["error"], error["exit_code"]) == ("RecipeError", 2)
    assert len(error["errors"]) == 18
    assert error["errors"][0] == first | {"key": "schema", "fix": "Write schema: 1"}
    assert error["errors"][9] == {
        "where": "wrong.yaml:12:1",
        "key": "evaluate.text",
        "what": "missing key: evaluate.text",
        "why": None,
        "fix": "Write text and its value below evaluate",
    }


def test_a_terminal_gets_colour_and_lines_that_fit_it(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(WRONG)
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"PYTHONPATH": str(PROJECT), "COLUMNS": "60", "TERM": "xterm-256color"}
    done = _plan(
        tmp_path, "wrong.yaml", *_sets(OVERRIDES),
        stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 2
    assert re.match(r"\x1b\[[\d;]*31m", shown), "error: is not red"
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()) == " ".join(EXPECTED.split())


def test_a_word_longer_than_the_terminal_stays_whole(tmp_path: Path) -> None:
    name = f"{'long' * 20}.yaml"
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "COLUMNS": "40", "TERM": "xterm"}
    _plan(tmp_path, name, stderr=theirs, env=environment)
    os.close(theirs)
    assert f"{name}:" in os.read(ours, 1 << 16).decode()
    os.close(ours)


def test_rules_between_keys_are_told_beside_those_of_other_sections(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{MINIMAL}compile:\n  max_input_len: 300\n  max_seq_len: 200\n")
    with pytest.raises(RecipeError, match="2 mistakes") as caught:
        load_recipe(path, ["serve.cuda_graphs=-1"])
    assert [mistake.key for mistake in caught.value.mistakes] == ["compile", "serve.cuda_graphs"]
    assert caught.value.mistakes[0].where == f"{path}:5:1"


@pytest.mark.parametrize(
    ("override", "tip"),
    [
        ("quantize.format=int8", r"Did you mean int8_sq\?"),
        ("quantize.format=int4-awq", r"Did you mean int4_awq\?"),
        ("quantize.format=w4a16", r"Did you mean int4_awq\?"),
        ("quantize.format=W4A8", r"Did you mean w4a8_awq\?"),
        ("quantize.format=smoothquant", r"Did you mean int8_sq\?"),
        ("compile.target=tensorRT", r"Did you mean tensorrt\?"),
        ("compile.tokens_per_block='64'", "Write 64 without quotes"),
        ("serve.kv_cache_free_gpu_mem_fraction=90", r"Write 0\.9 for 90 %"),
        ("cost.utilization=50%", r"Write 0\.5: shares"),
        ("model.text=t", r"Did you mean quantize\.calibration\.text or evaluate\.text\?"),
        ("plugin_config={}", r"Did you mean compile\.tensorrt\.plugin_config\?"),
        ("tp_size=2", r"Did you mean compile\.tensor_parallel\?"),
        ("model.source=hf.co/Org/Name", "write Org/Name"),
        ("serve.enable_kv_cache_reuse=1", r"1 is not allowed: it is true or false"),
        ("compile.max_seq_len=8.5", r"8\.5 is not a whole number\. .*such as its default, 2048"),
        ("bench.concurrency=8", r"8 is not a list"),
        ('cost.currency="a\\u001b[2J"', "has a character that cannot be printed"),
        ("zebra=1", "Known keys here: schema, name, model"),
        ("name=null", r"name is wrong\. It is empty\. Write a value, or leave name out"),
    ],
)
def test_tips_are_searched_in_the_whole_tree(tmp_path: Path, override: str, tip: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    with pytest.raises(RecipeError, match=tip):
        load_recipe(path, [override])


def test_other_tools_names_stand_for_keys_that_exist() -> None:
    assert set(OTHER_NAMES.values()) <= set(every_key())


def test_model_and_texts_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        MINIMAL.replace("some/model", "./nowhere") + "evaluate:\n  text: no.txt\n"
        "  tasks:\n    - {name: t, file: no.jsonl, layout: mmlu}\n"
    )
    told = _plan(tmp_path, "r.yaml")
    assert told.returncode == 2
    assert told.stderr.startswith("error: 3 mistakes:\nr.yaml:3 (model.source): there is no model ")
    for place in ("r.yaml:6 (evaluate.text): ", "r.yaml:8 (evaluate.tasks.0): "):
        assert f"\n{place}" in told.stderr


def test_folders_of_other_kinds_say_what_to_do(tmp_path: Path) -> None:
    adapter, gguf = tmp_path / "adapter", tmp_path / "gguf"
    adapter.mkdir()
    gguf.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "Org/Base"}')
    (gguf / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    (tmp_path / "r.yaml").write_text(MINIMAL)
    for source, words in {
        "adapter": r"is a LoRA adapter, not a model\. It changes Org/Base.*merge_and_unload\(\)",
        "gguf": r"model-Q4_K_M\.gguf is a model of llama\.cpp\..*Hugging Face checkpoint",
        "gguf/model-Q4_K_M.gguf": r"model-Q4_K_M\.gguf is a model of llama\.cpp",
    }.items():
        told = _plan(tmp_path, "r.yaml", "--set", f"model.source={source}")
        assert told.returncode == 2
        assert re.search(words, told.stderr), told.stderr

"""``scripts/gpu-check`` on the CPU: it runs to the end, and each part finds what it looks for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("modelopt")

import torch

from scripts.gpu_check import __main__ as command
from scripts.gpu_check import batches, exports, footprint, machine, part, products
from scripts.gpu_check.task import Task, quantize, recipe
from tests.conftest import PROJECT
from tests.doubles.trtllm_build.machine import BIN

SCRIPT = PROJECT / "scripts" / "gpu-check"


def run(
    output: Path, *arguments: str, path: str = "/usr/bin:/bin"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, str(output), *arguments],
        env={"PYTHON": sys.executable, "PATH": path, "HOME": str(output.parent)},
        cwd=output.parent,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_it_runs_to_its_end_without_a_gpu(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    done = run(output, "--device", "cpu", "--only", "footprint,batches,machine")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"report: {output}"
    report = json.loads(output.read_text())
    statuses = {"batches": "passed", "machine": "skipped", "footprint": "skipped"}
    assert {name: part["status"] for name, part in report["parts"].items()} == statuses
    assert report["machine"]["torch"] == torch.__version__
    assert report["parts"]["machine"]["reason"] == "needs a CUDA device"
    texts = {row["case"]: row["texts"] for row in report["parts"]["batches"]["cases"]}
    assert texts == {"float32, 8 together": 16, "float32, 32 together": 32}


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
@pytest.mark.parametrize("gpu", [True, False], ids=["with a GPU", "without a GPU"])
def test_a_cpu_build_of_torch_is_named_where_there_is_a_gpu(tmp_path: Path, gpu: bool) -> None:
    programs = f"{BIN}:/usr/bin:/bin" if gpu else "/usr/bin:/bin"
    done = run(tmp_path / "report.json", path=programs)
    assert done.returncode == 3
    assert ("this torch is a CPU build" in done.stderr) is gpu
    assert ("install a CUDA build" in done.stderr) is gpu
    assert ("--device cpu" in done.stderr) is not gpu


@pytest.mark.parametrize("name", ["int8_sq", "fp8"])
def test_exports_and_products_hold_on_the_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for module in ("exports", "products"):
        results = tmp_path / f"{module}.jsonl"
        arguments = ["part", module, "--device=cpu", f"--work={tmp_path}", f"--formats={name}"]
        monkeypatch.setattr(sys, "argv", [*arguments, f"--results={results}"])
        part.main()
        found[module] = [json.loads(line) for line in results.read_text().splitlines()]
    exported, by_layer = found["exports"]
    assert (by_layer["case"], by_layer["status"]) == (f"{name} by layer", "passed")
    assert by_layer["differences"] == []
    assert (exported["case"], exported["status"]) == (name, "passed")
    assert exported["compared"] == "cpu with cpu"
    assert exported["tensors"] > 50
    assert {row["status"] for row in found["products"]} == {"passed"}
    assert len({row["case"] for row in found["products"]}) == 10
    assert {row["case"].split()[0] for row in found["products"]} == {name.removesuffix("_sq")}


def test_a_part_whose_time_is_over_keeps_what_it_had(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    done = run(output, "--device", "cpu", "--only", "batches,machine", "--seconds", "2")
    assert done.returncode == 1
    report = json.loads(output.read_text())
    assert report["parts"]["batches"]["status"] == "cut off"
    assert "s were over after 0 cases" in report["parts"]["batches"]["reason"]
    assert report["parts"]["machine"]["status"] in ("skipped", "cut off")
    assert report["seconds"] < 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_cuda_it_says_so(tmp_path: Path) -> None:
    done = run(tmp_path / "report.json")
    assert done.returncode == 3
    assert "sees no CUDA device; --device cpu runs what needs none" in done.stderr
    assert not (tmp_path / "report.json").exists()
    wrong = run(tmp_path / "report.json", "--only", "exports,engines")
    assert wrong.returncode == 2
    assert "there is no part engines; parts: exports, products" in wrong.stderr


@pytest.mark.parametrize(
    ("code", "cases", "status", "reason"),
    [
        (None, [{"status": "passed"}], "cut off", "7 s were over after 1 cases"),
        (-9, [], "failed", "it ended with exit code -9 after 0 cases: Killed"),
        (0, [{"case": "a", "status": "failed", "reason": "b"}], "failed", "a: b"),
        (0, [{"status": "skipped", "reason": "why"}] * 2, "skipped", "why"),
        (0, [], "skipped", "no case was asked for"),
        (0, [{"status": "skipped", "reason": "why"}, {"status": "measured"}], "passed", ""),
    ],
)
def test_what_came_of_a_part(
    code: int | None, cases: list[dict[str, Any]], status: str, reason: str
) -> None:
    assert command.outcome(code, cases, 7.0, "Killed") == (status, reason)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in INT8, with an INT8 KV cache."""
    wanted = recipe("int8_sq", "cpu", kv_cache="int8", samples=2, length=32)
    return quantize(wanted, tmp_path_factory.mktemp("checkpoint") / "int8_sq")


def test_exports_differ_where_a_tensor_was_changed(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    assert exports.problems(exports.compare(checkpoint, checkpoint)) == []
    weight, scale = (
        f"transformer.layers.0.mlp.fc.{name}" for name in ("weight", "weights_scaling_factor")
    )
    changed = load_file(checkpoint / "rank0.safetensors")
    changed[weight][3, :5] += 1
    changed[scale] *= 1.01
    del changed["transformer.ln_f.weight"]
    save_file(changed, tmp_path / "rank0.safetensors")
    rows = exports.compare(checkpoint, tmp_path)
    assert exports.problems(rows) == [
        "transformer.ln_f.weight is in one of the two only",
        f"{scale} is off by 1.0e-02",
        f"5 of {changed[weight].numel()} elements of {weight} differ",
    ]
    changed[scale] /= 1.01 * (1 + 5e-4)  # within the tolerance
    save_file(changed, tmp_path / "rank0.safetensors")
    assert not [text for text in exports.problems(exports.compare(checkpoint, tmp_path))
                if "off by" in text]  # fmt: skip


def test_an_inexact_product_fails(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.checkpoint import open_checkpoint

    linear = open_checkpoint(checkpoint).weights().layers[0].proj
    assert products.int8_case(linear, "cpu")["status"] == "passed"
    real = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: real(a, b) + 1)
    found = products.int8_case(linear, "cpu")
    assert found["status"] == "failed"
    assert found["inexact_sums"] == products.ROWS * linear.out_features
    assert "sums are not exact" in found["reason"]

    def refuse(*_: Any) -> None:
        raise RuntimeError("_int_mm: not on this GPU\nmore")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    skipped = products.int8_case(linear, "cpu")
    assert skipped["status"] == "skipped"
    assert skipped["reason"] == "torch._int_mm does not run here: _int_mm: not on this GPU"


def test_the_gap_is_counted_where_texts_split() -> None:
    scores = torch.tensor([[0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]).log()
    moved = torch.tensor([[0.45, 0.45, 0.1], [0.2, 0.2, 0.6], [0.9, 0.05, 0.05]]).log()
    alone = [batches.Answer([0, 1, 2], scores)]
    together = [batches.Answer([0, 1, 2], scores), batches.Answer([0, 2, 0], moved)]
    found = batches.differences(alone, together)
    assert (found["texts"], found["texts_that_differ"]) == (2, 1)
    # ln(0.7 / 0.1) at the second token; ln(0.5 / 0.45) before it.
    assert found["splits"] == [{"prompt": 0, "token": 1, "gap": pytest.approx(1.9459101)}]
    assert found["largest_log_prob_change"] == pytest.approx(0.1053605)


H100 = {"name": "NVIDIA H100 80GB HBM3", "sm": 90, "memory": 81559 << 20}
L4 = {"name": "NVIDIA L4", "sm": 89, "memory": 23034 << 20}


@pytest.mark.parametrize(
    ("torch_sees", "problems"),
    [
        ([L4 | {"memory": 22_478 << 20}, H100 | {"memory": 81_090 << 20}], []),
        ([H100], ["nvidia-smi lists 2 GPUs, torch 1"]),
        ([H100, L4 | {"sm": 86}], ["sm is 89 by nvidia-smi and 86 by torch"]),
        ([H100, L4 | {"memory": 5}], [f"memory is {23034 << 20} by nvidia-smi and 5 by torch"]),
    ],
)
def test_nvidia_smi_is_held_against_torch(
    torch_sees: list[dict[str, Any]], problems: list[str]
) -> None:
    assert machine.disagreements([H100, L4], torch_sees) == problems


@pytest.mark.parametrize("name", footprint.SHAPES)
def test_a_shape_has_the_parameters_of_transformers_model(name: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = footprint.SHAPES[name]
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape.sizes))
    counted = sum(p.numel() for key, p in model.named_parameters() if "norm" not in key)
    assert shape.parameters == counted
    # Llama-3.2-1B ties its embeddings, this one does not.
    assert counted == pytest.approx({"1B": 1.5e9, "7B": 6.74e9}[name], rel=0.01)


@pytest.mark.parametrize("name", footprint.FORMATS)
def test_a_model_of_random_weights_is_calibrated_and_exported(name: str, tmp_path: Path) -> None:
    tiny = footprint.Shape(
        {
            "hidden_size": 256,
            "intermediate_size": 256,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 320,
        }
    )
    found = footprint.measure(f"tiny {name}", tiny, name, Task("cpu", tmp_path), (2, 32))
    assert found["status"] == "measured"
    assert found["parameters"] == tiny.parameters
    # Embeddings and head stay in 16 bit; linears take a half or a quarter of that.
    assert found["checkpoint_bytes"] < 2 * tiny.parameters
    assert found["seconds_calibrate"] > 0
    assert found["peak_gpu_bytes"] is None
    assert list(tmp_path.iterdir()) == []

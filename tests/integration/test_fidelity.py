"""The compiled engine measured on its own: what it is held against, and damage that must show."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("modelopt")

import transformers
from safetensors.numpy import load_file, save_file

from pipeline.progress import Silent
from pipeline.recipe.schema import Recipe
from pipeline.stages import compile as compile_stage
from pipeline.stages import fidelity
from pipeline.stages.base import StageContext
from pipeline.store.artifact import Artifact
from pipeline.targets.openvino.measure import MeasuredHere
from tests.conftest import DEMO_MODEL
from tests.integration.openvino_support import compile_engine
from tests.integration.quantize_support import run_stage
from tests.unit.checkpoint.drawn import drawn_checkpoint

TEXT = DEMO_MODEL.parent / "data" / "heldout.jsonl"
CALIBRATION = {"samples": 8, "sequence_length": 128, "batch_size": 8}
TOKENS = 1500


def settings(name: str, **changes: Any) -> Recipe:
    """A recipe of the demo model; ``changes`` are keys of ``evaluate``."""
    text = str(TEXT.with_name("calibration.jsonl"))
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"source": str(DEMO_MODEL)},
            "quantize": {
                "format": name,
                "smoothquant_alpha": 0.5,
                "device": "cpu",
                "calibration": {"text": text, **CALIBRATION},
            },
            "evaluate": {
                "text": str(TEXT),
                "engine_tokens": TOKENS,
                "sequence_length": 256,
                **changes,
            },
            "compile": {"max_input_len": 384, "max_seq_len": 512, "max_batch_size": 4},
        }
    )


def artifact(stage: str, path: Path) -> Artifact:
    return Artifact(stage, "key", "digest", path, {})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints of the demo model, written once each."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def find(name: str) -> Path:
        if not (folder / name).exists():
            run_stage(settings(name), DEMO_MODEL, folder / name)
        return folder / name

    return find


def compiled(recipe: Recipe, checkpoint: Path, output: Path) -> Path:
    output.mkdir(parents=True)
    inputs = {"quantize": artifact("quantize", checkpoint)}
    compile_stage.run(StageContext(recipe, inputs, output, Silent()))
    return output


def measured(recipe: Recipe, checkpoint: Path, engine: Path, output: Path) -> dict[str, Any]:
    output.mkdir()
    inputs = {
        "source": artifact("source", DEMO_MODEL),
        "quantize": artifact("quantize", checkpoint),
        "compile": artifact("compile", engine),
    }
    facts = fidelity.run(StageContext(recipe, inputs, output, Silent()))
    assert json.loads((output / fidelity.RESULT_NAME).read_text()) == facts
    return facts


def values(estimates: dict[str, Any]) -> dict[str, float]:
    return {name: estimate["value"] for name, estimate in estimates.items()}


@torch.inference_mode()
def losses_of_transformers(rows: list[list[int]]) -> list[np.ndarray]:
    """Negative log-likelihoods of the source model, by transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO_MODEL, torch_dtype=torch.float32)
    found = []
    for row in rows:
        logits = model(torch.tensor([row])).logits[0, :-1].double()
        targets = torch.tensor(row[1:])
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        found.append(loss.numpy())
    return found


def rows_of_text() -> list[list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)
    texts = [json.loads(line)["text"] for line in TEXT.read_text().splitlines()[:7]]
    every = [tokenizer.encode(text) for text in texts]
    # Longer than a step of the server, as long as one, next to it, and two tokens.
    whole = [token for row in every for token in row]
    return [whole[:510], whole[:256], whole[:257], every[1], every[2][:2], every[3], every[4][:33]]


def test_both_ways_to_run_the_engine_are_transformers_numbers(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """The demo model is float16, so its float16 engine computes the same function."""
    engine = compiled(settings("float16"), checkpoint("float16"), tmp_path / "engine")
    rows = rows_of_text()
    expected = losses_of_transformers(rows)
    here = MeasuredHere({}, 511, lambda: "f32")
    served = here.losses(engine, checkpoint("float16"), rows, tmp_path, Silent())
    with here.logits(engine) as scorer:
        for row, want, prompt in zip(rows, expected, served, strict=True):
            logits = scorer(torch.tensor([row, row[::-1]]))
            assert logits.dtype == torch.float32
            targets = torch.tensor(row[1:])
            graph = torch.nn.functional.cross_entropy(logits[0, :-1], targets, reduction="none")
            assert np.abs(graph.numpy() - want).max() < 1e-4
            assert len(prompt) == len(row) - 1
            assert np.abs(prompt - want).max() < 1e-4


def test_the_numbers_are_those_of_the_source_by_transformers(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = settings("float16", engine_tokens=400)
    engine = compiled(recipe, checkpoint("float16"), tmp_path / "engine")
    found = measured(recipe, checkpoint("float16"), engine, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)
    rows, left = [], 400
    for line in TEXT.read_text().splitlines():
        row = tokenizer.encode(json.loads(line)["text"])[: left + 1]
        assert len(row) <= 256
        rows.append(row)
        left -= len(row) - 1
        if not left:
            break
    losses = np.concatenate(losses_of_transformers(rows))
    assert (found["tokens"], found["documents"]) == (400, len(rows)) == (len(losses), len(rows))
    assert found["perplexity"]["value"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    assert found["perplexity"]["low"] < found["perplexity"]["value"] < found["perplexity"]["high"]
    assert abs(found["perplexity_increase"]["value"]) < 1e-5
    assert found["top1_agreement"]["value"] == 1.0


@pytest.mark.parametrize("name", ["float16", "int4_awq", "int8_sq"])
def test_an_undamaged_engine_is_its_checkpoint(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = settings(name)
    engine = compiled(recipe, checkpoint(name), tmp_path / "engine")
    found = measured(recipe, checkpoint(name), engine, tmp_path / "out")
    own = values(found["against_checkpoint"])
    print(name, own)
    # Ties between two integers are rounded otherwise, and one moves others.
    increase, divergence, agreement = (1e-3, 1e-4, 0.99) if name == "int8_sq" else (1e-5, 1e-8, 1.0)
    assert abs(own["perplexity_increase"]) < increase
    assert abs(own["kl_divergence"]) < divergence
    assert own["kl_divergence_p99"] < 100 * divergence
    assert own["top1_agreement"] >= agreement
    if name != "float16":
        # What quantization cost is the checkpoint's, and does not show between the two.
        assert found["kl_divergence"]["value"] > 10 * abs(own["kl_divergence"])
        assert found["top1_agreement"]["value"] < own["top1_agreement"]


def another_rope_base(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["rotary_base"] == 10000.0
    config["rotary_base"] = 500000.0
    (folder / "config.json").write_text(json.dumps(config))


def exchanged_fc_and_gate(folder: Path) -> None:
    path = folder / "rank0.safetensors"
    tensors = load_file(path)
    fc, gate = "transformer.layers.1.mlp.fc.", "transformer.layers.1.mlp.gate."
    names = [name for name in tensors if name.startswith(fc)]
    assert names
    for name in names:
        other = gate + name.removeprefix(fc)
        tensors[name], tensors[other] = tensors[other], tensors[name]
    save_file(tensors, path)


def another_checkpoint(folder: Path) -> None:
    """Of a model that was trained a little further: every weight is another."""
    path = folder / "rank0.safetensors"
    tensors = load_file(path)
    generator = np.random.default_rng(3)
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f" and "layernorm" not in name and "smoother" not in name:
            noise = generator.normal(1.0, 0.05, tensor.shape)
            tensors[name] = (tensor * noise).astype(tensor.dtype)
    save_file(tensors, path)


def louder_scales(folder: Path) -> None:
    path = folder / "rank0.safetensors"
    tensors = load_file(path)
    kinds = ("per_channel_scale", "weights_scaling_factor")
    names = [name for name in tensors if ".layers.0." in name and name.endswith(kinds)]
    assert names
    for name in names:
        tensors[name] = (tensors[name] * 1.5).astype(tensors[name].dtype)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("float16", another_rope_base),
        ("float16", another_checkpoint),
        ("int8_sq", exchanged_fc_and_gate),
        ("int8_sq", another_checkpoint),
        ("int4_awq", exchanged_fc_and_gate),
        ("int4_awq", louder_scales),
    ],
)
def test_a_damaged_engine_is_seen_against_the_checkpoint(
    name: str, damage: Callable[[Path], None], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe, whole = settings(name), checkpoint(name)
    shutil.copytree(whole, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    engine = compiled(recipe, tmp_path / "damaged", tmp_path / "engine")
    found = measured(recipe, whole, engine, tmp_path / "out")["against_checkpoint"]
    print(name, damage.__name__, found)
    # Beyond what an undamaged engine of any format shows, in both.
    assert found["kl_divergence"]["low"] > 2e-4
    assert found["top1_agreement"]["high"] < 0.98


QUESTIONS = (
    ("A story: Once there was a", ("gentle boy", "zzz qqq", "the the", ", , ,")),
    ("A story: He lived by the", ("kk", "sea.", "!!!", "zz zz")),
)


def chosen_by_transformers() -> list[int]:
    """The ending of each question that is likeliest for a character of it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)
    found = []
    for context, endings in QUESTIONS:
        start = len(tokenizer.encode(context))
        rows = [tokenizer.encode(f"{context} {ending}") for ending in endings]
        losses = losses_of_transformers(rows)
        scores = [
            -loss[start - 1 :].sum() / len(e) for loss, e in zip(losses, endings, strict=True)
        ]
        found.append(int(np.argmax(scores)))
    return found


def test_the_engine_answers_tasks(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """The label of the first question is what transformers chooses, that of the second is not."""
    first, second = chosen_by_transformers()
    lines = [
        {"activity_label": label, "ctx_a": words, "ctx_b": "", "endings": endings, "label": answer}
        for (label, words), endings, answer in zip(
            (context.split(": ") for context, _ in QUESTIONS),
            (endings for _, endings in QUESTIONS),
            (first, (second + 1) % 4),
            strict=True,
        )
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    task = {"name": "stories", "file": str(file), "layout": "hellaswag"}
    recipe = settings("float16", engine_tokens=50, tasks=[task])
    engine = compiled(recipe, checkpoint("float16"), tmp_path / "engine")
    (scored,) = measured(recipe, checkpoint("float16"), engine, tmp_path / "out")["tasks"]
    assert (scored["name"], scored["rows"]) == ("stories", 2)
    assert scored["accuracy"]["value"] == scored["source_accuracy"] == 0.5
    assert scored["accuracy_change"]["value"] == 0.0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_the_graph_is_closed_before_the_served_pipeline_opens_the_engine(tmp_path: Path) -> None:
    engine = compile_engine(drawn_checkpoint(tmp_path / "checkpoint", "NO_QUANT"), tmp_path / "e")

    def is_mapped() -> bool:
        return str(engine / "openvino_model.bin") in Path("/proc/self/maps").read_text()

    with MeasuredHere({}, 100, lambda: "f32").logits(engine) as scorer:
        assert scorer(torch.zeros((1, 8), dtype=torch.int64)).shape == (1, 8, 101)
        assert is_mapped()
    # The stage still has the scorer.
    assert not is_mapped()
    assert scorer is not None

"""The command ``lm-eval`` with EleutherAI's lm-eval, where ``make eval`` has installed it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import MissingDependencyError, UsageError
from pipeline.harness.launch import find_python
from pipeline.triton.server import TritonServer

from ..conftest import DEMO_MODEL, PROJECT
from .conftest import LONGEST, Cli, mutual_tls, scored_repository

HELLASWAG = PROJECT.parent / "shared" / "data" / "hellaswag_val_1000.jsonl"
ROWS = 4
TASKS = {
    "swag": """\
task: swag
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {rows}}}}}
validation_split: validation
output_type: multiple_choice
process_docs: !function lm_eval.tasks.hellaswag.utils.process_docs
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: choices
metric_list:
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
""",
    "rolling": """\
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {rows}}}}}
validation_split: validation
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{ctx}}}}"
metric_list:
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
""",
    "goeson": """\
task: goeson
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {stories}}}}}
validation_split: validation
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{text}}}}"
generation_kwargs: {{until: ["."], do_sample: false, max_gen_toks: 20}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
""",
}


# Each starts PyTorch and lm-eval in processes of their own.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python with lm-eval; another one than the default is in the environment."""
    named = os.environ.get("TRTLLM_PIPELINE_EVAL_PYTHON")
    try:
        return find_python(Path(named) if named else None)
    except (MissingDependencyError, UsageError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of lm-eval's own kinds on local rows; the text to come is what transformers writes."""
    if not HELLASWAG.is_file():
        pytest.skip("../shared/data is not here")
    folder = tmp_path_factory.mktemp("tasks")
    rows, stories = folder / "rows.jsonl", folder / "stories.jsonl"
    rows.write_text("\n".join(HELLASWAG.read_text("utf-8").splitlines()[:ROWS]) + "\n")
    prompts = [
        "Once there was a gentle boy named Jack, and he lived by the sea.",
        "Once there was a kind girl named Lily, and she lived by the",
    ]
    stories.write_text(
        "".join(f"{json.dumps({'prompt': p, 'text': greedy_sentence(p)})}\n" for p in prompts)
    )
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text.format(rows=rows, stories=stories))
    return folder


def greedy_sentence(prompt: str) -> str:
    """What transformers' own generate makes of a prompt, up to the first full stop."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    made = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=2)[0]
    whole, before = (
        tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for part in (made, ids[0])
    )
    return str(whole[len(before) :].partition(".")[0])


def measured(
    cli: Cli, folder: Path, python: Path, model: str, tasks: str, *options: str
) -> dict[str, Any]:
    """The value of each task's metric, by lm-eval over a model of ours."""
    done = cli(
        *("lm-eval", "configs/demo.yaml", "--build-dir", str(cli.build), "--json"),
        *("--model", model, "--tasks", tasks, "--python", str(python)),
        *("--include-path", str(folder), *options),
        timeout=600,
    )
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def by_lm_eval(folder: Path, python: Path) -> dict[str, Any]:
    """The same by lm-eval's own command and its own Hugging Face model."""
    output = folder / "found"
    subprocess.run(
        [
            *(python, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"),
            *("--model_args", f"pretrained={DEMO_MODEL},dtype=float32"),
            *("--tasks", *TASKS, "--include_path", folder, "--output_path", output),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
        capture_output=True,
    )
    (file,) = output.rglob("results_*.json")
    return dict(json.loads(file.read_text())["results"])


@pytest.mark.parametrize("model", ["source", "checkpoint"])
def test_it_finds_what_lm_eval_finds_with_its_own_model(
    cli: Cli, folder: Path, python: Path, by_lm_eval: dict[str, Any], model: str
) -> None:
    """The demo model's own files are float16, so a checkpoint of that format is the same model."""
    found = measured(
        cli, folder, python, model, ",".join(TASKS), "--set", "quantize.format=float16"
    )
    assert found["model"] == model
    assert found["n-samples"]["swag"] == {"original": ROWS, "effective": ROWS}
    results = found["results"]
    assert results["swag"]["acc_norm,none"] == by_lm_eval["swag"]["acc_norm,none"]
    bits = by_lm_eval["rolling"]["bits_per_byte,none"]
    assert results["rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
    # What transformers' own generate wrote.
    assert results["goeson"]["exact_match,none"] == 1.0


def test_a_served_endpoint_goes_on_with_texts(
    cli: Cli, folder: Path, python: Path, server: Any
) -> None:
    """Against what NVIDIA's contract gives a client that streams."""
    from trtllm_client import Client

    stories = [json.loads(line) for line in (folder / "stories.jsonl").read_text().splitlines()]
    with Client(server.grpc_url) as client:
        same = 0
        for story in stories:
            with client.stream(story["prompt"], max_tokens=20, top_k=1) as stream:
                text = "".join(chunk.text for chunk in stream)
            same += text.partition(".")[0] == story["text"]
    found = measured(cli, folder, python, server.grpc_url, "goeson")
    assert found["results"]["goeson"]["exact_match,none"] == pytest.approx(same / len(stories))
    assert same, "no text was the source model's: the comparison says nothing"


def test_a_served_endpoint_is_scored_as_lm_eval_scores_its_own_model(
    cli: Cli, folder: Path, python: Path, by_lm_eval: dict[str, Any], scored: Any
) -> None:
    """Choices, long texts in windows, and texts, all over gRPC, with a header on the way."""
    longest = ("--set", f"compile.max_input_len={LONGEST - 1}")
    longest = (*longest, "--set", f"compile.max_seq_len={LONGEST}")
    found = measured(
        *(cli, folder, python, scored.grpc_url, ",".join(TASKS), "--header", "who=lm-eval"),
        *longest,
    )
    results = found["results"]
    assert results["swag"]["acc_norm,none"] == by_lm_eval["swag"]["acc_norm,none"]
    bits = by_lm_eval["rolling"]["bits_per_byte,none"]
    assert results["rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
    assert results["goeson"]["exact_match,none"] == 1.0


def test_an_endpoint_behind_tls_whose_models_answer_once(
    cli: Cli, folder: Path, python: Path, by_lm_eval: dict[str, Any], certificates: Path
) -> None:
    repository = scored_repository(cli, "scored-once", decoupled="false")
    cert, key = str(certificates / "cert.pem"), str(certificates / "key.pem")
    given = ("--tls-root", cert, "--tls-cert", cert, "--tls-key", key)
    longest = ("--set", f"compile.max_input_len={LONGEST - 1}")
    longest = (*longest, "--set", f"compile.max_seq_len={LONGEST}")
    with TritonServer(repository, flags=mutual_tls(certificates)) as server:
        url = f"grpcs://{server.grpc_url}"
        found = measured(cli, folder, python, url, "swag,goeson", *given, *longest)
    results = found["results"]
    assert results["swag"]["acc_norm,none"] == by_lm_eval["swag"]["acc_norm,none"]
    assert results["goeson"]["exact_match,none"] == 1.0


def test_what_a_server_cannot_tell_is_refused(
    cli: Cli, folder: Path, python: Path, server: Any
) -> None:
    done = cli(
        *("lm-eval", "configs/demo.yaml", "--build-dir", str(cli.build)),
        *("--model", server.grpc_url, "--tasks", "swag", "--python", str(python)),
        *("--include-path", str(folder)),
        check=False,
    )
    assert done.returncode == 3
    assert "does not tell how likely given tokens are" in done.stderr
    assert "serve.enable_kv_cache_reuse: false" in done.stderr
    assert "--model checkpoint" in done.stderr


def test_data_that_cannot_be_fetched_is_one_paragraph(
    cli: Cli, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = cli(
        *("lm-eval", "configs/demo.yaml", "--build-dir", str(cli.build), "--json"),
        *("--model", "source", "--tasks", "hellaswag", "--limit", "2", "--python", str(python)),
        timeout=600,
        check=False,
    )
    assert done.returncode == 2
    error = json.loads(done.stdout)
    assert error["what"] == "the data of hellaswag is not here and cannot be fetched"
    assert "Rowan/hellaswag" in error["why"]
    assert "--include-path" in error["fix"]
    assert "Traceback" not in done.stderr

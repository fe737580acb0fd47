"""Writes the files beside it: ``python record.py SHARED``, in an environment with lm-eval.

lm-eval itself answers rows of HellaSwag and MMLU with the demo model and with one of SHARED, by its
own task definitions, text preprocessing, prompts, tokenization and Hugging Face model. SHARED has
the ``data/`` that the tests read, too (HellaSwag and MMLU are under the MIT licence). Nothing of
this project is imported, and no text of a row is recorded.
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.tasks._yaml_loader import load_yaml

HERE = Path(__file__).parent
DEMO = HERE.parents[2] / "examples" / "tiny_llama" / "model"
TASKS = Path(lm_eval.__file__).parent / "tasks"
SUBJECTS = ("anatomy", "formal_logic", "high_school_world_history")
ROWS, SHOTS = 200, 5


def local_json(**files: Path) -> dict[str, Any]:
    """What makes a task read local files in place of the Hub's."""
    data = {name: str(path) for name, path in files.items()}
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": data}}


def hellaswag(shared: Path, folder: Path) -> dict[str, Any]:
    """lm-eval's own HellaSwag task on the first rows."""
    lines = (shared / "data" / "hellaswag_val_1000.jsonl").read_text("utf-8").splitlines()[:ROWS]
    rows = folder / "hellaswag.jsonl"
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    own = load_yaml(TASKS / "hellaswag" / "hellaswag.yaml", resolve_func=True)
    return {**own, "training_split": None, **local_json(validation=rows)}


def mmlu(shared: Path, folder: Path, subject: str) -> dict[str, Any]:
    """lm-eval's own MMLU task of a subject, on the rows of hendrycks' files."""
    files = {}
    for split in ("dev", "val"):
        source = shared / "data" / "mmlu" / split / f"{subject}_{split}.csv"
        with source.open(encoding="utf-8", newline="") as file:
            rows = [
                {"question": q, "choices": c, "answer": "ABCD".index(a), "subject": subject}
                for q, *c, a in csv.reader(file)
            ]
        files[split] = folder / f"{subject}_{split}.jsonl"
        files[split].write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    template = load_yaml(TASKS / "mmlu" / "default" / "_default_template_yaml", resolve_func=True)
    own = load_yaml(TASKS / "mmlu" / "default" / f"mmlu_{subject}.yaml", resolve_func=True)
    return {**template, **own, **local_json(test=files["val"], dev=files["dev"])}


def answered(task: dict[str, Any], metric: str, shots: int, model: Path) -> dict[str, Any]:
    """lm-eval's log-likelihoods and choice of every row, and its accuracy."""
    name = task["task"]
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=[task],
        num_fewshot=shots,
        batch_size=16,
        device="cpu",
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    return {
        "shots": shots,
        "metric": metric,
        "accuracy": found["results"][name][f"{metric},none"],
        "rows": [
            {
                **({"ind": sample["doc"]["ind"]} if "ind" in sample["doc"] else {}),
                "log_likelihoods": [round(float(r[0][0]), 4) for r in sample["resps"]],
                "choice": chosen(sample, metric),
            }
            for sample in samples
        ],
    }


def chosen(sample: dict[str, Any], metric: str) -> int:
    """The choice that lm-eval's metric took, which its samples tell by right and wrong alone."""
    likelihoods = np.array([float(response[0][0]) for response in sample["resps"]])
    if metric == "acc_norm":
        likelihoods /= [len(choice) for choice in sample["doc"]["choices"]]
    choice = int(np.argmax(likelihoods))
    assert (choice == sample["target"]) == (sample[metric] == 1.0), sample
    return choice


def main(shared: Path) -> None:
    """HellaSwag without examples; MMLU without and with its five, by subject."""
    for model in (DEMO, shared / "models" / "stories260K-h128"):
        record: dict[str, Any] = {
            "lm_eval": importlib.metadata.version("lm-eval"),
            "transformers": importlib.metadata.version("transformers"),
        }
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            record["hellaswag"] = answered(hellaswag(shared, scratch), "acc_norm", 0, model)
            for subject in SUBJECTS:
                task = mmlu(shared, scratch, subject)
                record[subject] = [answered(task, "acc", shots, model) for shots in (0, SHOTS)]
        # A row a line.
        text = json.dumps(record, separators=(",", ":"))
        text = text.replace('{"ind"', '\n{"ind"').replace('{"log', '\n{"log')
        name = "tiny_llama" if model == DEMO else model.name
        (HERE / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
